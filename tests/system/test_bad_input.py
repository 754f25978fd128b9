"""Whatever is wrong from the start is one line that names the place and the remedy, and nothing is left of it."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

from common.protocol.token import coordinator_curve
from tests.support.commands import Finished
from tests.support.runs import HOST, Fleet, connections, free_port
from tests.support.servers import Server, SocketServer

NOWHERE = "redis://127.0.0.1:1"
QUICK = ("--connect-timeout", "300ms", "--socket-timeout", "300ms", "--duration", "1s")

PLANS = {
    "unknown.yaml": ("bogus: 1", r"\$\.bogus: unknown key; expected one of target, pools"),
    "zero.yaml": ("pools: [{threads_per_pool: 0}]", r"\$\.pools\[0\]\.threads_per_pool: .* >= 1, got 0"),
    "weight.yaml": ("workload: {commands: [{command: GET, weight: -1}]}", r"\.weight: expected a number >= 0, got -1"),
    "range.json": ('{"workload": {"keys": {"minimum": 9, "maximum": 3}}}', r"minimum <= maximum, got 9 and 3"),
    "both.yaml": ("load: {duration: 1s, requests: 5}", r"\$\.load\.requests: expected either a duration or requests"),
    "broken.yaml": ("[1, 2", r"broken\.yaml:1:\d+: expected YAML"),
    "missing.yaml": (None, r"missing\.yaml: expected a plan that can be read, got: No such file"),
}
COORDINATOR_FLAGS = (
    (("--bogus",), r"no such option '--bogus'"),
    (("--rate", "fast"), r'--rate: expected a rate .* got "fast"'),
    (("--bind", "http://h"), r'--bind: expected an address such as 10\.0\.0\.5:5555, got "http://h"'),
    (("--bind", "no-such-host.invalid"), r"--bind: cannot resolve no-such-host\.invalid: "),
    (("--out", "a-file/runs"), r"--out a-file/runs: expected a folder that can be written"),
)
AGENT_FLAGS = (
    ((), r"missing argument 'ENDPOINT'"),
    (("no sense", "--insecure"), r'expected an address such as 10\.0\.0\.5:5555, got "no sense"'),
    (("*:5555", "--insecure"), r'expected the host and port of a coordinator, such as 10\.0\.0\.5:5555, got "\*:5555"'),
    (("tcp://127.0.0.1:1", "--processes", "0"), r'--processes: expected a whole number >= 1, got "0"'),
    (("tcp://127.0.0.1:1", "--wait", "soon"), r'--wait: expected a duration .* got "soon"'),
    (("tcp://127.0.0.1:1", "--token-file", "none"), r"none: no token there; copy it .* --token-file.* --insecure"),
)


def assert_refused(finished: Finished, code: int, said: str) -> None:
    assert (finished.returncode, finished.stdout) == (code, ""), finished
    [line] = finished.stderr.splitlines()
    assert re.match(rf"(coordinator|agent): .*{said}", line), line


def test_a_wrong_plan_is_named_by_file_and_path_and_nothing_is_begun(fleet: Fleet) -> None:
    for name, (text, _) in PLANS.items():
        if text is not None:
            (fleet.commands.directory / name).write_text(text)
    started = [fleet.commands.start("coordinator", "start", name, "--url", NOWHERE) for name in PLANS]
    for running, (name, (_, said)) in zip(started, PLANS.items(), strict=True):
        finished = running.wait(30)
        assert_refused(finished, 3, said)
        assert name in finished.stderr
    assert not (fleet.commands.directory / "runs").exists()


def test_a_wrong_flag_is_named_and_nothing_is_begun(fleet: Fleet) -> None:
    (fleet.commands.directory / "a-file").write_text("")
    good = ("--url", NOWHERE, "--duration", "1s")
    started = [fleet.commands.start("coordinator", "start", *good, *flags) for flags, _ in COORDINATOR_FLAGS]
    started += [fleet.commands.start("agent", "join", *flags) for flags, _ in AGENT_FLAGS]
    for running, (_, said) in zip(started, (*COORDINATOR_FLAGS, *AGENT_FLAGS), strict=True):
        assert_refused(running.wait(30), 2, said)
    assert not (fleet.commands.directory / "runs").exists()


def test_a_target_that_cannot_be_used_is_told_what_it_did_and_no_agent_is_started(
    fleet: Fleet, refusing_url: str, deaf_url: str, silent_server: SocketServer, closing_server: SocketServer,
    http_server: SocketServer, smtp_server: SocketServer, valkey_with_password: Server,
) -> None:  # fmt: skip
    locked = valkey_with_password.url
    wrong = locked.replace("://", "://:wrong@")
    targets = {
        refusing_url: "refused the connection: nothing listens there",
        deaf_url: "did not answer",
        silent_server.url: "did not answer",
        closing_server.url: "(ended|reset) the connection",
        http_server.url: "does not speak RESP",
        smtp_server.url: "does not speak RESP",
        locked: "requires a password: set target.password_env",
        wrong: "refused our user name and password",
        "redis://no-such-host.invalid:6379": "host name that cannot be resolved",
    }
    started = [
        fleet.commands.start("coordinator", "start", "--url", url, "--local-agents", "1", *QUICK) for url in targets
    ]
    for running, (url, said) in zip(started, targets.items(), strict=True):
        finished = running.wait(30)
        assert_refused(finished, 4, said)
        assert url.rpartition("@")[2].removeprefix("redis://") in finished.stderr
        assert "wrong" not in finished.stderr
    assert not (fleet.commands.directory / "runs").exists()
    checked = fleet.commands.coordinator("check", "--url", refusing_url)
    assert checked.returncode == 4


def test_a_port_in_use_is_named_and_a_free_one_is_asked_for(fleet: Fleet, valkey: Server) -> None:
    with socket.create_server((HOST, fleet.port)):
        finished = fleet.coordinator("--url", valkey.url, "--expect-agents", "1", "--duration", "1s").wait()
    assert_refused(finished, 2, rf"--bind tcp://127\.0\.0\.1:{fleet.port}: cannot listen there: address already in use")
    assert not fleet.runs


def test_a_token_that_does_not_fit_is_refused_and_both_sides_say_so(fleet: Fleet, valkey: Server) -> None:
    open_fleet = Fleet(fleet.commands)
    insecure = open_fleet.coordinator(
        "--url", valkey.url, "--expect-agents", "1", "--requests", "100", "--insecure", "--wait", "30s"
    )
    mistaken = open_fleet.agent("mistaken")
    strange = fleet.commands.directory / "strange"
    coordinator_curve(strange)
    coordinator = fleet.coordinator("--url", valkey.url, "--expect-agents", "1", "--duration", "1s", "--wait", "30s")
    stranger = fleet.agent("stranger", "--token-file", str(strange))
    # The coordinator's key fits, the agent's own does not: a stolen public key is no admission.
    own = fleet.token.read_text().splitlines()
    half = fleet.commands.directory / "half"
    shutil.copy(strange, half)
    half.write_text("\n".join([own[1], strange.read_text().splitlines()[2]]))
    impostor = fleet.agent("impostor", "--token-file", str(half))
    naked = fleet.agent("naked", "--insecure")
    secured, unsecured = (f"the coordinator at {HOST}:{one.port}" for one in (fleet, open_fleet))
    for agent, said in (
        (stranger, "the coordinator refuses our token; copy its token file here (--token-file)"),
        (impostor, "the coordinator refuses our token; copy its token file here (--token-file)"),
        (mistaken, f"{unsecured} was started with --insecure; join with --insecure"),
        (naked, f"{secured} requires its token; join without --insecure, and with --token-file"),
    ):
        finished = agent.wait()
        assert (finished.returncode, finished.stderr.splitlines()[-1]) == (5, f"agent: {said}")
    coordinator.wait_for_text("refused a peer: another token")
    assert "joined" not in coordinator.stderr
    # And the runs are none the worse for it.
    member = fleet.agent("member", "--once")
    anybody = open_fleet.agent("anybody", "--insecure", "--once")
    assert insecure.wait().returncode == anybody.wait().returncode == 0
    ended = fleet.end(coordinator)
    assert (ended.code, [agent["id"] for agent in ended.summary["agents"]]) == (0, ["member"])
    assert member.wait().returncode == 0


def test_agents_that_do_not_come_in_time_are_counted_and_those_that_came_are_let_go(
    fleet: Fleet, valkey: Server
) -> None:
    agent = fleet.agent("present", "--once")
    finished = fleet.coordinator(
        "--url", valkey.url, "--expect-agents", "3", "--duration", "1s", "--wait", "2s"
    ).wait()  # fmt: skip
    assert finished.returncode == 5
    assert finished.stderr.splitlines()[-1] == (
        f"coordinator: expected 3 agents within 2s, got 1 (present); start them with `agent join {HOST}:{fleet.port}`, "
        "or wait longer with --wait"
    )
    assert "Traceback" not in finished.stderr
    assert not fleet.runs
    assert agent.wait().returncode == 0


def test_an_agent_says_why_it_reaches_no_coordinator_and_waits_where_that_helps(
    fleet: Fleet, valkey: Server, silent_server: SocketServer
) -> None:
    nobody = free_port()
    kinds = {
        f"{HOST}:{nobody}": f"no coordinator answered for 5 s: nothing listens at {HOST}:{nobody}",
        f"{HOST}:{silent_server.port}": f"5 s: {HOST}:{silent_server.port} accepts connections, but nothing answers",
        "no-such-host.invalid": "no coordinator answered for 5 s: cannot resolve no-such-host.invalid: ",
        f"{HOST}:{valkey.port}": f"a Redis server listens at {HOST}:{valkey.port}, not a coordinator",
    }
    started = [fleet.commands.start("agent", "join", endpoint, "--wait", "5s") for endpoint in kinds]
    for agent, said in zip(started, kinds.values(), strict=True):
        finished = agent.wait()
        assert finished.returncode == 5
        assert said in finished.stderr.splitlines()[-1]
    for agent in started[:3]:
        assert "; trying again" in agent.stderr


def test_an_agent_that_met_a_stranger_at_the_address_joins_the_coordinator_that_comes_there_later(
    fleet: Fleet, valkey: Server
) -> None:
    with socket.create_server((HOST, fleet.port)) as stranger:
        agent = fleet.agent("a", "--once")
        stranger.settimeout(10)
        met, _ = stranger.accept()
        with met:
            met.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    ended = fleet.end(
        fleet.coordinator("--url", valkey.url, "--expect-agents", "1", "--requests", "100", "--wait", "9s")
    )
    assert ended.code == 0
    assert agent.wait().returncode == 0


def test_a_target_that_wants_more_than_a_ping_fails_the_preparing_and_frees_the_agents(
    fleet: Fleet, valkey: Server
) -> None:
    admin = valkey.client()
    admin.config_set("maxclients", 20)
    agent = fleet.agent("a")
    finished = fleet.coordinator(
        "--url", valkey.url, "--expect-agents", "1", "--duration", "1s", "--connections", "prewarm"
    ).wait(30)
    assert finished.returncode == 4
    assert "max number of clients" in finished.stderr.splitlines()[-1]
    assert not fleet.runs
    agent.wait_for_text("is over for this agent")
    assert agent.process.poll() is None
    assert not connections(admin)


def test_a_run_folder_that_cannot_be_made_frees_the_agents(fleet: Fleet, valkey: Server, tmp_path: Path) -> None:
    agent = fleet.agent("a", "--once")
    coordinator = fleet.coordinator("--url", valkey.url, "--expect-agents", "2", "--duration", "1s")
    coordinator.wait_for_text("agent a joined")
    (tmp_path / "runs").write_text("somebody else's file")
    other = fleet.agent("b", "--once")
    finished = coordinator.wait()
    assert finished.returncode == 2
    assert re.match(
        r"coordinator: runs/.*: cannot make the run's folder: .*; see --out$", finished.stderr.splitlines()[-1]
    )
    assert (tmp_path / "runs").read_text() == "somebody else's file"
    for running in (agent, other):
        running.wait()

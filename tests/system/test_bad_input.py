"""Bad input is one line that names the place and the remedy, and nothing is started."""

from __future__ import annotations

import re
import shutil
import socket

from common.protocol.token import coordinator_curve
from tests.support.commands import Finished
from tests.support.runs import HOST, Fleet, connections
from tests.support.servers import Server, SocketServer

NOWHERE = "redis://127.0.0.1:1"
QUICK = ("--connect-timeout", "300ms", "--socket-timeout", "300ms", "--duration", "1s")

PLANS = {
    "unknown.yaml": ("bogus: 1", r"\$\.bogus: unknown key; expected one of target, pools"),
    "missing.yaml": (None, r"missing\.yaml: expected a plan that can be read, got: No such file"),
}
COORDINATOR_FLAGS = (
    (("--bogus",), r"no such option '--bogus'"),
    (("--bind", "no-such-host.invalid"), r"--bind: cannot resolve no-such-host\.invalid: "),
)
AGENT_FLAGS = (
    (("*:5555", "--insecure"), r'expected the host and port of a coordinator, such as 10\.0\.0\.5:5555, got "\*:5555"'),
    (("tcp://127.0.0.1:1", "--processes", "0"), r'--processes: expected a whole number >= 1, got "0"'),
    (("tcp://127.0.0.1:1", "--wait", "soon"), r'--wait: expected a duration .* got "soon"'),
    (("tcp://127.0.0.1:1", "--token-file", "none"), r"none: no token there; copy it .* --token-file.* --insecure"),
)


def assert_refused(finished: Finished, code: int, said: str) -> None:
    assert (finished.returncode, finished.stdout) == (code, ""), finished
    [line] = finished.stderr.splitlines()
    assert re.match(rf"(coordinator|agent): .*{said}", line), line


def test_a_wrong_plan_is_named_by_file_and_path_and_nothing_starts(fleet: Fleet) -> None:
    for name, (text, _) in PLANS.items():
        if text is not None:
            (fleet.commands.directory / name).write_text(text)
    started = [fleet.commands.start("coordinator", "start", name, "--url", NOWHERE) for name in PLANS]
    for running, (name, (_, said)) in zip(started, PLANS.items(), strict=True):
        finished = running.wait(30)
        assert_refused(finished, 3, said)
        assert name in finished.stderr
    assert not (fleet.commands.directory / "runs").exists()


def test_a_wrong_flag_is_named_and_nothing_starts(fleet: Fleet) -> None:
    good = ("--url", NOWHERE, "--duration", "1s")
    started = [fleet.commands.start("coordinator", "start", *good, *flags) for flags, _ in COORDINATOR_FLAGS]
    started += [fleet.commands.start("agent", "join", *flags) for flags, _ in AGENT_FLAGS]
    for running, (_, said) in zip(started, (*COORDINATOR_FLAGS, *AGENT_FLAGS), strict=True):
        assert_refused(running.wait(30), 2, said)
    assert not (fleet.commands.directory / "runs").exists()


def test_an_unusable_target_is_named_with_its_answer_and_no_agent_starts(
    fleet: Fleet, refusing_url: str, silent_server: SocketServer, valkey_with_password: Server
) -> None:
    locked = valkey_with_password.url
    targets = {
        refusing_url: "refused the connection: nothing listens there",
        silent_server.url: "did not answer",
        locked.replace("://", "://:wrong@"): "refused our user name and password",
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


def test_a_port_in_use_is_named(fleet: Fleet, valkey: Server) -> None:
    with socket.create_server((HOST, fleet.port)):
        finished = fleet.coordinator("--url", valkey.url, "--expect-agents", "1", "--duration", "1s").wait()
    assert_refused(finished, 2, rf"--bind tcp://127\.0\.0\.1:{fleet.port}: cannot listen there: address already in use")
    assert not fleet.runs


def test_a_wrong_token_is_refused_and_both_sides_report_it(fleet: Fleet, valkey: Server) -> None:
    open_fleet = Fleet(fleet.commands)
    insecure = open_fleet.coordinator(
        "--url", valkey.url, "--expect-agents", "1", "--requests", "100", "--insecure", "--wait", "30s"
    )
    mistaken = open_fleet.agent("mistaken")
    strange = fleet.commands.directory / "strange"
    coordinator_curve(strange)
    coordinator = fleet.coordinator("--url", valkey.url, "--expect-agents", "1", "--duration", "1s", "--wait", "30s")
    stranger = fleet.agent("stranger", "--token-file", str(strange))
    # The coordinator's key fits, the agent's own does not: a stolen public key admits no one.
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
    # Both runs go on undisturbed.
    member = fleet.agent("member", "--once")
    anybody = open_fleet.agent("anybody", "--insecure", "--once")
    assert insecure.wait().returncode == anybody.wait().returncode == 0
    ended = fleet.end(coordinator)
    assert (ended.code, [agent["id"] for agent in ended.summary["agents"]]) == (0, ["member"])
    assert member.wait().returncode == 0


def test_missing_agents_are_counted_and_the_agents_that_joined_are_released(fleet: Fleet, valkey: Server) -> None:
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


def test_an_agent_that_first_meets_another_server_joins_the_coordinator_that_replaces_it(
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


def test_a_server_with_too_few_connections_fails_the_preparation_and_releases_the_agents(
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

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import FleetError, InvalidResultError, PlanError, TargetError, ThresholdError, UsageError
from common.plan.loading import profiles
from common.plan.schema import Plan
from common.plan.settings import SETTINGS
from coordinator import cli
from coordinator.catalogue import page
from coordinator.servers.check import CheckLine, CheckReport
from coordinator.start_options import StartOptions
from tests.support.commands import Finished

Run = Callable[..., tuple[int, str, str]]

ENOUGH = ("--url", "redis://h", "--duration", "1s")
# Tests replace the functions that a command calls, so no test here starts a run.
START = "coordinator.start.start"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_it


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, StartOptions]]:
    calls: list[tuple[Plan, StartOptions]] = []

    def start(plan: Plan, options: StartOptions) -> int:
        calls.append((plan, options))
        return 0

    monkeypatch.setattr(START, start)
    return calls


def test_the_version_is_that_of_the_distribution(run: Run) -> None:
    code, said, complaint = run("--version")
    assert (code, complaint) == (0, "")
    assert said.startswith(f"coordinator {version('redis-stampede')} (redis-stampede; Python 3.")
    assert run("-V") == (code, said, complaint)


def test_without_a_command_the_help_is_a_usage_error(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "start" in err


def test_the_help_of_start_lists_every_flag_and_alias_with_its_default(run: Run) -> None:
    code, out, _ = run("start", "--help")
    words = out.replace(",", " ").split()
    assert code == 0
    for setting in SETTINGS:
        assert all(flag in words for flag in setting.flags)
    assert "TCP connections of each redis.Redis [default: 50]" in " ".join(out.split())
    assert "TCP keepalive [default: on]" in " ".join(out.split())
    assert "after which to retry [default: ConnectionError,TimeoutError]" in " ".join(out.split())
    assert "can remove [default: 0]" in " ".join(out.split())
    assert "Pools (each flag applies to every pool group of the plan):" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("frob",), "no such command 'frob'"),
        (("plan", "--thread-per-pool", "4"), "no such option '--thread-per-pool'. (Did you mean one of: "),
        (
            ("plan", "--rate-limiting", "4"),
            "no '--rate-limiting' here: --rate, for the whole fleet, not per connection",
        ),
        (("start", "--cluster-mode"), "no '--cluster-mode' here: --url redis+cluster://HOST:PORT"),
        (("check", "-c", "50"), "no '-c' here: --max-connections N, with --driver wire"),
        (("report", "-c", "50"), "no such option '-c'"),
        (("plan", "--threads-per-pool", "four"), '--threads-per-pool: expected a whole number >= 1, got "four"'),
        (("plan", "--threads-per-client", "four"), '--threads-per-pool: expected a whole number >= 1, got "four"'),
        (("plan", "--threads-per-pool", "0"), "--threads-per-pool: expected a whole number >= 1, got 0"),
        (("plan", "--threads-per-pool", "-1"), "--threads-per-pool: expected a whole number >= 1, got -1"),
        (("plan", "--duration", "soon"), "--duration: expected a duration such as"),
        (("plan", "--rate", "0"), "--rate: expected a rate above zero"),
        (("plan", "--data-size", "1.5"), "--data-size: expected a size such as"),
        (("plan", "--data-size-range", "12"), '--data-size-range: expected MIN-MAX such as "32-1KiB", got "12"'),
        (("plan", "--ratio", "1:-1"), '--ratio: expected SET:GET such as "1:10", got "1:-1"'),
        (("plan", "--command-ratio", "-1"), "--command-ratio: expected a number >= 0, got -1.0"),
        (("plan", "--command-ratio", "nan"), "--command-ratio: expected a number >= 0, got nan"),
        (("plan", "--connections", "hot"), '--connections: expected one of lazy, prewarm, got "hot"'),
        (("plan", "--driver", "telepathy"), '--driver: expected one of client, asyncio, wire, got "telepathy"'),
        (("plan", "--protocol", "4"), "--protocol: expected a whole number from 2 to 3, got 4"),
        (
            ("plan", "--embedded-server", "plan.yaml"),
            '--embedded-server: expected one of standalone, cluster, sentinel, got "plan.yaml"',
        ),
        (("plan", "--url"), "option '--url' requires an argument."),
        (("plan", "a", "b"), "got unexpected extra argument (b)"),
        (("report",), "missing argument 'RUN'."),
        (("report", "x", "--format", "xml"), "--format: 'xml' is not one of"),
        (("start", "--out", __file__), "--out: "),
        (("start", *ENOUGH, "--rounds", "3"), "--rounds: expected it with --compare-drivers only"),
        (("start", "--compare-drivers", "--rounds", "1"), '--rounds: expected a whole number >= 2, got "1"'),
        (("start", "--compare-drivers", "--rounds", "many"), '--rounds: expected a whole number >= 2, got "many"'),
        (("start", "--compare-drivers", "--resume", "r"), "--resume: expected no --compare-drivers, because"),
        (("start", *ENOUGH, "--compare-drivers", "--driver", "wire"), "--compare-drivers: expected pools without a"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_in_one_line(run: Run, arguments: tuple[str, ...], line: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"coordinator: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("start",), "plan: $.target.url: expected a target, got none; use --url"),
        (("plan", *ENOUGH, "--requests", "5"), "--requests: expected either a duration or requests"),
        (("plan", "--url", "redis://h", "--requests", "0"), "--requests: expected at least 1 request, got 0"),
        (("plan", *ENOUGH, "--key-minimum", "2", "--key-maximum", "1"), "--key-minimum: expected minimum <= maximum"),
        (("plan", "none.yaml"), "none.yaml: expected a plan that can be read, got: No such file or directory"),
        (("plan", "."), ".: expected a plan that can be read, got: it is a directory"),
        (("start", "none.yaml"), "none.yaml: expected a plan that can be read"),
        (("check",), "plan: $.target.url: expected a target, got none"),
        (("profiles", "basic"), "expected one of async_mixed, basic_rw"),
        (("plan", *ENOUGH, "--profile", "a\nb\x1b[2J"), "--profile: expected one of async_mixed, basic_rw"),
    ],
)
def test_an_invalid_plan_is_exit_code_3_in_one_line(run: Run, arguments: tuple[str, ...], line: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (3, "")
    assert err.startswith(f"coordinator: {line}")
    assert err.rstrip("\n").isprintable()


def test_start_gets_the_plan_and_the_options(run: Run, started: list[tuple[Plan, StartOptions]]) -> None:
    code, _, _ = run(
        "start", *ENOUGH, "--bind", "tcp://*:1", "--out", "o", "--json", "--insecure", "--token-file", "t", "-q",
        "--hide-histogram", "--test-time", "3s", "--per-agent",
    )  # fmt: skip
    assert code == 0
    ((plan, options),) = started
    assert options == StartOptions(
        bind="tcp://*:1", out=Path("o"), json=True, insecure=True, token_file=Path("t"), quiet=True, hide_histogram=True
    )
    assert plan.load.duration_s == 3
    assert plan.fleet.per_agent


def test_a_comparison_gets_the_plan_the_options_and_the_rounds(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Plan, StartOptions, int]] = []

    def compare(plan: Plan, options: StartOptions, rounds: int) -> int:
        calls.append((plan, options, rounds))
        return 5

    monkeypatch.setattr("coordinator.compare_command.compare", compare)
    assert run("start", *ENOUGH, "--compare-drivers", "--out", "o", "--json")[0] == 5
    assert run("start", *ENOUGH, "--compare-drivers", "--rounds", "7")[0] == 5
    assert [(options, rounds) for _, options, rounds in calls] == [
        (StartOptions(out=Path("o"), json=True), 3),
        (StartOptions(), 7),
    ]
    assert calls[0][0].target.url == "redis://h"


def test_start_without_options_gets_the_defaults(run: Run, started: list[tuple[Plan, StartOptions]]) -> None:
    run("start", *ENOUGH)
    assert [options for _, options in started] == [StartOptions()]


def test_resume_uses_the_plan_file_of_the_run(run: Run, started: list[tuple[Plan, StartOptions]]) -> None:
    folder = Path("runs") / "r-1"
    folder.mkdir(parents=True)
    (folder / "journal").touch()
    (folder / "plan.yaml").write_text("target: {url: 'redis://left'}\nload: {requests: 7}")
    assert run("start", "--resume", "r-1")[0] == 0
    ((plan, options),) = started
    assert (plan.target.url, plan.load.requests, options.resume) == ("redis://left", 7, "r-1")
    # Only the sources of passwords may be given again.
    (folder / "plan.yaml").write_text("target: {url: 'redis+sentinel://left/x'}\nload: {requests: 7}")
    assert run("start", "--resume", "r-1", "--sentinel-password-file", "x")[2].count("a file with the password")
    assert "expected no plan and no flags of a plan" in run("start", "--resume", "r-1", "--sentinel-username", "x")[2]
    code, _, err = run("start", "--resume", "nobody")
    assert code == 2
    assert "nobody" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2), (PlanError, 3), (TargetError, 4), (FleetError, 5), (ThresholdError, 6),
        (InvalidResultError, 7),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int
) -> None:
    def start(*_: object) -> int:
        raise error("it did\nnot work")

    monkeypatch.setattr(START, start)
    assert run("start", *ENOUGH) == (code, "", "coordinator: it did not work\n")


def test_an_interrupt_is_130_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(START, start)
    code, out, err = run("start", *ENOUGH)
    assert (code, out, err.strip()) == (130, "", "")


def test_the_exit_code_of_a_run_is_that_of_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(START, lambda *_: 5)
    assert run("start", *ENOUGH)[0] == 5


EXAMPLE = (
    *ENOUGH, "--client-instances", "2", "--connections-per-client", "3", "--threads-per-client", "4",
    "--max-connections", "50", "--local-agents", "2", "--processes", "1",
)  # fmt: skip


def test_plan_shows_the_arithmetic_of_the_requested_example(run: Run) -> None:
    code, out, err = run("plan", *EXAMPLE)
    assert (code, err) == (0, "")
    assert "# connections of main: 2 client pools x 3 client instances x 50 connections = 300\n" in out
    assert "# worker threads: 8\n" in out
    assert "# share of local-1 (1 process): 1 pool, 4 threads, at most 150 connections\n" in out
    assert "# share of local-2 (1 process): 1 pool, 4 threads, at most 150 connections\n" in out


def test_plan_counts_threads_and_tasks(run: Run) -> None:
    tasks = ("--driver", "asyncio", "--tasks-per-pool", "4", "--client-pools", "2", "--local-agents", "2")
    _, out, _ = run("plan", *ENOUGH, *tasks, "--processes", "1")
    assert "# worker tasks: 8\n" in out
    assert "# share of local-2 (1 process): 1 pool, 4 tasks, at most 50 connections\n" in out
    assert "thread" not in out[out.index("# plan hash") :]
    pools = [{"name": "a", "threads_per_pool": 3}, {"name": "b", "driver": "asyncio", "tasks_per_pool": 5}]
    Path("mixed.yaml").write_text(yaml.safe_dump({"pools": pools}))
    _, out, _ = run("plan", "mixed.yaml", *ENOUGH, "--local-agents", "1", "--processes", "1")
    assert "# worker threads: 3\n# worker tasks: 5\n" in out
    assert "2 pools, 3 threads and 5 tasks, at most 100 connections\n" in out


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (("--url", "redis+cluster://h"), True),
        (("--embedded-server", "cluster"), True),
        (("--embedded-server", "sentinel"), False),
    ],
)
def test_plan_says_that_the_connections_of_a_cluster_are_per_node(
    run: Run, target: tuple[str, ...], said: bool
) -> None:
    flags = (*target, "--duration", "1s", "--client-pools", "2")
    assert ("# Connections are per node of the cluster" in run("plan", *flags)[1]) == said
    assert json.loads(run("plan", "--json", *flags)[1])["connections"]["per_node"] == said


def test_plan_shows_when_each_leg_begins_and_its_rate(run: Run) -> None:
    stages = ("--warmup", "1s", "--stage", "1m", "--stage", "up=2s@500/s:linear", "--stage", "3s@1.5k/s")
    code, out, err = run("plan", "--url", "redis://h", *stages)
    assert (code, err) == (0, "")
    for line in (
        "warmup: at 0s for 1s, closed loop, not reported",
        "stage 1: at 1s for 1m, closed loop",
        "up: at 1m1s for 2s, from 0/s to 500/s, 500 operations",
        "stage 3: at 1m3s for 3s, at 1.5k/s, 4,500 operations",
    ):
        assert f"# {line}\n" in out
    facts = json.loads(run("plan", "--json", "--url", "redis://h", *stages)[1])["timeline"]
    assert [(leg["name"], leg["begin_s"], leg["operations"]) for leg in facts] == [
        ("warmup", 0.0, None),
        ("stage 1", 1.0, None),
        ("up", 61.0, 500),
        ("stage 3", 63.0, 4500),
    ]
    assert "# measure: at 0s for 5,000 requests, closed loop\n" in run("plan", "--requests", "5k")[1]
    assert "# measure: at 0s until stopped, at 5/s\n" in run("plan", "--duration", "0", "--rate", "5/s")[1]


def test_plan_needs_neither_a_target_nor_a_length(run: Run) -> None:
    code, out, err = run("plan", "--client-pools", "2", "--max-connections", "7")
    assert (code, err) == (0, "")
    for line in (
        "missing: a target; a run needs --url redis://HOST:PORT or --embedded-server",
        "connections of main: 2 client pools x 1 client instance x 7 connections = 14",
        "measure: at 0s for 10s, closed loop",
    ):
        assert f"# {line}\n" in out
    facts = json.loads(run("plan", "--json")[1])
    assert len(facts["missing"]) == 1
    assert facts["timeline"][0]["duration_s"] == 10
    assert "missing" not in run("plan", *ENOUGH)[1]


def test_plan_names_the_targets_that_have_no_url(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "targets: {eu: {}, us: {url: 'redis://h'}}\nscenarios: [{name: a, target: eu}, {name: b, target: us}]"
    )
    _, out, _ = run("plan", str(file))
    assert [line for line in out.splitlines() if "missing" in line] == [
        "# missing: the url of the target eu, which a run needs"
    ]


def test_the_output_of_plan_is_a_plan_file(run: Run, started: list[tuple[Plan, StartOptions]]) -> None:
    Path("full.yaml").write_text(run("plan", *EXAMPLE)[1])
    run("start", *EXAMPLE)
    run("start", "full.yaml")
    assert started[0] == started[1]


def test_plan_shows_the_resulting_settings_of_redis_py(run: Run) -> None:
    _, out, _ = run("plan", *ENOUGH, "--retry-backoff", "constant", "--tcp-pool", "blocking")
    assert "# client settings in force (main):" in out
    assert "#   retry backoff: ConstantBackoff" in out
    assert "#   pool: BlockingConnectionPool" in out
    _, out, _ = run("plan", *ENOUGH, "--json")
    assert json.loads(out)["client_settings"]["main"]["connection"] == "Connection"


def test_plan_as_json_has_the_same_figures(run: Run) -> None:
    facts: dict[str, Any] = json.loads(run("plan", *EXAMPLE, "--json")[1])
    assert facts["connections"] == {"ceiling": 300, "per_node": False, "pools": {"main": 300}}
    assert (facts["pools_total"], facts["threads_total"]) == (2, 8)
    assert [(agent["id"], agent["pools"], agent["connections"]) for agent in facts["agents"]] == [
        ("local-1", [0], 150),
        ("local-2", [1], 150),
    ]
    assert facts["plan"]["load"]["duration"] == 1.0


def test_plan_names_its_assumptions_about_remote_agents(run: Run) -> None:
    _, out, _ = run("plan", *ENOUGH, "--expect-agents", "3", "--client-pools", "2")
    assert "share of agent-3 (1 process): 0 pools" in out
    assert "the real shares depend on their real number" in out
    assert "fewer pools than agents" in out


def test_plan_says_when_the_run_starts_and_how_it_treats_lost_agents(run: Run) -> None:
    fleet = ("--expect-agents", "20", "--at-least", "18", "--wait", "5m")
    _, out, _ = run("plan", *ENOUGH, *fleet, "--on-agent-loss", "abort", "--tolerate-lost", "2")
    assert "# start: with 20 agents, or with at least 18 of them after 5m" in out
    assert "# lost agents: the run stops as soon as it loses more than 2 agents" in out
    _, out, _ = run("plan", *ENOUGH, *fleet, "--tolerate-lost", "1")
    assert "# lost agents: the run goes on without them, and fails if it loses more than 1 agent" in out


def test_plan_never_shows_the_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAMPEDE_PASSWORD", "s3cret")
    for more in ((), ("--json",)):
        assert "s3cret" not in run("plan", *ENOUGH, *more)[1]
    monkeypatch.delenv("STAMPEDE_PASSWORD")
    _, out, _ = run("plan", "--url", "redis://:s3cret@h", "--duration", "1s")
    assert "s3cret" not in out
    assert yaml.safe_load(out)["target"]["password"] == "***"


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 4)])
def test_check_prints_a_line_for_each_finding_and_exits_with_0_or_4(
    run: Run, monkeypatch: pytest.MonkeyPatch, ok: bool, code: int
) -> None:
    asked: list[tuple[Plan, int]] = []

    def check(plan: Plan, ceiling: int) -> CheckReport:
        asked.append((plan, ceiling))
        return CheckReport(
            (CheckLine("reach", True, "127.0.0.1"), CheckLine("clients", ok, "too few; raise maxclients"))
        )

    monkeypatch.setattr("coordinator.servers.check.check", check)
    status, out, _ = run("check", "--url", "redis://h", "--client-pools", "2")
    assert status == code
    assert out.splitlines()[0] == "ok    reach: 127.0.0.1"
    assert out.splitlines()[1].startswith("ok" if ok else "FAIL")
    assert asked[0][1] == 100


def test_profiles_are_listed_and_shown(run: Run) -> None:
    code, out, _ = run("profiles")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == profiles.names()
    shown = run("profiles", "high_throughput")[1]
    assert yaml.safe_load(shown)["pipeline"] == 10


def test_the_command_table_is_listed(run: Run) -> None:
    assert "__rand(A,B)__" in run("profiles", "--commands")[1]
    assert run("profiles", "--markdown")[1] == page()
    assert run("profiles", "basic_rw", "--commands") == (
        2, "", "coordinator: profiles basic_rw: expected either a name or --commands, got both\n",
    )  # fmt: skip


def test_report_prints_the_named_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.report_command.render", lambda *arguments, **_: f"\x1b[31m{arguments!r}\n")
    # The report decides about colours.
    said = f"\x1b[31m{('r-1', Path('o'), 'csv', False)!r}\n"
    assert run("report", "r-1", "--format", "csv", "--out", "o") == (0, said, "")


def test_arguments_that_are_not_utf_8_are_refused(
    run_coordinator: Callable[..., Finished],
) -> None:
    finished = run_coordinator("plan", *ENOUGH, "--key-prefix", "\udcff")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == 'coordinator: --key-prefix: expected text, got "\\udcff"\n'

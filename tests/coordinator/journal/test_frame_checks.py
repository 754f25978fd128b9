from __future__ import annotations

from typing import Any

import msgspec
import pytest

from common.metrics.error_samples import ErrorSample
from common.metrics.histogram import Histogram
from common.metrics.intervals import (
    MAX_ENDPOINT_LENGTH,
    MAX_ENDPOINTS,
    MAX_NAME_LENGTH,
    MAX_NAMES,
    CommandMetrics,
    ConnectionMetrics,
    IntervalMetrics,
    PoolMetrics,
    SecondMetrics,
)
from common.metrics.splitting import joined_seconds
from common.plan.schema import Command, Pools, Scenario, Target, Then, Workload
from common.protocol.messages import MAX_INTERVALS, MetricsFrame, PoolShare
from common.units import NS_PER_S
from coordinator.journal.frame_checks import (
    AHEAD_S,
    FRAMES_AT_ONCE,
    FRAMES_PER_S,
    LAST_SECOND,
    MOST_VALUES,
    FrameLimits,
)
from tests.support.protocol import dealt, fleet_plan, interval

PLAN = msgspec.structs.replace(
    fleet_plan(duration_s=3600.0, drain_s=10.0),
    pools=(Pools(name="main"), Pools(name="others")),
    workload=Workload(
        commands=(Command(command="GET", then=(Then(command="DEL"),)), Command(command="SET", name="write"))
    ),
)
LIMITS = FrameLimits.from_plan(PLAN, dealt(2))
TOO_MANY = Histogram(b"\0\0", (MOST_VALUES + 1).to_bytes(8, "little"), MOST_VALUES + 1)
NOW_NS = 20 * NS_PER_S


def of_pool(pool: PoolMetrics, name: str = "main") -> IntervalMetrics:
    return msgspec.structs.replace(interval(0), pools={name: pool})


def of_command(command: CommandMetrics, name: str = "GET") -> IntervalMetrics:
    return of_pool(PoolMetrics(commands={name: command}))


def objection(*intervals: IntervalMetrics, seq: int = 0, through: int = 0, elapsed_ns: int | None = NOW_NS) -> str:
    frame = MetricsFrame(seq=seq, through=through, intervals=intervals)
    return LIMITS.objection(frame, elapsed_ns)


def with_seconds(*seconds: SecondMetrics) -> IntervalMetrics:
    """An interval of the seconds 0 and 1 with two operations, and these figures per second."""
    return msgspec.structs.replace(interval(0, 2, last=1), seconds=seconds)


def of_servers(*names: str, replicas: tuple[str, ...] = (), **command: Any) -> IntervalMetrics:
    return of_pool(
        PoolMetrics(
            primaries={name: CommandMetrics(**command) for name in names},
            replicas={name: CommandMetrics(**command) for name in replicas},
        )
    )


def counts(names: int) -> dict[str, int]:
    return {f"ERROR{number}": 1 for number in range(names)}


@pytest.mark.parametrize(
    "intervals",
    [
        [],
        [interval(0)],
        [interval(0, last=20 + AHEAD_S)],
        [interval(0)] * MAX_INTERVALS,
        list(joined_seconds([interval(number, number, failed=1) for number in range(4)])),
        [of_command(CommandMetrics(ok=MOST_VALUES), name) for name in ("GET", "write", "DEL")],
        [of_command(CommandMetrics(errors=counts(MAX_NAMES), failures=counts(MAX_NAMES)))],
        [of_command(CommandMetrics(errors={"E" * MAX_NAME_LENGTH: 1}))],
        [of_pool(PoolMetrics(connections=ConnectionMetrics(drops=counts(MAX_NAMES))))],
        [of_pool(PoolMetrics(error_samples=(ErrorSample(name="ERR", command="write"), ErrorSample(name="ERR"))))],
    ],
)
def test_frames_that_fit_the_share_of_an_agent_are_accepted(intervals: list[IntervalMetrics]) -> None:
    assert objection(*intervals) == ""


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (interval(0, last=LAST_SECOND), "expected seconds up to 80 by now, got 8,640,000"),
        (interval(0, last=20 + AHEAD_S + 1), "expected seconds up to 80 by now, got 81"),
        (interval(5, last=4), "expected seconds within"),
        (interval(0, stage=1), "expected stages within 0..0, got 1"),
        (
            of_pool(PoolMetrics(error_samples=(ErrorSample(name="ERR", command="\x1b[2J"),))),
            'expected error samples of the plan\'s commands, "DEL", "GET", "write", got "\\x1b[2J"',
        ),
        (of_pool(PoolMetrics(), "others"), 'expected pools of its share, "main", got "others"'),
        (of_pool(PoolMetrics(), "\x1b[2J"), r'got "\x1b[2J"'),
        (
            msgspec.structs.replace(interval(0), pools={f"pool {n}": PoolMetrics() for n in range(5000)}),
            'got "pool 0", "pool 1", "pool 10" and 4,997 more',
        ),
        (of_command(CommandMetrics(hits=MOST_VALUES + 1)), "expected at most 68,719,476,736 hits and misses, got"),
        (of_command(CommandMetrics(misses=MOST_VALUES + 1)), "expected at most 68,719,476,736 hits and misses, got"),
        (
            with_seconds(SecondMetrics(number=0, ok=2, issued=2, hits={"KEYS": 1})),
            'expected commands of the plan, "DEL", "GET", "write", got "KEYS"',
        ),
        (of_command(CommandMetrics(), "SET"), 'expected commands of the plan, "DEL", "GET", "write", got "SET"'),
        (of_command(CommandMetrics(ok=MOST_VALUES + 1)), "expected at most 68,719,476,736 operations"),
        (of_command(CommandMetrics(errors=counts(MAX_NAMES + 1))), "expected at most 64 kinds of errors, got 65"),
        (of_command(CommandMetrics(failures={"E" * 65: 1})), "names of errors of at most 64 characters, got 65"),
        (
            of_pool(PoolMetrics(connections=ConnectionMetrics(failed_by_cause=counts(MAX_NAMES + 1)))),
            "expected at most 64 kinds of causes, got 65",
        ),
        (
            of_pool(PoolMetrics(connections=ConnectionMetrics(maintenance=counts(MAX_NAMES + 1)))),
            "expected at most 64 kinds of causes, got 65",
        ),
        (
            of_pool(PoolMetrics(connections=ConnectionMetrics(connect_tls=TOO_MANY))),
            "expected at most 68719476736 values",
        ),
        (msgspec.structs.replace(interval(0), issued=MOST_VALUES + 1), "expected at most 68,719,476,736 operations"),
        (of_command(CommandMetrics(service=TOO_MANY)), "expected at most 68719476736 values of a kind"),
        (with_seconds(SecondMetrics(number=2, ok=2, issued=2)), "seconds within 0..1"),
        (with_seconds(SecondMetrics(number=0, ok=3, issued=2)), "expected seconds with 2 operations, got 3"),
        (with_seconds(SecondMetrics(number=0, ok=2, issued=3)), "expected seconds with 2 operations issued, got 3"),
        (with_seconds(SecondMetrics(number=0, ok=2, issued=1)), "expected seconds with 2 operations issued, got 1"),
        (with_seconds(*[SecondMetrics(number=0)] * (MAX_INTERVALS + 1)), "expected at most 512 seconds"),
        (
            with_seconds(SecondMetrics(number=0, ok=2, issued=2, service=TOO_MANY)),
            "expected at most 68719476736 values of a kind",
        ),
        (with_seconds(SecondMetrics(number=0, failures={"E" * 65: 2}, issued=2)), "names of errors of at most 64"),
    ],
)
def test_a_frame_that_does_not_fit_the_share_is_refused_with_its_problem(part: IntervalMetrics, problem: str) -> None:
    found = objection(part)
    assert found.startswith("frame 0: ")
    assert problem in found
    assert found.isprintable()
    assert len(found) < 300


def test_a_frame_with_too_many_intervals_is_refused() -> None:
    assert "expected at most 512 intervals, got 513" in objection(*[interval(0)] * (MAX_INTERVALS + 1))


def test_without_a_clock_the_plan_limits_the_seconds() -> None:
    end = 3600 + 10 + AHEAD_S
    assert objection(interval(0, last=end), through=end, elapsed_ns=None) == ""
    assert "got 3,671" in objection(interval(0, last=end + 1), elapsed_ns=None)
    assert "got 3,671" in objection(through=end + 1, elapsed_ns=None)


def test_frames_faster_than_an_agent_sends_them_are_refused() -> None:
    most = FRAMES_AT_ONCE + 20 * FRAMES_PER_S
    assert objection(seq=most - 1) == ""
    assert objection(seq=most) == f"frame {most}: expected at most 2,280 frames by now"


CLUSTER_LIMITS = FrameLimits.from_plan(msgspec.structs.replace(PLAN, target=Target(url="redis+cluster://h")), dealt(2))


def test_an_agent_may_name_the_servers_of_a_cluster_but_not_of_a_target_that_is_one_server() -> None:
    frame = MetricsFrame(seq=0, through=0, intervals=(of_servers("h:1", "h:2", replicas=("h:3",), ok=1),))
    assert CLUSTER_LIMITS.objection(frame, NOW_NS) == ""
    assert "expected no servers by name from a target that is one server" in LIMITS.objection(frame, NOW_NS)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (of_servers(*map(str, range(MAX_ENDPOINTS + 1))), "expected at most 256 servers, got 257"),
        (of_servers(replicas=tuple(map(str, range(MAX_ENDPOINTS + 1)))), "expected at most 256 servers, got 257"),
        (of_servers("h" * (MAX_ENDPOINT_LENGTH + 1)), "names of servers of at most 262 characters, got 263"),
        (of_servers("h:1", ok=MOST_VALUES + 1), "expected at most 68,719,476,736 operations"),
        (of_servers("h:1", errors=counts(MAX_NAMES + 1)), "expected at most 64 kinds of errors, got 65"),
        (of_servers("h:1", service=TOO_MANY), "expected at most 68719476736 values of a kind"),
    ],
)
def test_figures_by_server_are_bounded(part: IntervalMetrics, problem: str) -> None:
    frame = MetricsFrame(seq=0, through=0, intervals=(part,))
    assert problem in CLUSTER_LIMITS.objection(frame, NOW_NS)


SCENARIOS = (
    Scenario(name="reads", pools=(Pools(name="readers"),), workload=Workload(commands=(Command(command="GET"),))),
    Scenario(name="writes", pools=(Pools(name="writers"),), workload=Workload(commands=(Command(command="SET"),))),
)
TWO_LIMITS = FrameLimits.from_plan(
    msgspec.structs.replace(PLAN, scenarios=SCENARIOS),
    [PoolShare(group=0, number=at, first_thread=0, scenario=at) for at in range(2)],
)


@pytest.mark.parametrize(
    ("stage", "pool", "command", "problem"),
    [
        (0, "readers", "GET", ""),
        (1, "writers", "SET", ""),
        (1, "readers", "SET", 'frame 0: expected pools of its share, "writers", got "readers"'),
        (1, "writers", "GET", 'frame 0: expected commands of the plan, "SET", got "GET"'),
    ],
)
def test_a_leg_has_only_pools_and_commands_of_its_own_scenario(
    stage: int, pool: str, command: str, problem: str
) -> None:
    one = of_pool(PoolMetrics(commands={command: CommandMetrics()}), pool)
    frame = MetricsFrame(seq=0, through=0, intervals=(msgspec.structs.replace(one, stage=stage),))
    assert TWO_LIMITS.objection(frame, NOW_NS) == problem


def test_an_agent_without_pools_of_a_scenario_has_no_metrics_of_its_legs() -> None:
    plan = msgspec.structs.replace(PLAN, scenarios=SCENARIOS)
    limits = FrameLimits.from_plan(plan, [PoolShare(group=0, number=0, first_thread=0, scenario=1)])
    frame = MetricsFrame(seq=0, through=0, intervals=(of_pool(PoolMetrics(), "readers"),))
    assert limits.objection(frame, NOW_NS) == 'frame 0: expected pools of its share, none, got "readers"'

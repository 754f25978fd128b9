from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from common.metrics.intervals import GeneratorDelays
from common.plan.schema import Driver, Plan, Pools
from common.units import NS_PER_S
from coordinator.analysis.generator import all_report_cpu, busiest_agent, generator_delay, generator_limits
from coordinator.analysis.ledger import audit
from coordinator.analysis.leg_results import stage_results
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.totals.tallies import BusyTime
from coordinator.journal.records import AnyRecord, FrameAccepted
from tests.support.records import accepted, clean_run, command, histogram, interval, opened, plan, staged_plan, watched
from tests.support.stages import stage

MS = 1_000_000
BUSY = {"a1": 0.97, "a2": 0.2}
PRESSED = {"a1": 0.8, "a2": 0.2}
IDLE = {"a1": 0.5, "a2": 0.2}
LATE = [2 * MS] * 50
IN_TIME = [10_000] * 990
ADVICE = "Use more worker processes (each needs its own pool), fewer connections, or another driver."
LIMIT = f"the generator, not the server, was the limit. {ADVICE}"


def findings(records: list[AnyRecord]) -> list[str]:
    run = fold(records)
    return list(generator_limits(run, stage_results(run, audit(run))))


def run_of(core: dict[str, float], the_plan: Plan | None = None, **busy: object) -> list[AnyRecord]:
    return watched(clean_run(the_plan), core, **busy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("core", "loop", "turns_ns", "late_ns", "found"),
    [
        (IDLE, 0.5, [100], IN_TIME, None),
        (BUSY, 0.0, [], [], "The busiest worker process (a1) used 97% of a core: "),
        (
            BUSY,
            0.99,
            [],
            LATE,
            "The busiest worker process (a1) used 97% of a core, and 300 of 300 operations were sent more than 1 ms "
            "late: ",
        ),
        (IDLE, 0.93, [], [], "The busiest event loop (a1) was busy for 93% of the time: "),
        (PRESSED, 0.0, [], IN_TIME, None),
        (
            PRESSED,
            0.0,
            [],
            [*IN_TIME, *LATE],
            "The busiest worker process (a1) used 80% of a core, and 300 of 6,240 operations were sent more than 1 ms "
            "late: ",
        ),
        (PRESSED, 0.0, [], [*IN_TIME, *LATE[:5]], None),
        (
            IDLE,
            0.5,
            [3 * MS] * 5,
            LATE,
            "Event loops were busy for 3.0 ms without a pause (p99), and 300 of 300 operations were sent more than "
            "1 ms late: ",
        ),
        (IDLE, 0.5, [3 * MS] * 5, IN_TIME, None),
        (IDLE, 0.5, [100], LATE, None),  # a server that is slow to answer makes sends late, too
    ],
)
def test_the_generator_was_the_limit_if_it_was_busy_or_late_by_itself(
    core: dict[str, float], loop: float, turns_ns: Sequence[int], late_ns: Sequence[int], found: str | None
) -> None:
    reasons = findings(run_of(core, loop=loop, turns_ns=turns_ns, late_ns=late_ns))
    assert reasons == ([] if found is None else [found + LIMIT])


@pytest.mark.parametrize(("share", "is_limit"), [(0.899, False), (0.9, True)])
def test_a_process_is_busy_from_nine_tenths_of_a_core_on(share: float, is_limit: bool) -> None:
    assert bool(findings(run_of({"a1": share, "a2": 0.1}))) is is_limit


def test_no_other_driver_is_advised_to_a_run_with_the_wire_driver() -> None:
    the_plan = msgspec.structs.replace(plan(), pools=(Pools(driver=Driver.WIRE),))
    [reasons] = findings(run_of(BUSY, the_plan))
    assert reasons.endswith("was the limit. Use more worker processes (each needs its own pool), fewer connections.")


def test_one_busy_agent_is_found_among_idle_agents_and_one_busy_second_is_no_finding() -> None:
    assert findings(run_of({"a1": 0.1, "a2": 0.95}))[0].startswith("The busiest worker process (a2) used 95%")
    calm = watched(clean_run(seconds=9), {"a1": 0.5, "a2": 0.5})
    frames = [number for number, record in enumerate(calm) if isinstance(record, FrameAccepted)]
    calm[frames[0]] = watched([calm[frames[0]]], {"a1": 1.0})[0]
    assert findings(calm) == []


def test_a_load_of_less_than_half_a_second_is_not_judged() -> None:
    [record] = watched([accepted("a1", 0, interval(0, {"GET": command(histogram(1))}))], {"a1": 1.0})
    assert isinstance(record, FrameAccepted)
    [one] = record.frame.intervals
    short = msgspec.structs.replace(
        one.generator, watched_ns=NS_PER_S // 2 - 1, busiest_cpu_ns=NS_PER_S // 2 - 1, core_share_max=0.0
    )
    assert findings([opened(agents=["a1"]), record]) != []
    assert findings([opened(agents=["a1"]), accepted("a1", 0, msgspec.structs.replace(one, generator=short))]) == []


STAGED = staged_plan(stage(1, 100), stage(1, 300), warmup_s=1)


def staged(*core: float) -> list[AnyRecord]:
    parts = [interval(number, {"GET": command(histogram(1000))}, stage=number) for number in range(len(core))]
    frames = [accepted("a1", number, part) for number, part in enumerate(parts)]
    seen = [watched([frame], {"a1": share})[0] for frame, share in zip(frames, core, strict=True)]
    return [opened(STAGED, ["a1"]), *seen]


def test_each_stage_is_judged_by_itself_and_the_warmup_is_not_judged() -> None:
    assert findings(staged(1.0, 0.5, 0.5)) == []
    [reasons] = findings(staged(0.1, 0.5, 0.98))
    assert reasons.startswith("The busiest worker process (a1) used 98% of a core in stage 2: ")


def test_agents_without_figures_of_their_own_are_judged_by_their_heartbeats() -> None:
    def with_heartbeats(records: list[AnyRecord], agent_id: str) -> list[AnyRecord]:
        return [
            msgspec.structs.replace(record, cpu_percent_busiest=97.4)
            if getattr(record, "agent_id", "") == agent_id and hasattr(record, "cpu_percent_busiest")
            else record
            for record in records
        ]

    [reasons] = findings(with_heartbeats(list(clean_run()), "a2"))
    assert reasons.startswith(
        "The busiest worker process (a2) used 97% of a core in one second: the generator, not the"
    )
    [reasons] = findings(with_heartbeats(run_of({"a1": 0.5}), "a2"))
    assert reasons.startswith("The busiest worker process (a2) used 97% of a core in one second: ")
    # An agent's own figures take precedence over its heartbeats.
    assert findings(with_heartbeats(run_of(IDLE), "a2")) == []


def test_cpu_figures_are_complete_only_if_every_agent_with_operations_reports_them() -> None:
    assert all_report_cpu(fold(run_of(IDLE)))
    assert not all_report_cpu(fold(run_of({"a1": 0.5})))
    assert not all_report_cpu(fold(clean_run()))
    assert not all_report_cpu(Aggregate())
    idle_one = [opened(), *watched([accepted("a1", 0, interval(0, {"GET": command(histogram(1))}))], {"a1": 0.5})]
    assert all_report_cpu(fold(idle_one))


def test_the_busiest_agent_used_the_largest_share_of_a_core_over_all_stages() -> None:
    stages = fold(run_of({"a1": 0.3, "a2": 0.6})).measured_stages
    assert busiest_agent(stages) == BusyTime(watched_ns=3 * NS_PER_S, cpu_ns=18 * NS_PER_S // 10)
    assert busiest_agent([]) == BusyTime()


# Hold-ups

FREE = GeneratorDelays()
THROTTLED = GeneratorDelays(
    allowed_ns=NS_PER_S // 10, quota_used_ns=90 * MS, quota_periods=10, throttled_periods=9, throttled_ns=800 * MS
)
STALLED = GeneratorDelays(stalled_ns=1000 * MS, stall_max_ns=3000 * MS, stall_at_ns=2100 * MS)
REMEDY = (
    "Raise the quota (docker run --cpus, limits.cpu in Kubernetes, CPUQuota= of systemd), lower the load, or use more "
    "machines."
)


def held_up(
    a1: GeneratorDelays, a2: GeneratorDelays = FREE, core: dict[str, float] = IDLE, **busy: object
) -> list[AnyRecord]:
    return run_of(core, delays={"a1": a1, "a2": a2}, **busy)


@pytest.mark.parametrize(("throttled", "is_limit"), [(0, False), (9, False), (10, True), (930, True)])
def test_an_agent_that_its_quota_throttles_in_1_percent_of_the_periods_is_the_limit(
    throttled: int, is_limit: bool
) -> None:
    found = findings(
        held_up(GeneratorDelays(allowed_ns=15 * NS_PER_S // 10, quota_periods=1000, throttled_periods=throttled))
    )
    reasons = (
        f"Agent a1 was throttled by its CPU quota of 1.5 cores in {3 * throttled:,} of 3,000 periods: the generator"
    )
    assert found == ([f"{reasons}, not the server, was the limit. {REMEDY}"] if is_limit else [])


def test_operations_delayed_by_a_quota_do_not_advise_more_processes() -> None:
    busy_loops = held_up(FREE, THROTTLED, {"a1": 0.97, "a2": 0.1}, loop=0.95, turns_ns=[3 * MS] * 5, late_ns=LATE)
    assert findings(busy_loops) == [
        "Agent a2 was throttled by its CPU quota of 0.1 cores in 27 of 30 periods, and 300 of 300 operations were sent "
        f"more than 1 ms late: the generator, not the server, was the limit. {REMEDY}"
    ]


def test_a_process_that_did_not_run_for_a_second_delayed_the_load() -> None:
    assert findings(held_up(FREE, STALLED, turns_ns=[3 * MS] * 5, late_ns=LATE)) == [
        "A worker process of agent a2 did not run for 3.0 s, from 2.1 s on, and 300 of 300 operations were sent more "
        "than 1 ms late: it was stopped, or its machine was suspended, overloaded or out of memory. The generator, not "
        "the server, delayed the operations that were due then."
    ]


@pytest.mark.parametrize(
    ("longest_ns", "stalled_ns", "reasons"),
    [(1000 * MS, 1, True), (999 * MS, 9 * MS, False), (300 * MS, 10 * MS, True), (0, 0, False)],
)
def test_short_stalls_count_from_1_percent_of_the_time_on(longest_ns: int, stalled_ns: int, reasons: bool) -> None:
    assert bool(findings(held_up(GeneratorDelays(stalled_ns=stalled_ns, stall_max_ns=longest_ns)))) is reasons


def test_short_stalls_of_a_throttled_agent_are_caused_by_its_quota() -> None:
    stalls = {"stalled_ns": 400 * MS, "stall_max_ns": 400 * MS}
    [found] = findings(held_up(msgspec.structs.replace(THROTTLED, **stalls)))
    assert found.startswith("Agent a1 was throttled")
    assert len(findings(held_up(msgspec.structs.replace(THROTTLED, **stalls | {"stall_max_ns": 1000 * MS})))) == 2


def test_a_process_that_was_busy_and_stalled_has_two_findings() -> None:
    stalled, busy = findings(held_up(STALLED, core=BUSY))
    assert stalled.startswith("A worker process of agent a1 did not run for 3.0 s")
    assert busy.startswith("The busiest worker process (a1) used 97% of a core: ")


def test_a_hold_up_of_the_warmup_is_no_finding() -> None:
    records = staged(0.1, 0.1, 0.1)
    warmup = next(record for record in records if isinstance(record, FrameAccepted))
    records[records.index(warmup)] = watched([warmup], {"a1": 0.1}, delays={"a1": STALLED})[0]
    assert findings(records) == []
    records[-1] = watched([records[-1]], {"a1": 0.1}, delays={"a1": STALLED})[0]
    [found] = findings(records)
    assert "from 2.1 s on in stage 2: it was stopped" in found


def test_a_hold_up_is_the_cause_of_unsent_operations() -> None:
    def cause(a1: GeneratorDelays) -> str | None:
        run = fold(held_up(a1))
        return generator_delay(stage_results(run, audit(run)))

    assert cause(FREE) is None
    assert cause(THROTTLED) == "the CPU quota of agent a1 throttled it"
    assert cause(STALLED) == "a worker process of agent a1 did not run for 3.0 s"

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.worker.pacing.pacer import quota_of
from agent.worker.pacing.staged_load import schedules_of
from common.plan.schema import Arrivals, Load, Plan
from common.plan.timeline import timeline
from common.protocol.messages import PoolRemainder
from common.units import NS_PER_S, Count, PerSecond, Seconds
from coordinator.analysis.backlog import Backlog
from coordinator.analysis.ledger import audit
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.unassigned_shares import remaining_requests, unassigned_sentence, unassigned_shares
from coordinator.analysis.verdict import Level, judge
from coordinator.journal.records import (
    AgentEnded,
    AnyRecord,
    Outcome,
    RunStarted,
    ShareTakenOver,
    StopDecided,
    StopKind,
)
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from tests.support.records import accepted, closed, command, histogram, interval, noted, opened, plan
from tests.support.stages import loads

T0_NS = 5 * NS_PER_S
OPEN = Load(duration_s=Seconds(10), rate_per_s=PerSecond(100.0))


def done(count: int) -> dict[str, object]:
    return {"GET": command(histogram(*[1000] * count))}


def planned(load: Load) -> Plan:
    return msgspec.structs.replace(plan(), load=load)


def taken_over(
    replaces: str, by: str, from_s: float, run: Sequence[AnyRecord], remaining: tuple[PoolRemainder, ...] | None = None
) -> ShareTakenOver:
    facts = fold(run).agents[replaces].facts
    return ShareTakenOver(
        agent=msgspec.structs.replace(facts, agent_id=by, incarnation=by * 4),
        replaces=replaces,
        from_ns=round(from_s * NS_PER_S),
        at_ns=T0_NS + round(from_s * NS_PER_S),
        remaining=remaining,
    )


def load_of(load: Load, *, lost_after_s: int = 3, per_second: int = 50) -> list[AnyRecord]:
    """The records of two agents; a2 is lost after `lost_after_s`."""
    records: list[AnyRecord] = [opened(planned(load)), RunStarted(t0_ns=T0_NS)]
    records += [accepted("a1", second, interval(second, done(per_second))) for second in range(10)]  # type: ignore[arg-type]
    records += [accepted("a2", second, interval(second, done(per_second))) for second in range(lost_after_s)]  # type: ignore[arg-type]
    return [*records, noted("a2", 0, lost=True)]


def in_time(agent_id: str, counted: int) -> AgentEnded:
    """The note of an agent that ended as planned."""
    note = noted(agent_id, counted, ran_ns=10 * NS_PER_S)
    assert note.final is not None
    return msgspec.structs.replace(note, final=msgspec.structs.replace(note.final, reason=""))


def ended(records: list[AnyRecord], *more: AnyRecord) -> Aggregate:
    return fold([*records, *more, in_time("a1", 500), closed(Outcome.DEGRADED, duration_s=10.0)])


def test_the_share_of_a_lost_agent_is_missing_until_the_end_of_the_load() -> None:
    run = ended(load_of(OPEN))
    [share] = unassigned_shares(run)
    assert (share.agent_id, share.from_s, share.until_s, share.successor) == ("a2", 3.0, 10.0, "")
    assert share.operations == {0: 350}
    assert audit(run).uncarried == build_summary(run).load.uncarried == 350
    assert unassigned_sentence(run) == (
        "350 operations were never sent, or never reported: no agent had the share of a2 from 3.0 s "
        "to 10.0 s (the end of the load)."
    )


def all_lost(*more: AnyRecord) -> Aggregate:
    """A run that loses both agents after three of ten seconds."""
    records: list[AnyRecord] = [opened(planned(OPEN)), RunStarted(t0_ns=T0_NS)]
    for name in ("a1", "a2"):
        records += [accepted(name, second, interval(second, done(50))) for second in range(3)]  # type: ignore[arg-type]
        records.append(noted(name, 0, lost=True))
    return fold([*records, *more, closed(Outcome.DEGRADED, duration_s=4.0)])


def test_if_all_agents_are_lost_their_shares_are_missing_until_the_planned_end() -> None:
    run = all_lost()
    assert [(share.from_s, share.until_s, share.operations) for share in unassigned_shares(run)] == 2 * [
        (3.0, 10.0, {0: 350})
    ]
    assert run.totals.operations + audit(run).uncarried == 1000
    assert build_summary(run).load.uncarried == 700
    assert unassigned_sentence(run) == (
        "700 operations were never sent, or never reported: no agent had the share of a1 from 3.0 s "
        "to 10.0 s (the planned end of the load); no agent had the share of a2 from 3.0 s to 10.0 s (the planned "
        "end of the load)."
    )


def test_no_share_is_missing_after_the_load_was_stopped() -> None:
    stop = StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=T0_NS + 6 * NS_PER_S)
    run = all_lost(stop)
    assert {share.until_s for share in unassigned_shares(run)} == {6.0}
    assert audit(run).uncarried == 300


def test_if_all_agents_end_early_their_shares_are_missing_until_the_planned_end() -> None:
    records: list[AnyRecord] = [opened(planned(OPEN), agents=("a1",)), RunStarted(t0_ns=T0_NS)]
    records += [accepted("a1", second, interval(second, done(100))) for second in range(3)]  # type: ignore[arg-type]
    note = noted("a1", 300, ran_ns=3 * NS_PER_S)
    run = fold([*records, note, closed(Outcome.DEGRADED, duration_s=3.0)])
    assert audit(run).uncarried == 700


def test_during_a_run_only_operations_due_so_far_are_missing() -> None:
    records = load_of(OPEN)[:-1]
    run = fold([*records[:6], noted("a2", 0, lost=True)])
    assert [share.until_s for share in unassigned_shares(run)] == [4.0]


def test_a_share_is_missing_until_it_is_taken_over_and_counts_once() -> None:
    records = load_of(OPEN)
    records.append(taken_over("a2", "a3", 7.5, records))
    for second in range(7, 10):
        records.append(accepted("a3", second - 7, interval(second, done(25 if second == 7 else 50))))  # type: ignore[arg-type]
    run = ended(records, in_time("a3", 125))
    [share] = unassigned_shares(run)
    assert (share.agent_id, share.from_s, share.until_s, share.successor) == ("a2", 3.0, 7.5, "a3")
    assert share.operations == {0: 225}
    assert run.totals.operations + share.operations.total() == 1000
    assert run.complete_through == 9
    rows = {row.id: (row.began_at_s, row.replaced_by, row.replaced_at_s) for row in build_summary(run).agents}
    assert rows == {"a1": (0.0, "", None), "a2": (0.0, "a3", 7.5), "a3": (7.5, "", None)}


def test_operations_due_before_a_takeover_are_no_backlog_after_it() -> None:
    records = load_of(OPEN)
    records.append(taken_over("a2", "a3", 7.5, records))
    for second in range(7, 10):
        records.append(accepted("a3", second - 7, interval(second, done(25 if second == 7 else 50))))  # type: ignore[arg-type]
    backlog = Backlog(fold(records))
    found = [backlog.at(second, (second + 1) * NS_PER_S) for second in range(10)]
    assert found == [0, 0, 0, 50, 100, 150, 200, 0, 0, 0]


def test_the_report_names_the_replacement_and_the_missing_operations() -> None:
    records = load_of(OPEN)
    records.append(taken_over("a2", "a3", 7.5, records))
    run = ended(records, in_time("a3", 0))
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, build_summary(run))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a2 replaced by a3 at 7.5 s" in text
    assert "0 never sent, 225 more due in a share without an agent" in text
    assert "unaccounted; 225 due in a share without an agent" in text


def test_late_frames_of_a_replaced_agent_count_and_are_no_longer_missing() -> None:
    records = load_of(OPEN)
    records.append(taken_over("a2", "a3", 7.5, records))
    records.append(accepted("a2", 3, interval(3, done(40))))  # type: ignore[arg-type]
    [share, _] = unassigned_shares(ended(records, noted("a3", 0, lost=True)))
    assert share.operations == {0: 185}


def test_the_verdict_names_the_cause_of_a_missed_rate() -> None:
    run = ended(load_of(OPEN))
    verdict = judge(run, audit(run))
    assert verdict.level is Level.SUSPECT
    assert unassigned_sentence(run) in verdict.reasons
    [missed] = [reason for reason in verdict.reasons if reason.startswith("The target rate")]
    assert missed.endswith("): no agent had the share of a2 from 3.0 s to 10.0 s (the end of the load).")


def test_a_rate_missed_by_late_requests_has_the_same_cause() -> None:
    load = Load(requests=Count(1000), rate_per_s=PerSecond(100.0))
    records = load_of(load)
    records.append(taken_over("a2", "a3", 7.0, records, (PoolRemainder(1, 350),)))
    records += [accepted("a3", second - 7, interval(second, done(50))) for second in range(7, 14)]  # type: ignore[arg-type]
    run = fold([*records, in_time("a1", 500), in_time("a3", 350), closed(Outcome.DEGRADED, duration_s=14.0)])
    assert unassigned_sentence(run) == ""
    [missed] = [reason for reason in judge(run, audit(run)).reasons if reason.startswith("The target rate")]
    assert missed.endswith(": no agent had the share of a2 from 3.0 s to 7.0 s (when a3 took it over).")


def test_requests_of_the_last_agent_are_missing_from_its_end_on() -> None:
    records = load_of(Load(requests=Count(1000), rate_per_s=PerSecond(100.0)), lost_after_s=9)[:-1]
    early = noted("a2", 450, ran_ns=10 * NS_PER_S)
    run = fold([*records, in_time("a1", 500), early, closed(Outcome.DEGRADED, duration_s=10.0)])
    assert unassigned_sentence(run).endswith("never reported: no agent had the share of a2 from 10.0 s on.")


def test_nothing_is_missing_if_every_agent_ended_as_planned() -> None:
    records: list[AnyRecord] = load_of(OPEN, lost_after_s=10)[:-1]
    run = ended(records, in_time("a2", 500))
    assert unassigned_shares(run) == ()
    assert unassigned_sentence(run) == ""
    assert judge(run, audit(run)).level is Level.SUSPECT  # the server was not read, and nothing else
    assert len(judge(run, audit(run)).reasons) == 1


def test_the_share_of_an_agent_that_ends_early_is_missing_from_its_end_on() -> None:
    records: list[AnyRecord] = load_of(OPEN)[:-1]
    [share] = unassigned_shares(ended(records, noted("a2", 150, ran_ns=round(3.2 * NS_PER_S))))
    assert (share.from_s, share.until_s) == (3.2, 10.0)
    assert share.operations == {0: 350}


def test_nothing_is_due_after_a_stop() -> None:
    stop = StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=T0_NS + 5 * NS_PER_S)
    [share] = unassigned_shares(ended(load_of(OPEN), stop))
    assert (share.until_s, share.operations) == (5.0, {0: 100})


def test_a_closed_loop_misses_no_operations_but_names_the_replacement() -> None:
    records = load_of(Load(duration_s=Seconds(10)))
    assert unassigned_shares(ended(records)) == ()
    [share] = unassigned_shares(ended(records, taken_over("a2", "a3", 7.0, records)))
    assert (share.successor, share.operations) == ("a3", Counter())


def test_the_mean_of_poisson_arrivals_is_due() -> None:
    [share] = unassigned_shares(ended(load_of(msgspec.structs.replace(OPEN, arrivals=Arrivals.POISSON))))
    assert share.operations == {0: 350}


def test_the_requests_left_at_the_end_are_missing() -> None:
    load = Load(requests=Count(1001))
    records = load_of(load)
    [share] = unassigned_shares(ended(records))
    assert share.operations == {0: 500 - 150}
    left = remaining_requests(fold(records), "a2")
    assert left == (PoolRemainder(1, 350),)
    records.append(taken_over("a2", "a3", 7.0, records, left))
    assert remaining_requests(fold(records), "a3") == left
    records.append(accepted("a3", 0, interval(7, done(350))))  # type: ignore[arg-type]
    run = ended(records, in_time("a3", 350))
    assert sum(each.operations.total() for each in unassigned_shares(run)) == 0
    assert remaining_requests(run, "a3") == (PoolRemainder(1, 0),)


def test_a_load_by_duration_leaves_no_requests() -> None:
    assert remaining_requests(fold(load_of(OPEN)), "a2") is None


@given(st.integers(1, 10_000), st.integers(1, 9), st.integers(0, 200))
def test_the_requests_left_in_a_share_are_its_quota_minus_the_reported_operations(
    requests: int, pools: int, reported: int
) -> None:
    records: list[AnyRecord] = [opened(planned(Load(requests=Count(requests)))), RunStarted(t0_ns=T0_NS)]
    first = records[0]
    facts = first.agents[0]  # type: ignore[union-attr]
    dealt = tuple(msgspec.structs.replace(facts.pools[0], number=n, first_thread=n) for n in range(pools))
    records[0] = msgspec.structs.replace(
        first, agents=(msgspec.structs.replace(facts, pools=dealt),), threads_total=pools + 1
    )
    records.append(accepted("a1", 0, interval(0, done(reported))))  # type: ignore[arg-type]
    left = remaining_requests(fold(records), "a1")
    assert left is not None
    quota = sum(quota_of(requests, thread, pools + 1) or 0 for thread in range(pools))
    assert sum(pool.operations for pool in left) == max(0, quota - reported)
    assert [pool.number for pool in left] == list(range(pools))


@given(loads(), st.integers(1, 5), st.floats(0, 1))
def test_the_missing_operations_are_those_of_the_schedules_of_the_threads(
    load: Load, threads: int, share: float
) -> None:
    load = msgspec.structs.replace(load, arrivals=Arrivals.CONSTANT)
    line = timeline(load)
    assert line.end_ns is not None
    names = [f"a{thread}" for thread in range(threads)]
    from_ns = round(line.end_ns * share)
    records: list[AnyRecord] = [opened(planned(load), names), RunStarted(t0_ns=T0_NS), noted("a0", 0, lost=True)]
    records += [taken_over("a0", "b", from_ns / NS_PER_S, records), noted("b", 0, lost=True)]
    records.append(closed(Outcome.DEGRADED, duration_s=line.end_ns / NS_PER_S))
    found = {each.agent_id: each.operations for each in unassigned_shares(fold(records))}
    for number, schedule in enumerate(schedules_of(load, line, 1, 0, threads)):
        whole = list(schedule or ())
        rest = list(schedules_of(load, line, 1, 0, threads, from_ns)[number] or ())
        assert found.get("b", Counter())[number] == len(rest)
        assert found["a0"][number] + len(rest) == len(whole)


@pytest.mark.parametrize("load", [OPEN, Load(duration_s=Seconds(10))])
def test_a_run_with_all_agents_misses_nothing(load: Load) -> None:
    run = fold(load_of(load)[:-1])
    assert unassigned_shares(run) == ()

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.metrics.histogram import Histogram
from common.metrics.intervals import IntervalMetrics
from common.metrics.splitting import joined_seconds
from coordinator.analysis.totals import aggregate as aggregates
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.records import AnyRecord, CleanedUp, RunStarted, StopDecided, StopKind, WorkerDied
from coordinator.report.summary import build_summary
from tests.support.records import accepted, clean_run, closed, command, histogram, interval, noted, opened, staged_plan
from tests.support.stages import stage

STAGED = staged_plan(stage(2, 10), stage(2), warmup_s=2)


@st.composite
def intervals(draw: st.DrawFn) -> IntervalMetrics:
    first = draw(st.integers(0, 6))
    latencies = draw(st.lists(st.integers(0, 10**7), max_size=6))
    errors = draw(st.integers(0, 5))
    get = command(histogram(*latencies), errors={"READONLY": errors} if errors else {})
    return interval(
        first,
        {"GET": get},
        last=first + draw(st.integers(0, 3)),
        open_peak=draw(st.integers(0, 9)),
        stage=draw(st.integers(0, 2)),
        unsent=draw(st.integers(0, 2)),
    )


frames = st.lists(st.tuples(st.sampled_from(["a1", "a2"]), st.lists(intervals(), max_size=3)), max_size=25)


def accept_all(parts: list[tuple[str, list[IntervalMetrics]]]) -> list[AnyRecord]:
    return [opened(STAGED), *(accepted(agent, seq, *some) for seq, (agent, some) in enumerate(parts))]


def one_get(*latencies: int) -> dict[str, object]:
    return {"GET": command(histogram(*latencies))}


@given(frames)
def test_seconds_and_totals_count_every_operation_once(parts: list[tuple[str, list[IntervalMetrics]]]) -> None:
    aggregate = fold(accept_all(parts))
    everything = sum(one.operations for _, some in parts for one in some)
    assert aggregate.totals.operations == everything
    assert sum(second.operations for second in aggregate.seconds.values()) == everything
    assert sum(second.ok + second.errors for second in aggregate.seconds.values()) == everything
    assert sum(agent.counted for agent in aggregate.agents.values()) == everything
    gets = [one.pools["main"].commands["GET"] for _, some in parts for one in some]
    pool = aggregate.totals.pools.get("main")
    assert (pool.commands["GET"].service if pool else Histogram()) == Histogram.merge(get.service for get in gets)


@given(st.data())
def test_a_repeated_record_counts_once(data: st.DataObject) -> None:
    stop = StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=7)
    lost = WorkerDied(agent_id="a1", process=0, exit_code=-9)
    cleaned = CleanedUp(deleted=5, left=0, took_ns=1)
    *records, end = clean_run(per_second=20)
    records = [*records, stop, lost, cleaned, end]
    position = data.draw(st.integers(0, len(records) - 1))
    later = data.draw(st.integers(position + 1, len(records)))
    twice = [*records[:later], records[position], *records[later:]]
    assert build_summary(fold(twice)).to_json() == build_summary(fold(records)).to_json()
    assert fold(twice).stops == [stop]


def test_late_results_reopen_a_run_until_its_end_is_recorded_again() -> None:
    lost = [opened(agents=["a1"]), accepted("a1", 0, interval(0, one_get(1))), noted("a1", 0, lost=True), closed()]
    late = [*lost, accepted("a1", 1, interval(1, one_get(2)))]
    assert fold([*late]).closed is None
    again = fold([*late, noted("a1", 2), closed()])
    assert again.is_complete
    assert again.totals.operations == 2
    assert not fold(lost).is_complete


@given(frames)
def test_reading_an_aggregate_does_not_change_it(parts: list[tuple[str, list[IntervalMetrics]]]) -> None:
    records = accept_all(parts)
    watched = Aggregate()
    for record in records:
        watched.apply(record)
        _ = watched.totals, [second.service.merged for _, second in watched.by_second()]
    unwatched = fold(records)
    assert watched.totals == unwatched.totals
    assert [s.service.merged for _, s in watched.by_second()] == [s.service.merged for _, s in unwatched.by_second()]


@given(frames)
def test_stages_add_up_to_the_totals_and_only_the_totals_include_the_warmup(
    parts: list[tuple[str, list[IntervalMetrics]]],
) -> None:
    everything = [one for _, some in parts for one in some]
    aggregate = fold(accept_all(parts))
    for number, found in enumerate(aggregate.stages):
        mine = [one for one in everything if one.stage == number]
        assert found.operations == found.totals.operations == sum(one.operations for one in mine)
        assert found.unsent == found.totals.unsent == sum(one.unsent for one in mine)
        assert found.ok + found.errors == found.operations
    warmup, *measured = aggregate.stages
    assert aggregate.totals.operations == sum(one.operations for one in everything)
    assert aggregate.measured.operations == sum(found.operations for found in measured)
    assert aggregate.totals.unsent == aggregate.measured.unsent + warmup.unsent
    assert aggregate.totals.issued == sum(agent.issued for agent in aggregate.agents.values())


def test_a_second_is_complete_when_every_agent_has_reported_it() -> None:
    aggregate = fold([opened(), accepted("a1", 0, interval(0, {})), accepted("a1", 1, interval(1, {}))])
    assert aggregate.complete_through == -1
    aggregate.apply(accepted("a2", 0, interval(0, {})))
    assert aggregate.complete_through == 0


def test_a_second_is_complete_without_a_lost_agent() -> None:
    aggregate = fold([opened(), accepted("a1", 0, interval(0, {}), interval(1, {}))])
    assert aggregate.complete_through == -1
    aggregate.apply(noted("a2", 0, lost=True))
    assert aggregate.complete_through == 1


def test_a_late_operation_is_added_to_its_own_second() -> None:
    aggregate = fold([opened(agents=["a1"]), accepted("a1", 0, interval(0, one_get(10)), interval(1, one_get(20)))])
    assert aggregate.complete_through == 1
    aggregate.apply(accepted("a1", 1, interval(0, one_get(30))))
    assert aggregate.seconds[0].service.merged == histogram(10, 30)
    assert aggregate.seconds[0].ok == 2
    assert aggregate.complete_through == 1


@given(frames, st.integers(1, 20))
def test_the_peak_of_connections_is_that_of_the_fullest_second(
    parts: list[tuple[str, list[IntervalMetrics]]], compact_after_s: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregates, "COMPACT_AFTER_S", compact_after_s)
        run = Aggregate()
        for record in accept_all(parts):
            run.apply(record)
            assert run.peak_open == max((second.connections_open for second in run.seconds.values()), default=0)
            for second in run.seconds.values():
                if second.past_gauges is None:
                    assert second.connections_open == sum(second.open_peaks.values())


def test_connections_add_up_over_agents_and_not_over_seconds() -> None:
    aggregate = fold(
        [
            opened(),
            accepted("a1", 0, interval(0, {}, open_peak=5, wanted=50), interval(1, {}, open_peak=1, wanted=9)),
            accepted("a2", 0, interval(0, {}, open_peak=2, wanted=20), interval(1, {}, open_peak=7, wanted=7)),
            accepted("a1", 1, interval(1, {}, open_peak=3, wanted=9)),  # late results of a second add no connections
        ]
    )
    assert [second.connections_open for _, second in aggregate.by_second()] == [7, 10]
    assert aggregate.peak_open == 10
    assert [second.connections_wanted for _, second in aggregate.by_second()] == [70, 16]
    assert aggregate.peak_wanted == 70


def test_wanted_connections_are_unknown_if_one_agent_does_not_report_them() -> None:
    reported, missing = interval(0, {}, open_peak=5, wanted=50), interval(0, {}, open_peak=2, wanted=0)
    aggregate = fold([opened(), accepted("a1", 0, reported), accepted("a2", 0, missing)])
    assert aggregate.seconds[0].connections_wanted is None
    assert aggregate.peak_wanted is None


def test_each_agent_has_the_causes_of_its_unopened_connections() -> None:
    some = interval(0, {}, never_opened={"ulimit -n": 3})
    more = interval(1, {}, never_opened={"ulimit -n": 1, "maxclients": 2})
    aggregate = fold([opened(), accepted("a1", 0, some, more), accepted("a2", 0, interval(0, {}))])
    assert aggregate.agents["a1"].never_opened == {"ulimit -n": 4, "maxclients": 2}
    assert aggregate.agents["a2"].never_opened == {}


def test_an_interval_of_several_seconds_is_spread_over_them() -> None:
    aggregate = fold([opened(agents=["a1"]), accepted("a1", 0, interval(2, one_get(*range(10)), last=5, open_peak=4))])
    assert [second.ok for _, second in aggregate.by_second()] == [0, 0, 2, 3, 2, 3]
    assert {second.service.merged for number, second in aggregate.by_second() if number >= 2} == {histogram(*range(10))}
    assert aggregate.totals.pools["main"].commands["GET"].service == histogram(*range(10))
    assert aggregate.peak_open == 4


def test_a_frame_of_an_unknown_agent_is_refused() -> None:
    with pytest.raises(ProtocolError, match="agent 'a9', but the agents of this run are: a1, a2"):
        fold([opened(), accepted("a9", 0, interval(0, {}))])


def test_the_next_frame_number_of_each_agent_is_known() -> None:
    aggregate = fold([opened(), accepted("a1", 0), accepted("a1", 1), accepted("a2", 0)])
    assert {name: agent.next_seq for name, agent in aggregate.agents.items()} == {"a1": 2, "a2": 1}


def test_the_duration_of_an_unfinished_run_is_that_of_its_seconds() -> None:
    records = [opened(), RunStarted(t0_ns=1)]
    assert fold(records).duration_s == 0.0
    records.append(accepted("a1", 0, interval(4, {})))
    assert fold(records).duration_s == 5.0
    assert fold([*records, closed(duration_s=4.2)]).duration_s == 4.2


def test_a_journal_must_start_with_its_run_and_contain_only_that_run() -> None:
    records = list(clean_run())
    for record in records[1:]:
        with pytest.raises(ProtocolError, match=f"the first record is {type(record).__name__}, expected RunOpened"):
            fold([record])
    run = fold(records)
    run.apply(records[0])  # the same once more
    with pytest.raises(ProtocolError, match="a second run begins, run-2; expected one run, run-1"):
        run.apply(msgspec.structs.replace(opened(), run_id="run-2"))
    assert run.totals.operations == fold(records).totals.operations == 6000


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 10**7), max_size=6),
            st.dictionaries(st.sampled_from(["READONLY", "MOVED"]), st.integers(1, 5)),
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_seconds_in_one_frame_count_like_seconds_in_frames_of_their_own(
    drawn: list[tuple[list[int], dict[str, int], int]],
) -> None:
    apart = [
        interval(number, {"GET": command(histogram(*latencies), errors=errors)}, open_peak=peak)
        for number, (latencies, errors, peak) in enumerate(drawn)
    ]
    one_by_one = fold([opened(agents=["a1"]), *(accepted("a1", seq, part) for seq, part in enumerate(apart))])
    at_once = fold([opened(agents=["a1"]), accepted("a1", 0, *joined_seconds(apart))])
    assert at_once.totals == one_by_one.totals
    assert at_once.complete_through == one_by_one.complete_through
    for (_, left), (_, right) in zip(at_once.by_second(), one_by_one.by_second(), strict=True):
        assert (left.ok, left.errors, left.begun) == (right.ok, right.errors, right.begun)
        assert left.refusals == right.refusals
        assert left.service.merged == right.service.merged
        assert left.connections_open == right.connections_open
        assert left.busy == right.busy

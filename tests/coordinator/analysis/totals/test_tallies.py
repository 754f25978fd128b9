from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics.intervals import IntervalMetrics
from coordinator.analysis.totals import aggregate as aggregates
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.records import AnyRecord
from tests.support.examples import examples
from tests.support.records import accepted, command, histogram, interval, noted, opened, watched

AGENTS = ("a1", "a2", "a3")
SECONDS = 16

peaks = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=SECONDS, max_size=SECONDS)


def one_second(number: int, open_peak: int, wanted: int, last: int | None = None) -> IntervalMetrics:
    return interval(number, {"GET": command(histogram(number + 1))}, open_peak=open_peak, wanted=wanted, last=last)


def a_run(of_agents: list[list[tuple[int, int]]], cut_off: int) -> list[AnyRecord]:
    """A run of three agents. The last one is lost at `cut_off`, and reports the rest at the end as one interval."""
    records: list[AnyRecord] = [opened(agents=AGENTS)]
    for number in range(SECONDS):
        for agent_id, its_peaks in zip(AGENTS, of_agents, strict=True):
            if agent_id != "a3" or number < cut_off:
                records.append(accepted(agent_id, number, one_second(number, *its_peaks[number])))
        if number == cut_off:
            records.append(noted("a3", 0, lost=True))
        if number > 11:  # an old operation, in a frame with the current connections
            records.append(accepted("a1", number, one_second(number - 11, 0, 0), through=number))
    if cut_off < SECONDS:
        late = one_second(cut_off, *of_agents[2][0], last=SECONDS - 1)
        records.append(accepted("a3", cut_off, late))
    return list(watched(records, {"a1": 0.5, "a2": 0.7, "a3": 0.9}))


def gauges(run: Aggregate) -> list[tuple[object, ...]]:
    return [
        (
            *(second.agents, second.connections_open, second.connections_wanted, second.core_share, second.ok),
            *(second.service.merged, second.response.merged, second.loop_lag.merged),
        )
        for _, second in run.by_second()
    ]


@settings(max_examples=examples(20))
@given(st.lists(peaks, min_size=3, max_size=3), st.integers(1, SECONDS))
def test_a_compacted_second_has_the_same_figures(of_agents: list[list[tuple[int, int]]], cut_off: int) -> None:
    records = a_run(of_agents, cut_off)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregates, "COMPACT_AFTER_S", 10 * SECONDS)
        kept = fold(records)
    summed = fold(records)
    assert gauges(summed) == gauges(kept)


def test_an_old_second_keeps_no_figures_per_agent() -> None:
    run = fold(a_run([[(2, 2)] * SECONDS] * 3, SECONDS))
    sealed = [second for _, second in run.by_second() if second.past_gauges is not None]
    assert len(sealed) == SECONDS - aggregates.COMPACT_AFTER_S
    assert not any(second.open_peaks or second.wanted_peaks or second.busy for second in sealed)
    assert {second.agents for second in sealed} == {3}


events = st.lists(
    st.tuples(st.sampled_from(AGENTS), st.one_of(st.integers(0, 3), st.just("lost"), st.just("done"))), max_size=60
)


@settings(max_examples=examples(50))
@given(events)
def test_a_second_is_complete_when_the_last_participant_has_reported_it(
    happened: list[tuple[str, int | str]],
) -> None:
    """Compared with the plain rule, which checks every agent at every record."""
    run = fold([opened(agents=AGENTS)])
    through, running, complete = dict.fromkeys(AGENTS, -1), set(AGENTS), -1
    for number, (agent_id, what) in enumerate(happened):
        if run.agents[agent_id].finished:
            continue
        if isinstance(what, str):
            run.apply(noted(agent_id, 0, lost=what == "lost"))
            running.discard(agent_id)
        else:
            reached = through[agent_id] + what
            run.apply(accepted(agent_id, number, one_second(max(reached, 0), 1, 1), through=reached))
            through[agent_id] = reached
            running.add(agent_id)
        known = max(run.seconds, default=-1)
        complete = max(complete, min((through[each] for each in running), default=known))
        assert run.complete_through == complete

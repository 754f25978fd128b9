from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from common.plan.schema import Arrivals, Ramp
from common.protocol.messages import ScenarioFinal
from common.units import NS_PER_S, Seconds
from coordinator.analysis.ledger import audit
from coordinator.analysis.totals.aggregate import fold
from coordinator.analysis.verdict import RULES, Level, Verdict, judge
from coordinator.journal.records import (
    AgentEnded,
    AnyRecord,
    CountersRead,
    FrameAccepted,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    StopDecided,
    StopKind,
    WorkerDied,
)
from tests.support.records import (
    accepted,
    clean_run,
    closed,
    command,
    histogram,
    interval,
    noted,
    opened,
    plan,
    reading,
    staged_plan,
    watched,
)
from tests.support.scenarios import done, load, plan_of, scenario
from tests.support.scenarios import opened as of_scenarios
from tests.support.stages import stage

Change = Callable[[list[AnyRecord]], list[AnyRecord]]


def verdict(records: list[AnyRecord]) -> Verdict:
    aggregate = fold(records)
    return judge(aggregate, audit(aggregate))


def with_note(**changes: object) -> Change:
    """Change figures of the first agent's note and its Final."""

    def change(records: list[AnyRecord]) -> list[AnyRecord]:
        changed = list(records)
        position = next(i for i, record in enumerate(records) if isinstance(record, AgentEnded))
        note = records[position]
        assert isinstance(note, AgentEnded)
        assert note.final is not None
        final = {name: value for name, value in changes.items() if name in note.final.__struct_fields__}
        own = {name: value for name, value in changes.items() if name not in final}
        changed[position] = msgspec.structs.replace(note, final=msgspec.structs.replace(note.final, **final), **own)
        return changed

    return change


def without(kind: type[AnyRecord]) -> Change:
    return lambda records: [record for record in records if not isinstance(record, kind)]


def more_calls(extra: int) -> Change:
    def change(records: list[AnyRecord]) -> list[AnyRecord]:
        after = next(r for r in records if isinstance(r, CountersRead) and r.when is Reading.AFTER)
        return [*records, msgspec.structs.replace(after, calls=after.calls | {"get": after.calls["get"] + extra})]

    return change


def last_agent_lost(records: list[AnyRecord]) -> list[AnyRecord]:
    others = [record for record in records if not (isinstance(record, AgentEnded) and record.agent_id == "a2")]
    return [*others, noted("a2", 0, lost=True)]


CASES: dict[str, tuple[Change, Level, str]] = {
    "a frame is missing": (
        lambda records: [r for r in records if not (isinstance(r, FrameAccepted) and r.frame.seq == 1)],
        Level.INVALID,
        "2 agents (a1, a2) reported 6,000 operations, but their frames contain 4,000.",
    ),
    "operations never ended": (
        with_note(issued=3007),
        Level.INVALID,
        "Workers began 6,007 operations, but 6,000 ended",
    ),
    "the server did less": (more_calls(-1), Level.INVALID, "the server counted only 5,999 calls"),
    "the server did more": (
        more_calls(12),
        Level.SUSPECT,
        "12 operations are unaccounted for: workers began 6,000, the server counted 6,012 calls; ",
    ),
    "the coordinator was killed": (without(RunClosed), Level.SUSPECT, "The coordinator ended after the load"),
    "an agent was lost": (
        last_agent_lost,
        Level.SUSPECT,
        "1 of 2 agents lost (a2): the report includes the 3,000",
    ),
    "a worker died": (
        lambda records: [*records, WorkerDied(agent_id="a1", process=0, exit_code=-9)],
        Level.SUSPECT,
        "1 worker process died",
    ),
    "a worker died, says the agent": (with_note(processes_lost=2), Level.SUSPECT, "2 worker processes died"),
    "the drain was cut short": (with_note(drained=False), Level.SUSPECT, "Workers of a1 were stopped"),
    "no reading of the server": (without(CountersRead), Level.SUSPECT, "server's own count could not be compared"),
    "the generator was busy, as it measured": (
        lambda records: watched(records, {"a1": 0.97, "a2": 0.5}),
        Level.SUSPECT,
        "(a1) used 97% of a core: the generator, not the server, was the limit.",
    ),
    "an agent was blocked": (with_note(lag_ms_max=1500.0), Level.SUSPECT, "blocked for 1,500 ms"),
    "a late start": (with_note(start_skew_ns=180_000_000), Level.SUSPECT, "started 180 ms off"),
    "an early start": (with_note(start_skew_ns=-180_000_000), Level.SUSPECT, "started 180 ms off"),
    "an unknown clock": (with_note(clock_rtt_us=250_000.0), Level.SUSPECT, "known only to within 125 ms"),
}


@pytest.mark.parametrize(("change", "level", "reason"), CASES.values(), ids=CASES.keys())
def test_each_problem_is_a_sentence_with_figures(change: Change, level: Level, reason: str) -> None:
    found = verdict(change(list(clean_run())))
    assert found.level is level
    assert any(reason in one for one in found.reasons), found.reasons
    assert all(one.endswith((".", "?")) and one.count("\n") == 0 for one in found.reasons)


@pytest.mark.parametrize("rate_per_s", [None, 2000.0])
def test_a_clean_run_is_trusted(rate_per_s: float | None) -> None:
    found = verdict(list(clean_run(plan(rate_per_s=rate_per_s))))
    assert found == Verdict(level=Level.TRUSTED, reasons=())


def test_figures_at_their_limits_are_trusted() -> None:
    records = with_note(cpu_percent_busiest=89.9, start_skew_ns=100_000_000, lag_ms_max=1000.0)(list(clean_run()))
    assert verdict(records).level is Level.TRUSTED


def test_a_run_without_operations_is_invalid() -> None:
    found = verdict([opened(), noted("a1", 0), noted("a2", 0), closed()])
    assert found.level is Level.INVALID
    assert found.reasons[0] == "No operation ended."


def test_a_run_in_which_nothing_succeeded_is_invalid() -> None:
    failed = interval(0, {"GET": command(histogram(), failures={"ConnectionError": 7})})
    found = verdict([opened(agents=["a1"]), accepted("a1", 0, failed), noted("a1", 7), closed()])
    assert found.level is Level.INVALID
    assert found.reasons[0] == "No operation succeeded: all 7 ended in an error."


def test_errors_alone_leave_a_run_trusted() -> None:
    some = interval(0, {"GET": command(histogram(1, 2), errors={"READONLY": 50})})
    readings = [reading(Reading.BEFORE, {}), reading(Reading.AFTER, {"get": 52})]
    found = verdict([opened(agents=["a1"]), accepted("a1", 0, some), noted("a1", 52), *readings, closed()])
    assert found.level is Level.TRUSTED


def test_an_open_loop_that_falls_behind_its_rate_is_suspect() -> None:
    found = verdict(list(clean_run(plan(rate_per_s=2100.0))))
    assert found.level is Level.SUSPECT
    assert found.reasons == ("The target rate was 2,100/s, the achieved rate 2,000/s (95.2%).",)


def test_the_chance_of_poisson_arrivals_is_not_suspect() -> None:
    the_plan = plan(rate_per_s=2050.0)
    chance = msgspec.structs.replace(the_plan, load=msgspec.structs.replace(the_plan.load, arrivals=Arrivals.POISSON))
    assert verdict(list(clean_run(the_plan))).level is Level.SUSPECT
    assert verdict(list(clean_run(chance))).level is Level.TRUSTED


def test_operations_that_were_never_sent_are_suspect() -> None:
    late = accepted("a1", 3, interval(2, {}, unsent=310))
    records = list(clean_run(plan(rate_per_s=2000.0)))
    found = verdict([*records[:-4], late, *records[-4:]])
    assert any("310 operations were never sent" in reason for reason in found.reasons)


def test_one_unsent_operation_per_thread_at_the_end_is_trusted() -> None:
    threads = 400
    records = [
        msgspec.structs.replace(record, threads_total=threads) if isinstance(record, RunOpened) else record
        for record in clean_run(plan(rate_per_s=2000.0))
    ]
    late = accepted("a1", 3, interval(2, {}, unsent=threads))
    assert verdict([*records[:-4], late, *records[-4:]]).level is Level.TRUSTED


def test_a_machine_that_was_busy_on_all_cores_is_suspect() -> None:
    found = verdict(with_note(host_cpu_percent_mean=96.4)(list(clean_run())))
    assert (found.level, found.reasons[0][:46]) == (Level.SUSPECT, "The machine of agent a1 was 96% busy on all it")
    assert verdict(with_note(host_cpu_percent_mean=89.9)(list(clean_run()))).level is Level.TRUSTED


def test_the_worst_reasons_come_first() -> None:
    levels = [level for level, _ in RULES]
    assert levels == sorted(levels, key=[Level.INVALID, Level.SUSPECT].index)


STAGED = staged_plan(stage(1, 100), stage(1, 300, Ramp.LINEAR), stage(1), warmup_s=1)


def staged_run(*counts: int, unsent: int = 0) -> list[AnyRecord]:
    """A run of one agent; counts: its operations per leg; unsent: in the first leg."""
    parts = [
        interval(number, {"GET": command(histogram(*[1000] * count))}, stage=number, unsent=0 if number else unsent)
        for number, count in enumerate(counts)
    ]
    whole = sum(counts)
    readings = [reading(Reading.BEFORE, {}), reading(Reading.AFTER, {"get": whole})]
    return [opened(STAGED, ["a1"]), accepted("a1", 0, *parts), noted("a1", whole), *readings, closed(duration_s=4.0)]


def test_each_open_stage_is_compared_with_its_own_rate_and_the_warmup_with_none() -> None:
    assert verdict(staged_run(1, 100, 200, 5)) == Verdict(level=Level.TRUSTED, reasons=())
    found = verdict(staged_run(100, 100, 150, 500))
    assert found.level is Level.SUSPECT
    assert found.reasons == ("The target rate of stage 2 was 200/s on average, the achieved rate 150/s (75.0%).",)
    assert "The target rate of stage 1 was 100/s, the achieved" in verdict(staged_run(100, 90, 200, 500)).reasons[0]


def test_unsent_operations_of_a_warmup_leave_a_run_trusted() -> None:
    assert verdict(staged_run(1, 100, 200, 5, unsent=50)).level is Level.TRUSTED


def test_a_run_that_ended_in_its_warmup_is_invalid() -> None:
    found = verdict(staged_run(100))
    assert (found.level, found.reasons[0]) == (Level.INVALID, "No operation ended.")


def test_operations_sent_after_their_stage_do_not_reach_its_rate() -> None:
    records = staged_run(1, 100, 200, 5)
    late = [interval(3, {}, stage=1, late=31)]
    found = verdict([*records[:2], accepted("a1", 1, *late), *records[2:]])
    assert found.reasons == ("The target rate of stage 1 was 100/s, the achieved rate 70/s (70.0%).",)


def fleet(hosts: dict[str, str], **note: object) -> list[AnyRecord]:
    """A run with one operation per agent. hosts: by agent. note: figures of every agent's note."""
    start = opened(agents=list(hosts))
    placed = tuple(msgspec.structs.replace(facts, host=hosts[facts.agent_id]) for facts in start.agents)
    records: list[AnyRecord] = [msgspec.structs.replace(start, agents=placed)]
    get = {"GET": command(histogram(1000))}
    records += [accepted(name, 0, interval(0, get)) for name in hosts]
    return [*records, *(noted(name, 1, **note) for name in hosts), closed(duration_s=1.0)]


def about(records: list[AnyRecord], words: str) -> list[str]:
    return [reason for reason in verdict(records).reasons if words in reason]


def test_ten_agents_on_one_busy_machine_are_one_sentence() -> None:
    ten = {f"a{number}": "load-1" for number in range(10)}
    [found] = about(fleet(ten, host_cpu_percent_mean=96.0), "busy on all")
    assert found.startswith("The machine load-1, of 10 agents, was 96% busy on all its cores: the generator,")
    [found] = about(fleet({"a1": "load-1"}, host_cpu_percent_mean=96.0), "busy on all")
    assert found.startswith("The machine of agent a1 was 96% busy on all its cores: the generator,")


def test_many_busy_machines_are_one_sentence_that_names_some() -> None:
    hosts = {f"a{number}": f"load-{number}" for number in range(7)}
    [found] = about(fleet(hosts, host_cpu_percent_mean=91.0), "busy on all")
    named = ", ".join(f"load-{number} 91%" for number in range(5))
    assert found.startswith(f"7 machines were busy on all their cores ({named} and 2 more): the generator,")


@pytest.mark.parametrize(
    ("note", "words", "sentence"),
    [
        (
            {"clock_rtt_us": 250_000.0},
            "clock",
            "The clocks of 7 agents (a0, a1, a2, a3, a4 and 2 more) are known only to within 125 ms, so their "
            "seconds may be shifted against the seconds of other agents.",
        ),
        ({"drained": False}, "stopped", "Workers of a0, a1, a2, a3, a4 and 2 more were stopped while operations"),
        (
            {"issued": 3},
            "Workers began",
            "Workers began 21 operations, but 7 ended.",
        ),
        ({"lag_ms_max": 1500.0}, "blocked", "An agent's own loop was blocked for 1,500 ms"),
        ({"start_skew_ns": 10**9}, "started", "An agent started 1,000 ms off"),
    ],
)
def test_a_problem_of_many_agents_is_one_sentence(note: dict[str, object], words: str, sentence: str) -> None:
    [found] = about(fleet({f"a{number}": f"load-{number}" for number in range(7)}, **note), words)
    assert found.startswith(sentence)


def stopped_at(stop_s: float, *, begins_s: tuple[float, float]) -> Verdict:
    """The verdict on a load of two scenarios that was stopped; each scenario has operations if it had begun."""
    names = ("now", "late")
    each = [scenario(name, load(9.0), start_s=Seconds(at)) for name, at in zip(names, begins_s, strict=True)]
    parts = [interval(0, {"GET": done(5)}, stage=at) for at, begin_s in enumerate(begins_s) if begin_s < stop_s]
    counts = [5 if begin_s < stop_s else 0 for begin_s in begins_s]
    finals = tuple(
        ScenarioFinal(scenario=at, issued=count, counted=count, ran_ns=10**9, drained=True)
        for at, count in enumerate(counts)
    )
    run = fold(
        [
            of_scenarios(plan_of(*each)),
            reading(Reading.BEFORE, {}),
            RunStarted(t0_ns=123),
            accepted("a1", 0, *parts),
            StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=123 + round(stop_s * NS_PER_S)),
            noted("a1", sum(counts), scenarios=finals),
            reading(Reading.AFTER, {"get": sum(counts)}),
            closed(duration_s=stop_s),
        ]
    )
    return judge(run, audit(run))


def test_a_scenario_that_waited_when_the_load_was_stopped_does_not_make_the_others_invalid() -> None:
    found = stopped_at(1.0, begins_s=(0.0, 6.0))
    assert (found.level, found.reasons) == (
        Level.SUSPECT,
        ("late: The load was stopped before this scenario began.",),
    )


def test_a_load_that_was_stopped_before_any_scenario_began_is_invalid() -> None:
    found = stopped_at(1.0, begins_s=(5.0, 6.0))
    assert (found.level, found.reasons[0]) == (Level.INVALID, "No operation ended.")


def test_a_lost_agent_concerns_only_scenarios_of_which_it_had_pools() -> None:
    first = of_scenarios(plan_of(scenario("here", load(1.0)), scenario("there", load(1.0))))
    [agent] = first.agents
    both = [msgspec.structs.replace(agent, agent_id=f"a{at}", pools=agent.pools[at : at + 1]) for at in range(2)]
    finals = (ScenarioFinal(scenario=0, issued=5, counted=5, ran_ns=10**9, drained=True),)
    run: list[AnyRecord] = [
        msgspec.structs.replace(first, agents=tuple(both)),
        reading(Reading.BEFORE, {}),
        RunStarted(t0_ns=123),
        accepted("a0", 0, interval(0, {"GET": done(5)})),
        accepted("a1", 0, interval(0, {"GET": done(4)}, stage=1)),
        noted("a0", 5, scenarios=finals),
        noted("a1", 4, lost=True),
        reading(Reading.AFTER, {"get": 9}),
        closed(duration_s=1.0),
    ]
    assert [reason for reason in verdict(run).reasons if "lost" in reason] == [
        "there: 1 of 1 agent lost (a1): the report includes the 4 operations reported before; later operations are "
        "unknown."
    ]

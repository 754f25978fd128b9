"""A run with several scenarios: each has figures of its own, and the totals are sums."""

from __future__ import annotations

import msgspec
import pytest

from common.plan.schema import Scenario, Target
from common.units import Seconds
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.records import AnyRecord, CountersRead, Reading, RunOpened, TargetFacts
from coordinator.report.summary import build_summary
from coordinator.report.summary_types import Summary
from tests.support import records
from tests.support.records import reading
from tests.support.scenarios import load, opened, plan_of, scenario, two


def summary_of(run: list[AnyRecord]) -> Summary:
    return build_summary(fold(run))


def test_each_scenario_has_its_own_operations_and_the_totals_are_sums() -> None:
    summary = summary_of(two())
    assert {each.name: each.totals.operations for each in summary.scenarios} == {"reads": 10, "writes": 7}
    assert {each.name: list(each.commands) for each in summary.scenarios} == {"reads": ["GET"], "writes": ["SET"]}
    assert summary.totals.operations == 17
    assert {name: stats.operations for name, stats in summary.commands.items()} == {"GET": 10, "SET": 7}


def test_rates_of_a_scenario_are_per_second_of_this_scenario() -> None:
    reads, writes = summary_of(two()).scenarios
    assert (reads.totals.ops_per_s, writes.totals.ops_per_s) == (5.0, 7.0)
    assert (writes.begin_s, writes.load.measured_s) == (1.0, 1.0)


def test_rates_of_all_scenarios_are_per_second_in_which_any_of_them_was_measured() -> None:
    summary = summary_of(two())
    assert summary.load.measured_s == 2.0
    assert summary.totals.ops_per_s == 8.5


def test_stages_and_pools_are_named_after_their_scenario() -> None:
    summary = summary_of(two())
    assert [stage.name for stage in summary.stages] == ["reads/measure", "writes/measure"]
    assert list(summary.pools) == ["reads/main", "writes/main"]


def test_scenarios_on_one_target_have_one_audit_of_its_calls() -> None:
    summary = summary_of(two())
    assert (summary.ledger.issued, summary.ledger.counted, summary.ledger.server_calls) == (17, 17, 17)
    assert summary.ledger.unaccounted == 0
    for each in summary.scenarios:
        assert each.ledger.server_calls is None
        assert each.ledger.note == "the target's counters are those of reads, writes together"
    assert "could not be compared" not in " ".join(summary.verdict.reasons)


def test_scenarios_on_several_targets_have_an_audit_each() -> None:
    targets = {"eu": Target(url="redis://h:1"), "us": Target(url="redis://h:2")}
    run = two()
    plan = plan_of(
        scenario("reads", load(2, 5), target="eu"),
        scenario("writes", load(1), start_s=Seconds(1), target="us"),
        targets=targets,
    )
    facts = {name: TargetFacts(url=each.url, topology="standalone", server="x") for name, each in targets.items()}
    run[0] = opened(plan, targets=facts)
    run[1] = of_targets(Reading.BEFORE, eu={}, us={})
    run[-2] = of_targets(Reading.AFTER, eu={"get": 10}, us={"set": 9})
    summary = summary_of(run)
    reads, writes = summary.scenarios
    assert (reads.target, reads.ledger.server_calls, reads.ledger.unaccounted) == ("eu", 10, 0)
    assert (writes.target, writes.ledger.server_calls, writes.ledger.unaccounted) == ("us", 9, 2)
    assert (summary.ledger.server_calls, summary.ledger.unaccounted) == (19, 2)
    assert list(summary.targets) == ["eu", "us"]
    assert any(reason.startswith("writes: 2 operations are unaccounted for") for reason in summary.verdict.reasons)


def of_targets(when: Reading, **calls: dict[str, int]) -> CountersRead:
    each = {name: reading(when, gained) for name, gained in calls.items()}
    return msgspec.structs.replace(next(iter(each.values())), targets=each)


def test_a_second_of_the_run_is_the_sum_of_its_scenarios() -> None:
    run = fold(two())
    assert [run.seconds[second].ok for second in (0, 1)] == [5, 12]
    reads, writes = run.scenarios
    assert [reads.seconds[second].ok for second in (0, 1)] == [5, 5]
    assert writes.seconds[1].ok == 7
    assert run.seconds[1].agents == 1


@pytest.mark.parametrize("name", ["main", "alone"])
def test_a_scenario_alone_reports_the_same_as_a_plan_without_scenarios(name: str) -> None:
    run = list(records.clean_run())
    short = summary_of(run)
    [first, *others] = run
    assert isinstance(first, RunOpened)
    plan = first.plan
    only = Scenario(name=name, pools=plan.pools, workload=plan.workload, load=plan.load)
    long = msgspec.structs.replace(
        first,
        plan=msgspec.structs.replace(plan, scenarios=(only,)),
        threads=(first.threads_total,),
        connection_ceilings=(first.connection_ceiling,),
    )
    found = summary_of([long, *others])
    [alone], [main] = found.scenarios, short.scenarios
    assert msgspec.structs.replace(alone, name=main.name) == main
    assert (found.totals, found.load, found.ledger, found.errors) == (
        short.totals,
        short.load,
        short.ledger,
        short.errors,
    )
    assert found.verdict == short.verdict


def test_records_that_repeat_count_once_in_every_scenario() -> None:
    run = two()
    twice = Aggregate()
    for record in [record for record in run for _ in range(2)]:
        twice.apply(record)
    assert build_summary(twice) == summary_of(run)

from __future__ import annotations

import msgspec
import pytest

from common.metrics.histogram import EMPTY
from common.metrics.intervals import CommandMetrics
from common.plan.schema import Load, Scenario, Target
from common.protocol.messages import PoolShare
from common.units import Seconds
from coordinator.analysis.target_loss import target_losses
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import AnyRecord, CountersRead, Reading, RunOpened, TargetFacts
from tests.support import records as made
from tests.support.records import accepted, command, histogram, interval, opened, reading

ANSWERS = reading(Reading.AFTER, {})
GONE = CountersRead(when=Reading.AFTER, error="target 127.0.0.1:6379 refused the connection", unreachable=True)
REFUSED = reading(Reading.AFTER, {}, error="it does not permit INFO")

DONE, SILENT = {"ok": 100}, {"ok": 0}
DEAD, HUNG, READONLY = (
    {"failures": {"ConnectionError": 40}},
    {"failures": {"TimeoutError": 2}},
    {"errors": {"READONLY": 9}},
)
SOME = {"ok": 50, "failures": {"ConnectionError": 3}}


def sentence(
    *seconds: dict[str, object], load_s: float | None = None, after: CountersRead | None = GONE, topology: str = ""
) -> str:
    """How a run with these seconds lost its target; "" if it did not."""
    first = opened(agents=["a1"])
    if topology:
        first = msgspec.structs.replace(first, target=msgspec.structs.replace(first.target, topology=topology))
    parts = []
    for number, counts in enumerate(seconds):
        done = histogram(*[1000] * int(str(counts.get("ok", 0))))
        more = {name: value for name, value in counts.items() if name != "ok"}
        parts.append(interval(number, {"GET": command(done or EMPTY, **more)}))
    records: list[AnyRecord] = [first, reading(Reading.BEFORE, {}), accepted("a1", 0, *parts)]
    losses = target_losses(fold(records), float(len(seconds)) if load_s is None else load_s, after)
    return "; ".join(loss.sentence for loss in losses)


LOST = "the target was lost in second 3 of 10 and did not come back: "


def test_a_target_that_dies_and_stays_down_is_lost() -> None:
    assert sentence(*[DONE] * 3, SOME, *[DEAD] * 6) == f"{LOST}ConnectionError 240"


def test_a_target_that_hangs_is_lost_even_if_its_operations_fail_only_in_the_drain() -> None:
    drain = [SILENT, SILENT, {"failures": {"CutShort": 4, "TimeoutError": 1}}]
    assert sentence(*[DONE] * 4, *[SILENT] * 6, *drain, load_s=10.0) == f"{LOST}CutShort 4, TimeoutError 1"


def test_a_dead_target_is_lost_even_in_the_last_second() -> None:
    assert (
        sentence(DONE, DONE, DEAD) == "the target was lost in second 1 of 3 and did not come back: ConnectionError 40"
    )
    assert sentence(DONE, SOME) == "the target was lost in second 1 of 2 and did not come back: ConnectionError 3"
    assert sentence(DONE, DONE) == ""


def test_one_failure_is_enough_if_the_target_is_dead() -> None:
    assert sentence({"ok": 1}, SILENT, {"failures": {"ConnectionError": 1}}) != ""
    assert sentence({"ok": 1}, SILENT, {"failures": {"ConnectionError": 1}}, after=ANSWERS) == ""


def test_a_target_that_comes_back_before_the_end_of_the_load_is_not_lost() -> None:
    assert sentence(*[DONE] * 3, *[DEAD] * 6, DONE, after=ANSWERS) == ""
    assert sentence(*[DONE] * 3, *[DEAD] * 6, DONE) == ""


def test_a_short_outage_before_the_end_is_no_loss_if_the_target_answers_again() -> None:
    assert sentence(*[DONE] * 8, DEAD, DEAD, after=ANSWERS) == ""
    assert sentence(*[DONE] * 95, *[DEAD] * 5, after=ANSWERS) == ""  # 5% of the load


def test_a_target_that_refuses_every_operation_until_the_end_is_lost() -> None:
    text = "the target refused every operation after second 3 of 10: READONLY 54"
    assert sentence(*[DONE] * 4, *[READONLY] * 6, after=ANSWERS) == text
    assert sentence(*[DONE] * 4, *[DEAD] * 6, after=ANSWERS) == f"{LOST}ConnectionError 240"
    assert sentence(*[DONE] * 4, *[HUNG] * 6, after=REFUSED) == f"{LOST}TimeoutError 12"


def test_blocking_operations_that_wait_until_the_end_are_no_loss() -> None:
    blocked = [SILENT, {"failures": {"CutShort": 40}}]
    assert sentence(*[DONE] * 4, *[SILENT] * 6, *blocked, load_s=10.0, after=ANSWERS) == ""


@pytest.mark.parametrize("name", ["CheckoutTimeout", "MaxConnectionsError", "DataMismatch"])
@pytest.mark.parametrize("after", [GONE, ANSWERS])
def test_errors_of_the_generator_are_no_loss_of_the_target(name: str, after: CountersRead) -> None:
    assert sentence(*[DONE] * 4, *[{"failures": {name: 40}}] * 6, after=after) == ""


def test_one_dead_node_is_not_the_loss_of_a_cluster() -> None:
    assert sentence(*[SOME] * 10, topology="cluster") == ""
    assert sentence(*[{"ok": 1}] * 8, HUNG, HUNG, topology="cluster") == ""  # the last operations went there by chance
    assert sentence(*[DONE] * 4, *[DEAD] * 6, topology="cluster") == f"{LOST}ConnectionError 240"


def test_one_node_that_blocks_all_workers_is_not_the_loss_of_a_cluster() -> None:
    assert sentence(*[DONE] * 4, *[DEAD] * 6, topology="cluster", after=ANSWERS) == ""
    down = {"errors": {"CLUSTERDOWN": 20}}
    lost = "the target refused every operation after second 3 of 10: CLUSTERDOWN 120"
    assert sentence(*[DONE] * 4, *[down] * 6, topology="cluster", after=ANSWERS) == lost


def test_a_target_that_never_answered_is_lost_only_if_it_is_down_afterwards() -> None:
    assert sentence(DEAD, DEAD) == "the target did not answer a single operation: ConnectionError 80"
    assert sentence(*[DEAD] * 10, after=ANSWERS) == ""
    assert sentence(READONLY, READONLY) == ""


def test_a_run_without_operations_or_failures_loses_no_target() -> None:
    assert sentence() == sentence(SILENT) == sentence(SILENT, after=None) == sentence(DONE, DONE, after=None) == ""


def test_a_target_whose_counters_could_never_be_read_is_not_lost() -> None:
    run = fold([opened(agents=["a1"]), msgspec.structs.replace(GONE, when=Reading.BEFORE)])
    assert isinstance(run.opened, RunOpened)
    run.apply(
        accepted("a1", 0, interval(0, {"GET": command(histogram(1))}), interval(1, {"GET": command(EMPTY, **DEAD)}))
    )
    assert target_losses(run, 2.0, GONE) == []


DONE_GET, DEAD_GET = command(histogram(*[1000] * 9)), command(EMPTY, failures={"ConnectionError": 9})


def losses_of_two(
    eu: list[CommandMetrics], us: list[CommandMetrics], *, after: dict[str, CountersRead], us_s: float = 10.0
) -> list[str]:
    """How a run of 10 s lost its targets; each has a scenario, of which these are the seconds."""
    alone = made.plan()
    scenarios = tuple(
        Scenario(name=f"of-{target}", target=target, workload=alone.workload, load=Load(duration_s=Seconds(length_s)))
        for target, length_s in (("eu", 10.0), ("us", us_s))
    )
    targets = {name: Target(url=f"redis://{name}:6379") for name in ("eu", "us")}
    first = opened(msgspec.structs.replace(alone, scenarios=scenarios, targets=targets), ["a1"])
    pools = tuple(PoolShare(group=0, number=at, first_thread=0, scenario=at) for at in range(2))
    facts = {name: TargetFacts(url=each.url, topology="standalone", server="x") for name, each in targets.items()}
    first = msgspec.structs.replace(
        first,
        agents=(msgspec.structs.replace(first.agents[0], pools=pools),),
        targets=facts,
        threads=(1, 1),
        connection_ceilings=(1, 1),
    )
    parts = [
        interval(number, {"GET": metrics}, stage=stage)
        for stage, seconds in enumerate((eu, us))
        for number, metrics in enumerate(seconds)
    ]
    run = fold([first, reading(Reading.BEFORE, {}), accepted("a1", 0, *parts)])
    read = msgspec.structs.replace(next(iter(after.values())), targets=after)
    return [loss.sentence for loss in target_losses(run, 10.0, read)]


def test_a_lost_target_is_seen_although_the_scenarios_of_other_targets_go_on() -> None:
    found = losses_of_two([DONE_GET] * 10, [*[DONE_GET] * 4, *[DEAD_GET] * 6], after={"eu": ANSWERS, "us": GONE})
    assert found == ["the target us was lost in second 3 of 10 and did not come back: ConnectionError 54"]


def test_each_lost_target_is_named() -> None:
    seconds = [*[DONE_GET] * 4, *[DEAD_GET] * 6]
    found = losses_of_two(seconds, seconds, after={"eu": GONE, "us": GONE})
    assert [text.partition(" was")[0] for text in found] == ["the target eu", "the target us"]


def test_a_target_that_hangs_until_the_end_of_its_own_scenario_is_lost_although_others_go_on_longer() -> None:
    found = losses_of_two(
        [DONE_GET] * 10, [*[DONE_GET] * 2, *[DEAD_GET] * 4], after={"eu": ANSWERS, "us": ANSWERS}, us_s=6.0
    )
    assert found == ["the target us was lost in second 1 of 6 and did not come back: ConnectionError 36"]


def test_a_target_whose_scenarios_had_ended_before_it_went_away_is_not_lost() -> None:
    assert losses_of_two([DONE_GET] * 10, [DONE_GET] * 4, after={"eu": ANSWERS, "us": GONE}, us_s=4.0) == []

from __future__ import annotations

import msgspec
import pytest

from common.metrics.histogram import EMPTY
from coordinator.analysis.target_loss import target_loss
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import AnyRecord, CountersRead, Reading, RunOpened
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
    loss = target_loss(fold(records), float(len(seconds)) if load_s is None else load_s, after)
    return loss.sentence if loss else ""


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
    assert target_loss(run, 2.0, GONE) is None

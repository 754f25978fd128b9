from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from common.metrics.histogram import EMPTY, Histogram
from common.metrics.intervals import IntervalMetrics
from common.plan.schema import Driver, Pools
from common.units import NS_PER_S, Count
from coordinator.analysis.ledger import audit
from coordinator.analysis.totals.aggregate import fold
from coordinator.analysis.verdict import judge
from coordinator.journal.records import AnyRecord, CountersRead, FrameAccepted, Reading, RunOpened
from tests.support.records import accepted, closed, command, interval, noted, opened, plan, reading, watched

LOAD_S = 10
GONE = CountersRead(when=Reading.AFTER, error="it refused the connection", unreachable=True)
MS = 1_000_000


def times(count: int, each_ns: int) -> Histogram:
    return Histogram.from_values(np.full(count, each_ns, dtype=np.int64))


def second(number: int, **counts: object) -> IntervalMetrics:
    """A second, by default with 100 quick operations."""
    service = counts.pop("service", times(100, 100_000))
    return interval(number, {"GET": command(service, **counts)})  # type: ignore[arg-type]


def four(driver: Driver = Driver.CLIENT, **more: object) -> RunOpened:
    """A run at 1,000/s with four workers of this driver."""
    of = {"client_instances_per_pool": 1 if driver is Driver.WIRE else 4, "max_connections": 4} | more
    group = Pools(client_pools=Count(1), driver=driver, threads_per_pool=4, tasks_per_pool=4, **of)  # type: ignore[arg-type]
    the_plan = msgspec.structs.replace(plan(rate_per_s=1000.0, duration_s=LOAD_S), pools=(group,))
    return msgspec.structs.replace(opened(the_plan, ["a1"]), threads_total=4)


def unsent(
    seconds: Sequence[IntervalMetrics],
    run: RunOpened | None = None,
    after: CountersRead | None = None,
    **changes: object,
) -> str:
    """The cause that the verdict names for 5,000 unsent operations, without its full stop."""
    *first, last = seconds
    last = msgspec.structs.replace(last, unsent=5000)
    if changes:
        pools = {name: msgspec.structs.replace(pool, **changes) for name, pool in last.pools.items()}
        last = msgspec.structs.replace(last, pools=pools)
    everything = sum(one.operations for one in seconds)
    records: list[AnyRecord] = [run or four(), reading(Reading.BEFORE, {}), accepted("a1", 0, *first, last)]
    records += [noted("a1", everything), after or reading(Reading.AFTER, {}), closed(duration_s=float(LOAD_S))]
    folded = fold(records)
    [found] = [reason for reason in judge(folded, audit(folded)).reasons if "never sent" in reason]
    return found.removeprefix("5,000 operations were never sent").removesuffix(".")


DEAD = {"service": EMPTY, "failures": {"ConnectionError": 30}, "failed": times(30, 100 * MS)}


def test_a_lost_target_is_the_cause() -> None:
    seconds = [second(number) for number in range(4)] + [second(number, **DEAD) for number in range(4, 10)]
    assert unsent(seconds, after=GONE) == (
        ": the target was lost in second 3 of 10 and did not come back: ConnectionError 180"
    )


def test_failed_operations_that_kept_the_workers_busy_are_the_cause() -> None:
    seconds = [second(number, **DEAD) for number in range(5)] + [second(number) for number in range(5, 10)]
    assert unsent(seconds) == (
        ": failed operations kept the threads busy (ConnectionError 150; 100 ms each on average)"
    )
    assert "kept the tasks busy" in unsent(seconds, four(Driver.ASYNCIO))


def test_failed_operations_that_kept_the_client_instance_busy_are_the_cause() -> None:
    dead = {"service": EMPTY, "failures": {"ConnectionError": 8}, "failed": times(8, 100 * MS)}
    seconds = [second(number, **dead) for number in range(5)] + [second(number) for number in range(5, 10)]
    text = unsent(seconds, four(client_instances_per_pool=1), checkout_wait=times(300, 100 * MS))
    assert text == (": failed operations kept the client instances busy (ConnectionError 40; 100 ms each on average)")


def test_timeouts_are_the_cause() -> None:
    hung = {"service": EMPTY, "failures": {"TimeoutError": 4}, "failed": times(4, 5 * NS_PER_S)}
    seconds = [second(number) for number in range(9)] + [second(9, **hung)]
    assert unsent(seconds) == ": the target did not reply in time (TimeoutError 4)"


def test_seconds_without_a_successful_operation_are_the_cause() -> None:
    down = {"service": EMPTY, "failures": {"ConnectionError": 3}, "failed": times(3, 1000)}
    seconds = [second(number, **down) for number in range(4)] + [second(number) for number in range(4, 10)]
    assert unsent(seconds, four(Driver.WIRE)) == ": for 4 s no operation succeeded (ConnectionError 12)"


def test_a_stalled_target_is_the_cause() -> None:
    stalled = {"service": Histogram.merge([times(100, 100_000), times(4, 3 * NS_PER_S)])}
    seconds = [second(number) for number in range(9)] + [second(9, **stalled)]
    assert unsent(seconds) == ": the target stalled: a reply took up to 3.0 s"
    # Threads that wait for a client instance wait for the same stall.
    waited = {"failures": {"CheckoutTimeout": 40}, "failed": times(40, NS_PER_S)}
    assert unsent([*seconds[:9], second(9, **stalled, **waited)]) == ": the target stalled: a reply took up to 3.0 s"


def test_checkout_timeouts_are_the_cause() -> None:
    waited = {"failures": {"CheckoutTimeout": 40}, "failed": times(40, NS_PER_S)}
    seconds = [second(number) for number in range(9)] + [second(9, **waited)]
    assert unsent(seconds) == ": no client instance became free in time (CheckoutTimeout 40)"


def test_too_few_client_instances_are_the_cause_if_threads_waited_for_them() -> None:
    waits = times(300, 100 * MS)
    assert unsent([second(number) for number in range(10)], checkout_wait=waits) == (
        ": threads waited for a client instance 75% of the time: add client instances"
    )


@pytest.mark.parametrize(
    ("driver", "who"), [(Driver.CLIENT, "threads"), (Driver.ASYNCIO, "tasks"), (Driver.WIRE, "connections")]
)
def test_too_few_workers_are_the_cause_if_all_of_them_were_busy(driver: Driver, who: str) -> None:
    seconds = [second(number, service=times(16, 250 * MS)) for number in range(10)]
    assert unsent(seconds, four(driver)) == (
        f": all 4 {who} were busy, waiting 250 ms for a reply on average, which allows 16/s"
    )


def test_the_operations_of_a_batch_share_the_time_of_their_worker() -> None:
    run = four()
    workload = msgspec.structs.replace(run.plan.workload, pipeline=Count(10))
    run = msgspec.structs.replace(run, plan=msgspec.structs.replace(run.plan, workload=workload))
    seconds = [second(number, service=times(16, 250 * MS)) for number in range(10)]
    assert unsent(seconds, run) == ": all workers were busy (see errors and response time)"


def test_the_generator_is_the_cause_if_it_was_the_limit() -> None:
    quick = [second(number, service=times(1000, 3 * MS)) for number in range(10)]
    [frame] = watched([accepted("a1", 0, *quick)], {"a1": 0.97})
    assert isinstance(frame, FrameAccepted)
    assert unsent(frame.frame.intervals) == ": the generator was the limit"


def test_no_cause_is_made_up() -> None:
    assert unsent([second(number) for number in range(10)]) == ": all workers were busy (see errors and response time)"


def test_a_missed_rate_names_its_cause_once() -> None:
    seconds = [second(number, service=times(16, 250 * MS)) for number in range(10)]
    records: list[AnyRecord] = [four(), accepted("a1", 0, *seconds), noted("a1", 160), closed(duration_s=10.0)]
    missed = [reason for reason in judge(fold(records), audit(fold(records))).reasons if "achieved" in reason]
    assert missed == [
        "The target rate was 1,000/s, the achieved rate 16/s (1.6%): "
        "all 4 threads were busy, waiting 250 ms for a reply on average, which allows 16/s."
    ]

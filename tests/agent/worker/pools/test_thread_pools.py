from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from agent.worker.pools.instance_queue import CheckoutTimeout
from agent.worker.pools.thread_pools import ClientInstance, ClientInstancePool
from common.cancellation import Cancellation, CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Pools, Target
from tests.support.clocks import ReadClock

NOWHERE = Target(url="redis://127.0.0.1:1")


def instances(count: int, target: Target = NOWHERE, max_connections: int = 1) -> list[ClientInstance]:
    cancellation = Cancellation()
    return [ClientInstance(target, Pools(max_connections=max_connections), cancellation) for _ in range(count)]


def pool_of(count: int, timeout_s: float = 10.0, now: MonotonicNs = monotonic_ns) -> ClientInstancePool:
    return ClientInstancePool(instances(count), timeout_s, now)


def started(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target)
    thread.start()
    return thread


def test_the_instance_returned_last_is_lent_first_and_without_a_wait() -> None:
    pool = pool_of(3)
    first, second, third = (pool.checkout()[0] for _ in range(3))
    for instance in (second, third, first):
        pool.give_back(instance)
    assert [pool.checkout() for _ in range(3)] == [(first, 0), (third, 0), (second, 0)]


def test_a_thread_waits_for_an_empty_pool_and_the_wait_is_measured() -> None:
    clock = ReadClock(1_000)
    pool = pool_of(1, now=clock)
    instance, _ = pool.checkout()
    got: list[tuple[ClientInstance, int]] = []
    waiter = started(lambda: got.append(pool.checkout()))
    clock.await_reading()
    assert got == []
    clock.now_ns = 6_000
    pool.give_back(instance)
    waiter.join(10)
    assert got == [(instance, 5_000)]


def test_threads_are_served_in_order_of_arrival() -> None:
    clock = ReadClock()
    pool = pool_of(1, now=clock)
    instance, _ = pool.checkout()
    order: list[int] = []

    def come(number: int) -> None:
        for _ in range(3):
            lent, _ = pool.checkout()
            order.append(number)
            pool.give_back(lent)

    threads = []
    for number in range(3):
        threads.append(started(lambda number=number: come(number)))  # type: ignore[misc]
        clock.await_reading()
    pool.give_back(instance)
    for thread in threads:
        thread.join(10)
    assert order[:3] == [0, 1, 2]
    assert sorted(order) == [0] * 3 + [1] * 3 + [2] * 3
    assert pool.checkout() == (instance, 0)


def test_a_checkout_that_times_out_reports_its_wait() -> None:
    pool = pool_of(1, timeout_s=0.02)
    instance, _ = pool.checkout()
    with pytest.raises(CheckoutTimeout) as raised:
        pool.checkout()
    assert 20_000_000 <= raised.value.waited_ns < 5_000_000_000
    pool.give_back(instance)
    assert pool.checkout() == (instance, 0)


def test_an_instance_returned_at_the_moment_of_a_timeout_is_not_lost() -> None:
    readings = 0

    def now() -> int:
        nonlocal readings
        readings += 1
        if readings == 2:  # the checkout timed out and does not have the lock yet
            pool.give_back(instance)
        return readings * 10_000_000

    pool = pool_of(1, timeout_s=0.001, now=now)
    instance, _ = pool.checkout()
    assert pool.checkout() == (instance, 10_000_000)
    assert readings == 2


def test_abort_wakes_all_queued_threads() -> None:
    clock = ReadClock()
    pool = pool_of(1, timeout_s=60.0, now=clock)
    pool.checkout()
    ends: queue.Queue[str] = queue.Queue()

    def come() -> None:
        with pytest.raises(CutShort):
            pool.checkout()
        ends.put("woken")

    threads = [started(come) for _ in range(4)]
    for _ in threads:
        clock.await_reading()
    pool.abort()
    pool.abort()
    assert [ends.get(timeout=10) for _ in threads] == ["woken"] * 4
    for thread in threads:
        thread.join(10)


def test_no_thread_waits_in_an_aborted_pool() -> None:
    pool = pool_of(1, timeout_s=60.0)
    pool.abort()
    instance, _ = pool.checkout()
    with pytest.raises(CutShort):
        pool.checkout()
    pool.give_back(instance)
    pool.close()
    pool.close()


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize("timeout_s", [10.0, 0.0002])
def test_no_instance_is_lent_twice_or_lost(timeout_s: float) -> None:
    pool = pool_of(3, timeout_s)
    held: dict[ClientInstance, threading.Lock] = {instance: threading.Lock() for instance in pool.instances}
    problems: list[str] = []
    done = [0] * 8
    turn = threading.Barrier(8)

    def work(number: int) -> None:
        turn.wait(10)
        for _ in range(1000):
            try:
                instance, wait_ns = pool.checkout()
            except CheckoutTimeout:
                continue
            if instance is None or wait_ns < 0:
                problems.append(f"lent {instance} after {wait_ns}")
            if not held[instance].acquire(blocking=False):
                problems.append("lent twice")
                return
            done[number] += 1
            held[instance].release()
            pool.give_back(instance)

    threads = [started(lambda number=number: work(number)) for number in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    assert min(done) > 0
    assert timeout_s < 1 or done == [1000] * 8
    assert {pool.checkout() for _ in range(3)} == {(instance, 0) for instance in pool.instances}

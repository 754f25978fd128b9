from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from agent.worker.pools.instance_queue import CheckoutTimeout
from agent.worker.pools.prewarm import prewarm
from agent.worker.pools.thread_pools import ClientInstance, ClientInstancePool
from common.cancellation import Cancellation, CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.errors import TargetError
from common.plan.schema import Pools, Retry, Target
from common.units import Seconds
from tests.support.clocks import ReadClock
from tests.support.runs import wait_until
from tests.support.servers import Server

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


def test_the_instance_last_returned_is_the_first_lent() -> None:
    pool = pool_of(3)
    first, second, third = (pool.checkout()[0] for _ in range(3))
    for instance in (second, third, first):
        pool.give_back(instance)
    assert [pool.checkout()[0] for _ in range(3)] == [first, third, second]


def test_one_thread_at_a_time_keeps_one_instance_busy() -> None:
    pool = pool_of(3)
    lent = set()
    for _ in range(10):
        instance, _ = pool.checkout()
        lent.add(instance)
        pool.give_back(instance)
    assert len(lent) == 1


def test_an_instance_that_is_free_at_once_was_not_waited_for() -> None:
    clock = ReadClock(7)
    assert pool_of(1, now=clock).checkout()[1] == 0


def test_a_thread_that_finds_the_pool_empty_waits_and_its_wait_is_measured() -> None:
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


def test_threads_are_served_in_the_order_in_which_they_came_and_nobody_gets_ahead() -> None:
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


def test_what_is_returned_goes_to_the_one_in_line_and_not_to_who_comes_now() -> None:
    clock = ReadClock()
    pool = pool_of(1, now=clock)
    instance, _ = pool.checkout()
    served: queue.Queue[ClientInstance] = queue.Queue()
    waiter = started(lambda: served.put(pool.checkout()[0]))
    clock.await_reading()
    pool.give_back(instance)
    second = started(lambda: served.put(pool.checkout()[0]))
    assert served.get(timeout=10) is instance
    waiter.join(10)
    assert second.is_alive()
    pool.give_back(instance)
    assert served.get(timeout=10) is instance
    second.join(10)


def test_a_checkout_gives_up_after_its_timeout_and_says_how_long_it_waited() -> None:
    pool = pool_of(1, timeout_s=0.02)
    instance, _ = pool.checkout()
    with pytest.raises(CheckoutTimeout) as raised:
        pool.checkout()
    assert 20_000_000 <= raised.value.waited_ns < 5_000_000_000
    pool.give_back(instance)
    assert pool.checkout() == (instance, 0)


def test_an_instance_that_comes_in_the_very_moment_of_the_timeout_is_taken_and_not_lost() -> None:
    readings = 0

    def now() -> int:
        nonlocal readings
        readings += 1
        if readings == 2:  # the time is up; the thread in line does not hold the lock yet
            pool.give_back(instance)
        return readings * 10_000_000

    pool = pool_of(1, timeout_s=0.001, now=now)
    instance, _ = pool.checkout()
    assert pool.checkout() == (instance, 10_000_000)
    assert readings == 2


def test_aborting_wakes_all_who_wait() -> None:
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


def test_nobody_waits_in_a_pool_that_was_aborted() -> None:
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
def test_no_instance_is_ever_lent_twice_nor_lost(timeout_s: float) -> None:
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


# Prewarming


@pytest.mark.usefixtures("no_leaks")
def test_prewarming_opens_every_connection_of_every_instance_as_the_server_itself_counts(valkey: Server) -> None:
    asking = valkey.client()
    asking.ping()
    target = Target(url=valkey.url)
    cancellation = Cancellation()
    wanted = [ClientInstance(target, Pools(max_connections=7), cancellation) for _ in range(3)]
    told: list[tuple[int, int]] = []
    assert prewarm(wanted, target, cancellation, lambda done, total: told.append((done, total))) == 21
    assert len(asking.client_list()) == 1 + 21
    assert told[-1] == (21, 21)
    assert told == sorted(told)
    assert {total for _, total in told} == {21}
    for instance in wanted:
        events = instance.events.take()
        assert [kind.value for _, kind, *_ in events].count("opened") == 7
        # All are back in their TCP pool: so many can be had, and they are those that are open.
        pool = instance.client.connection_pool
        had = [pool.get_connection() for _ in range(7)]
        assert len({id(connection) for connection in had}) == 7
        assert instance.events.take() == []
    assert len(asking.client_list()) == 1 + 21
    for instance in wanted:
        instance.close()
        instance.close()
    wait_until(lambda: len(asking.client_list()) == 1, "the server has seen all connections closed")


def test_prewarming_nothing_is_done_at_once() -> None:
    told: list[tuple[int, int]] = []
    assert prewarm([], NOWHERE, Cancellation(), lambda done, total: told.append((done, total))) == 0
    assert told == []


@pytest.mark.usefixtures("no_leaks")
def test_prewarming_more_than_the_server_takes_fails_in_one_line_and_leaves_nothing_open(valkey: Server) -> None:
    asking = valkey.client()
    asking.config_set("maxclients", 10)
    target = Target(url=valkey.url, retry=Retry(retries=0))
    cancellation = Cancellation()
    wanted = [ClientInstance(target, Pools(max_connections=10), cancellation) for _ in range(2)]
    with pytest.raises(TargetError, match="max number of clients reached") as raised:
        prewarm(wanted, target, cancellation, lambda *_: None)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(" of 20 connections were open)")
    assert cancellation.is_cancelled
    wait_until(lambda: len(asking.client_list()) == 1, "the server has seen all connections closed")
    for instance in wanted:
        instance.close()


@pytest.mark.usefixtures("no_leaks")
def test_prewarming_a_target_that_refuses_fails_soon_although_retries_are_allowed(refusing_url: str) -> None:
    retry = Retry(retries=2, base_s=Seconds(0.001), cap_s=Seconds(0.002))
    target = Target(url=refusing_url, retry=retry)
    with pytest.raises(TargetError, match="refused the connection"):
        prewarm(instances(2, target, 50), target, Cancellation(), lambda *_: None)


@pytest.mark.usefixtures("no_leaks")
def test_whatever_the_progress_raises_ends_the_prewarming(valkey: Server) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: int) -> None:
        raise Stopped

    asking = valkey.client()
    target = Target(url=valkey.url)
    cancellation = Cancellation()
    wanted = [ClientInstance(target, Pools(max_connections=5), cancellation)]
    with pytest.raises(Stopped):
        prewarm(wanted, target, cancellation, stop)
    wait_until(lambda: len(asking.client_list()) == 1, "the server has seen all connections closed")
    wanted[0].close()

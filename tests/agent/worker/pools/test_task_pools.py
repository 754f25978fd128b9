from __future__ import annotations

import asyncio

import pytest

from agent.worker.pools.instance_queue import CheckoutTimeout
from agent.worker.pools.task_pools import AsyncClientInstance, AsyncClientInstancePool
from common.cancellation import Cancellation, CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Pools, Target
from tests.support.loops import OthersTurn, begun

NOWHERE = Target(url="redis://127.0.0.1:1")


def pool_of(count: int, timeout_s: float = 10.0, now: MonotonicNs = monotonic_ns) -> AsyncClientInstancePool:
    cancellation = Cancellation()
    return AsyncClientInstancePool(
        [AsyncClientInstance(NOWHERE, Pools(), cancellation) for _ in range(count)], timeout_s, now
    )


def test_the_instance_returned_last_is_lent_first_and_without_a_wait() -> None:
    async def play() -> None:
        pool = pool_of(3)
        first, second, third = [(await pool.checkout())[0] for _ in range(3)]
        for instance in (second, third, first):
            pool.give_back(instance)
        assert [await pool.checkout() for _ in range(3)] == [(first, 0), (third, 0), (second, 0)]
        assert pool.take() is None
        pool.give_back(second)
        assert pool.take() is second

    asyncio.run(play())


def test_a_task_waits_for_an_empty_pool_and_the_wait_is_measured() -> None:
    async def play() -> None:
        now_ns = 1_000
        pool = pool_of(1, now=lambda: now_ns)
        instance, _ = await pool.checkout()
        waiter = await begun(pool.checkout())
        assert not waiter.done()
        now_ns = 6_000
        pool.give_back(instance)
        assert await waiter == (instance, 5_000)

    asyncio.run(play())


def test_tasks_are_served_in_order_of_arrival() -> None:
    async def play() -> None:
        pool = pool_of(1)
        order: list[int] = []
        instance, _ = await pool.checkout()

        async def come(number: int) -> None:
            for _ in range(3):
                lent, _ = await pool.checkout()
                order.append(number)
                await OthersTurn()
                pool.give_back(lent)

        tasks = [await begun(come(number)) for number in range(3)]
        pool.give_back(instance)
        # The instance already belongs to the next task, which has not woken yet.
        assert pool.take() is None
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2] * 3

    asyncio.run(play())


def test_a_checkout_that_times_out_reports_its_wait_and_leaves_the_queue() -> None:
    async def play() -> None:
        pool = pool_of(1, timeout_s=0.02)
        instance, _ = await pool.checkout()
        with pytest.raises(CheckoutTimeout) as raised:
            await pool.checkout()
        assert 20_000_000 <= raised.value.waited_ns < 5_000_000_000
        pool.give_back(instance)
        assert await pool.checkout() == (instance, 0)

    asyncio.run(play())


def test_an_instance_returned_at_the_moment_of_a_timeout_is_not_lost() -> None:
    async def play() -> None:
        pool = pool_of(1, timeout_s=60.0)
        instance, _ = await pool.checkout()
        waiter = await begun(pool.checkout())
        [in_line] = pool._waiters
        pool.give_back(instance)
        pool._give_up(in_line)
        assert (await waiter)[0] is instance

    asyncio.run(play())


def test_a_task_cancelled_in_the_queue_returns_the_instance_that_it_just_got() -> None:
    async def play() -> None:
        pool = pool_of(1)
        instance, _ = await pool.checkout()
        early, late = await begun(pool.checkout()), await begun(pool.checkout())
        early.cancel()
        await OthersTurn()
        pool.give_back(instance)
        late.cancel()
        assert [type(error) for error in await asyncio.gather(early, late, return_exceptions=True)] == [
            asyncio.CancelledError,
            asyncio.CancelledError,
        ]
        assert await pool.checkout() == (instance, 0)

    asyncio.run(play())


def test_abort_wakes_all_queued_tasks_and_ends_all_later_waits() -> None:
    async def play() -> None:
        pool = pool_of(1, timeout_s=60.0)
        instance, _ = await pool.checkout()
        waiters = [await begun(pool.checkout()) for _ in range(4)]
        pool.abort()
        pool.abort()
        ends = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(end) for end in ends] == [CutShort] * 4
        with pytest.raises(CutShort):
            await pool.checkout()
        pool.give_back(instance)
        assert await pool.checkout() == (instance, 0)
        await pool.close()
        await pool.close()

    asyncio.run(play())


@pytest.mark.parametrize("timeout_s", [10.0, 0.0001])
def test_no_instance_is_lent_twice_or_lost(timeout_s: float) -> None:
    async def play() -> None:
        pool = pool_of(3, timeout_s)
        held: set[AsyncClientInstance] = set()
        done = [0] * 8

        async def work(number: int) -> None:
            for _ in range(200):
                try:
                    instance, _ = await pool.checkout()
                except CheckoutTimeout:
                    continue
                assert instance not in held
                held.add(instance)
                await OthersTurn()
                held.remove(instance)
                pool.give_back(instance)
                done[number] += 1

        await asyncio.gather(*(work(number) for number in range(8)))
        assert timeout_s < 1 or done == [200] * 8
        assert {await pool.checkout() for _ in range(3)} == {(instance, 0) for instance in pool.instances}

    asyncio.run(play())

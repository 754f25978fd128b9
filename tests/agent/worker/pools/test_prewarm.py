from __future__ import annotations

import pytest

from agent.worker.pools.prewarm import prewarm
from agent.worker.pools.thread_pools import ClientInstance
from common.cancellation import Cancellation
from common.errors import TargetError
from common.plan.schema import Pools, Retry, Target
from common.units import Seconds
from tests.support.runs import wait_until
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("no_leaks")


def instances(count: int, target: Target, max_connections: int) -> list[ClientInstance]:
    cancellation = Cancellation()
    return [ClientInstance(target, Pools(max_connections=max_connections), cancellation) for _ in range(count)]


def test_prewarming_opens_every_connection_of_every_instance(valkey: Server) -> None:
    asking = valkey.client()
    asking.ping()
    target = Target(url=valkey.url)
    cancellation = Cancellation()
    wanted = [ClientInstance(target, Pools(max_connections=7), cancellation) for _ in range(3)]
    progress: list[tuple[int, int]] = []
    assert prewarm(wanted, target, cancellation, lambda done, total: progress.append((done, total))) == 21
    assert len(asking.client_list()) == 1 + 21
    assert progress[-1] == (21, 21)
    assert progress == sorted(progress)
    assert {total for _, total in progress} == {21}
    for instance in wanted:
        events = instance.events.take()
        assert [kind.value for _, kind, *_ in events].count("opened") == 7
        # All connections are open and back in their TCP pool.
        pool = instance.client.connection_pool
        taken = [pool.get_connection() for _ in range(7)]
        assert len({id(connection) for connection in taken}) == 7
        assert instance.events.take() == []
    assert len(asking.client_list()) == 1 + 21
    for instance in wanted:
        instance.close()
        instance.close()
    wait_until(lambda: len(asking.client_list()) == 1, "the server has seen all connections closed")


def test_prewarming_more_than_maxclients_fails_in_one_line_and_leaves_nothing_open(valkey: Server) -> None:
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


def test_prewarming_a_target_that_refuses_fails_quickly_despite_retries(refusing_url: str) -> None:
    retry = Retry(retries=2, base_s=Seconds(0.001), cap_s=Seconds(0.002))
    target = Target(url=refusing_url, retry=retry)
    with pytest.raises(TargetError, match="refused the connection"):
        prewarm(instances(2, target, 50), target, Cancellation(), lambda *_: None)


def test_an_error_of_the_progress_callback_ends_the_prewarming(valkey: Server) -> None:
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

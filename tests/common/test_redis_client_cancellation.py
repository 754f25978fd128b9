"""Cancelling ends every wait of a client, for every kind of target. No client shows a password."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.plan.schema import Pools, Retry, Sentinel, Target
from common.redis_client import TARGET_ERRORS, build_client, open_control_client
from common.redis_client.clients import tcp_pools
from common.units import NS_PER_S, Seconds
from tests.support.clients import Events
from tests.support.servers import SocketServer
from tests.support.shapes import start_cluster, start_sentinels, start_unix

SECRET, WATCH = "s3cret-of-the-data", "s3cret-of-the-sentinels"
LONG = Seconds(600.0)


@pytest.fixture
def waiting_for() -> Iterator[Callable[[str, Cancellation, threading.Event], threading.Thread]]:
    threads: list[threading.Thread] = []

    def start(url: str, cancellation: Cancellation, ended: threading.Event) -> threading.Thread:
        def ask() -> None:
            target = Target(url=url, socket_timeout_s=LONG, connect_timeout_s=LONG, retry=Retry(retries=9))
            try:
                with build_client(target, Pools(), events=Events(), cancellation=cancellation) as client:
                    client.execute_command("GET", "key")
            except (CutShort, *TARGET_ERRORS):
                ended.set()

        thread = threading.Thread(target=ask)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(10.0)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel"])
def test_cancelling_ends_a_wait_for_a_silent_server_at_once(
    scheme: str, waiting_for: Callable[[str, Cancellation, threading.Event], threading.Thread]
) -> None:
    cancellation, ended = Cancellation(), threading.Event()
    with SocketServer() as server:
        path = "/mymaster" if "sentinel" in scheme else ""
        thread = waiting_for(f"{scheme}://127.0.0.1:{server.port}{path}", cancellation, ended)
        server.asked.wait(10.0)
        assert thread.is_alive()
        began_ns = monotonic_ns()
        cancellation.cancel()
        thread.join(10.0)
        assert ended.is_set()
        assert monotonic_ns() - began_ns < 5 * NS_PER_S


def test_no_object_shows_its_password() -> None:
    with (
        start_sentinels(SECRET, WATCH, count=1) as sentinels,
        start_cluster(replicas=0) as cluster,
        start_unix() as (unix, _),
    ):
        for node in (*cluster.nodes, *unix.nodes):
            node.ask("CONFIG", "SET", "requirepass", SECRET)
            node.password = SECRET
        for url in (sentinels.url, cluster.url, unix.url):
            sentinel = Sentinel(password=WATCH) if "sentinel" in url else Sentinel()
            target = Target(url=url, password=SECRET, sentinel=sentinel)
            with (
                build_client(target, Pools(), events=Events(), cancellation=Cancellation()) as client,
                open_control_client(target) as control,
            ):
                client.execute_command("SET", "key", "value")
                held: list[object] = [target, target.sentinel, client, control, *tcp_pools(client)]
                for pool in tcp_pools(client):
                    connection = pool.get_connection()
                    held += [connection, connection.retry]
                    pool.release(connection)
                manager = getattr(tcp_pools(client)[0], "sentinel_manager", None)
                held += [] if manager is None else [manager, *manager.sentinels]
                held += [client.pipeline()] if isinstance(client, redis.Redis) else []
            shown = [text for each in held for text in (repr(each), str(each))]
            assert [text for text in shown if SECRET in text or WATCH in text] == []

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent.worker.drivers.wire.event_loop import WireLoop
from agent.worker.drivers.wire.pool_runner import WirePoolRunner, draw_requests
from agent.worker.pools.prewarm import prewarm
from agent.worker.workload.encoding.stream import PackedStream
from agent.worker.workload.mix import CommandMix
from common.cancellation import Cancellation
from common.errors import TargetError
from common.plan.schema import Command, Driver, Pools, Retry, Target, Values, Workload
from common.units import Seconds
from tests.support.runs import connections, wait_until
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("no_leaks")


def mix_of(*commands: str, **workload: Any) -> CommandMix:
    return CommandMix(
        Workload(commands=tuple(Command(command=command) for command in commands or ("GET",)), **workload), 1
    )


@contextmanager
def host_of(url: str, loop: WireLoop | None = None, **pools: Any) -> Iterator[WirePoolRunner]:
    target = Target(url=url, retry=Retry(retries=0), connect_timeout_s=Seconds(1), socket_timeout_s=Seconds(1))
    group = Pools(driver=Driver.WIRE, **pools)
    host = WirePoolRunner(target, group, "pool 0", Cancellation(), loop or WireLoop(), mix_of())
    try:
        yield host
    finally:
        host.close()
        host.close()


def test_a_new_runner_opens_nothing_and_runs_nothing(valkey: Server) -> None:
    with host_of(valkey.url) as host:
        assert not host.is_alive
        assert connections(valkey.client()) == 0
        host.cut()


def test_prewarming_opens_all_connections_of_each_client_instance(valkey: Server) -> None:
    with host_of(valkey.url, client_instances_per_pool=3, max_connections=4) as host:
        steps: list[int] = []
        opens = host.open(lambda: steps.append(1))
        assert (len(opens), len(host.logs), len(steps)) == (3, 3, 1)
        assert connections(valkey.client()) == 0
        opened = prewarm(opens, Target(url=valkey.url), Cancellation(), lambda *_: None)
        assert opened == 12 == connections(valkey.client())
    wait_until(lambda: connections(valkey.client()) == 0, "none is left open")


@pytest.mark.parametrize("shape", ["redis+cluster", "redis"])
def test_a_cluster_that_cannot_be_reached_is_said_in_one_line_and_nothing_is_left(
    refusing_url: str, shape: str
) -> None:
    with host_of(refusing_url.replace("redis", shape)) as host:
        if shape == "redis":
            host.open(lambda: None)
            return
        with pytest.raises(TargetError):
            host.open(lambda: None)


def test_an_interrupt_while_the_runner_opens_leaves_nothing(valkey: Server) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with host_of(valkey.url) as host, pytest.raises(KeyboardInterrupt):
        host.open(stop)


def test_runners_that_share_a_loop_report_it_once(valkey: Server) -> None:
    loop = WireLoop()
    with host_of(valkey.url, loop) as one, host_of(valkey.url, loop) as other, host_of(valkey.url) as third:
        for host in (one, other, third):
            host.open(lambda: None)
        assert one.loops[0] is other.loops[0]
        assert one.loops[0] is not third.loops[0]


def test_requests_are_drawn_ahead_unless_one_depends_on_a_reply() -> None:
    assert isinstance(draw_requests(mix_of("SET", "GET"), 1, 0, 1), PackedStream)
    for mix in (mix_of("SCAN __cursor__"), mix_of("SET", "GET", values=Values(verify=True))):
        drawn = draw_requests(mix, 1, 0, 1)
        assert not isinstance(drawn, PackedStream)
        row, arguments, size, _ = next(drawn)
        assert (mix.names[row], size > 0) == (arguments[0], True)

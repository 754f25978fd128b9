"""How long connects take, and their parts, as far as redis-py shows them; for each driver."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.plan.schema import Target, Tls
from tests.support.clients import Events
from tests.support.drivers import Reach, by_asyncio, by_client, by_wire
from tests.support.notifying import NotifyingServer
from tests.support.shapes import Group, start_unix

DRIVERS = (by_client, by_asyncio, by_wire)


def check_total(events: Events, *, has_tls: bool) -> None:
    assert len(events.times) == len(events["opened"]) > 0
    assert events.tls_handshakes == (len(events.times) if has_tls else 0)
    for times in events.times:
        assert times.handshake_ns > 0
        assert times.total_ns >= (times.tcp_ns or 0) + (times.tls_ns or 0) + times.handshake_ns


@pytest.mark.parametrize("reach", DRIVERS)
def test_a_connect_over_tcp_has_tcp_and_handshake(reach: Reach) -> None:
    events = Events()
    with NotifyingServer() as server:
        reach(Target(url=server.url), events)
    check_total(events, has_tls=False)
    assert all(times.tcp_ns and times.tls_ns is None for times in events.times)


@pytest.mark.parametrize("reach", DRIVERS)
def test_a_connect_to_a_unix_socket_has_the_same_parts(reach: Reach) -> None:
    events = Events()
    with start_unix() as (group, _):
        reach(Target(url=group.url), events)
    check_total(events, has_tls=False)
    assert all(times.tcp_ns and times.tls_ns is None for times in events.times)


@pytest.mark.parametrize("reach", DRIVERS)
def test_tls_is_apart_except_with_asyncio_which_opens_it_together_with_tcp(
    reach: Reach, certificates: dict[str, str], tls_server_with: Callable[..., Group]
) -> None:
    events = Events()
    reach(Target(url=tls_server_with().url, tls=Tls(ca_file=certificates["ca"])), events)
    check_total(events, has_tls=True)
    for times in events.times:
        if reach is by_asyncio:
            assert (times.tcp_ns, times.tls_ns) == (None, None)
        else:
            assert times.tcp_ns
            assert times.tls_ns

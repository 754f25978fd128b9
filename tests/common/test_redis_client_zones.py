"""IPv6 addresses with a zone, in every shape of target."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from common.cancellation import Cancellation
from common.plan.schema import Target
from common.redis_client import nodes_of, ping_target, translate
from common.redis_client.connections.async_connections import AsyncObservedTls
from common.redis_client.connections.connection_tracking import Unobserved
from tests.support.drivers import EVERY_WAY, WRITTEN
from tests.support.servers import closed_port
from tests.support.shapes import Group, start_standalone, until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(scope="module")
def host() -> str:
    """Loopback with its zone, which of an address that is not link-local is a number."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    return f"::1%{next(index for index, name in socket.if_nameindex() if name.startswith('lo'))}"


@pytest.fixture(scope="module")
def server(host: str) -> Iterator[Group]:  # noqa: ARG001 - skips where there is no IPv6
    with start_standalone("--bind", "127.0.0.1", "::1") as group:
        yield group


def test_a_server_is_reached_by_an_address_with_a_zone(server: Group, host: str) -> None:
    (node,) = server.nodes
    for percent in ("%", "%25"):
        url = f"redis://[{host.replace('%', percent)}]:{node.port}"
        ping_target(Target(url=url))
    for reach in EVERY_WAY:
        assert reach(Target(url=url)) == WRITTEN


def test_a_cluster_that_announces_no_address_is_reached_by_one_with_a_zone(host: str) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(closed_port()), "--bind", "127.0.0.1", "::1")
    with start_standalone(*options) as group:
        (node,) = group.nodes
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(node.ask("CLUSTER", "INFO")))
        target = Target(url=f"redis+cluster://[{host}]:{node.port}")
        assert [(each.host, each.name) for each in nodes_of(target)] == [(host, f"[{host}]:{node.port}")]
        for reach in EVERY_WAY:
            assert reach(target) == WRITTEN


def test_the_name_in_a_certificate_has_no_zone() -> None:
    asked: dict[str, Any] = {"events": Unobserved(), "cancellation": Cancellation(), "port": 1}
    for host, server_name, name in (
        ("fe80::1%lo", None, "fe80::1"),
        ("fe80::1%lo", "redis.test", "redis.test"),
        ("redis.test", None, None),
    ):
        connection = AsyncObservedTls(host=host, server_name=server_name, **asked)
        assert connection._connection_arguments().get("server_hostname") == name


def test_the_error_of_a_link_local_address_without_a_zone_says_so() -> None:
    error: Any = redis.ConnectionError("Error 22 connecting to fe80::1:1. Invalid argument.")
    error.__cause__ = OSError(errno.EINVAL, "Invalid argument")
    assert "a link-local IPv6 address needs a zone, such as" in str(translate(error, Target(url="redis://[fe80::1]:1")))
    assert "zone" not in str(translate(error, Target(url="redis://[fe80::1%25lo]:1")))

"""Servers and proxies that know a part of the handshake only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.errors import TargetError
from common.plan.schema import Target
from common.redis_client import ping_target
from tests.support.clients import quick_target
from tests.support.drivers import EVERY_WAY, WRITTEN, Reach, by_client
from tests.support.servers import SocketServer
from tests.support.shapes import Group, start_standalone

pytestmark = pytest.mark.usefixtures("no_leaks")


def finding(target: Target) -> str:
    with pytest.raises(TargetError) as caught:
        ping_target(target)
    return str(caught.value)


@pytest.fixture(scope="module")
def without_client() -> Iterator[Group]:
    with start_standalone("--rename-command", "CLIENT", "") as group:
        yield group


@pytest.mark.parametrize("name", ["", None])
@pytest.mark.parametrize("reach", EVERY_WAY)
def test_without_a_client_name_no_client_command_is_sent(without_client: Group, reach: Reach, name: str | None) -> None:
    (node,) = without_client.nodes
    target = Target(url=without_client.url, client_name=name)
    with node.client(driver_info=None) as observer:
        observer.flushall()
        by_client(target)
        observer.config_resetstat()
        assert reach(target) == WRITTEN
        assert observer.info("stats")["total_error_replies"] == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_error_of_a_server_without_client_suggests_an_empty_name(without_client: Group, protocol: int) -> None:
    text = finding(quick_target(without_client.url, protocol=protocol))
    assert "refused CLIENT SETNAME: ERR unknown command" in text
    assert 'use --client-name ""' in text


@pytest.mark.parametrize("password", [None, "never-shown"])
def test_the_error_of_a_server_without_hello_suggests_protocol_2(password: str | None) -> None:
    with start_standalone("--rename-command", "HELLO", "", protocol=2) as group:
        if password:
            group.nodes[0].ask("CONFIG", "SET", "requirepass", password)
        text = finding(quick_target(group.url, password=password))
        assert "refused HELLO" in text
        assert "use --protocol 2" in text
        ping_target(quick_target(group.url, password=password, protocol=2))


def test_the_password_in_a_hello_that_an_old_server_quotes_is_not_shown() -> None:
    reply = b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `never-shown`, \r\n"
    with SocketServer(reply=reply) as server:
        text = finding(quick_target(server.url, password="never-shown"))
        assert "refused HELLO, the first command of RESP3: ERR unknown command `HELLO`: use --protocol 2" in text
        assert "never-shown" not in text


def test_the_error_of_a_proxy_that_closes_at_hello_suggests_protocol_2(closing_server: SocketServer) -> None:
    assert "use --protocol 2" in finding(quick_target(closing_server.url))
    assert 'use --client-name ""' in finding(quick_target(closing_server.url, protocol=2))

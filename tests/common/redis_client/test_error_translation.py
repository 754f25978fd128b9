"""Errors of redis-py as one line, and as the failure of an operation."""

from __future__ import annotations

import socket

import pytest
import redis

from common.errors import TargetError
from common.plan.schema import Target
from common.redis_client import Failure, address_of, failure_of, open_control_client, ping_target, translated
from tests.support.clients import quick_target
from tests.support.servers import Server, SocketServer

WRONG = "not the password"


def finding(target: Target) -> str:
    with pytest.raises(TargetError) as caught:
        ping_target(target)
    text = str(caught.value)
    assert str(address_of(target)) in text
    assert "\n" not in text
    return text


# What is wrong with a target, in one line


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_target_that_answers_raises_nothing(valkey: Server, protocol: int) -> None:
    ping_target(quick_target(valkey.url, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_right_password_works_from_the_plan_and_from_the_url(valkey_with_password: Server, protocol: int) -> None:
    password = valkey_with_password.password
    assert password is not None
    ping_target(quick_target(valkey_with_password.url, protocol=protocol, password=password))
    ping_target(quick_target(valkey_with_password.url.replace("//", f"//:{password.replace(' ', '%20')}@")))


def test_a_port_without_a_listener_is_one_line(refusing_url: str) -> None:
    assert "nothing listens there" in finding(quick_target(refusing_url))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_target_that_hangs_did_not_answer(silent_server: SocketServer, protocol: int) -> None:
    assert "did not answer (waited up to 200ms" in finding(quick_target(silent_server.url, protocol=protocol))


def test_an_unreachable_target_did_not_answer(deaf_url: str) -> None:
    assert "did not answer" in finding(quick_target(deaf_url))


def test_an_unknown_host_name_is_one_line() -> None:
    assert "cannot be resolved" in finding(quick_target("redis://no-such-host.invalid"))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_missing_password_is_one_line(valkey_with_password: Server, protocol: int) -> None:
    text = finding(quick_target(valkey_with_password.url, protocol=protocol))
    assert "requires a password" in text
    assert "password_env" in text


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_wrong_password_is_one_line_and_not_shown(valkey_with_password: Server, protocol: int) -> None:
    text = finding(quick_target(valkey_with_password.url, protocol=protocol, password=WRONG))
    assert "refused our user name and password" in text
    assert WRONG not in text


def test_an_unneeded_password_is_one_line(valkey: Server) -> None:
    text = finding(quick_target(valkey.url, protocol=2, password=WRONG))
    assert "refused our password" in text
    assert WRONG not in text


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_web_server_does_not_speak_resp(http_server: SocketServer, protocol: int) -> None:
    assert "does not speak RESP" in finding(quick_target(http_server.url, protocol=protocol))


def test_a_server_that_speaks_first_does_not_speak_resp(smtp_server: SocketServer) -> None:
    assert "does not speak RESP" in finding(quick_target(smtp_server.url))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_that_answers_ok_to_everything_does_not_speak_resp(protocol: int) -> None:
    with SocketServer(reply=b"+OK\r\n") as server:
        assert "does not speak RESP" in finding(quick_target(server.url, protocol=protocol))


def test_a_server_that_closes_may_not_be_redis(closing_server: SocketServer) -> None:
    assert "is it Redis, and not its TLS port?" in finding(quick_target(closing_server.url))


def test_an_unknown_database_is_one_line_with_the_existing_ones(valkey: Server) -> None:
    assert "has databases 0 to 15 only, and no 99" in finding(quick_target(f"{valkey.url}/99"))


def test_a_command_without_permission_is_one_line(valkey: Server) -> None:
    valkey.client().execute_command("ACL", "SETUSER", "bob", "on", ">secret", "+ping", "+client", "+hello")
    target = quick_target(valkey.url, username="bob", password="secret")
    with pytest.raises(TargetError, match="does not permit a command: NOPERM") as caught, translated(target):  # noqa: PT012
        client = open_control_client(target)
        client.info()
    client.close()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_that_is_still_loading_is_one_line(protocol: int) -> None:
    with SocketServer(reply=b"-LOADING Redis is loading the dataset in memory\r\n") as server:
        text = finding(quick_target(server.url, protocol=protocol, client_name=None))
    assert "is still loading its data" in text
    assert "try again later" in text


def test_a_full_server_is_one_line_with_its_own_words(valkey: Server) -> None:
    admin = valkey.client()
    admin.config_set("maxclients", 1)
    text = finding(quick_target(valkey.url))
    assert "refused the connection: ERR max number of clients reached" in text
    assert "TLS" not in text


# How an operation ended


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("LPUSH", "text", "x"), "WRONGTYPE"),
        (("NOSUCH",), "ERR"),
        (("GET",), "ERR"),
        (("INCR", "text"), "ERR"),
        (("EVALSHA", "0" * 40, "0"), "NOSCRIPT"),
    ],
)
def test_an_error_reply_has_its_code_and_its_exact_size(valkey: Server, arguments: tuple[str, ...], code: str) -> None:
    client = valkey.client()
    client.set("text", "abc")
    with pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*arguments)
    failure = failure_of(caught.value)
    assert (failure.replied, failure.name) == (True, code)
    with socket.create_connection(("127.0.0.1", valkey.port), timeout=5.0) as raw:
        raw.sendall(client.connection_pool.make_connection().pack_command(*arguments)[0])
        assert failure.bytes_in == len(raw.recv(65536))


def test_a_read_only_server_is_named_by_its_code() -> None:
    error = redis.ReadOnlyError("You can't write against a read only replica.", status_code="READONLY")
    text = b"-READONLY You can't write against a read only replica.\r\n"
    assert failure_of(error) == Failure(True, "READONLY", len(text))


@pytest.mark.parametrize("error", [redis.ConnectionError("x"), redis.TimeoutError("x"), ValueError("x")])
def test_a_failure_without_a_reply_is_named_by_its_class(error: Exception) -> None:
    assert failure_of(error) == Failure(False, type(error).__name__, 0)

"""Errors in one line; and the contract with redis-py: which of its hooks are called, how often, and when."""

from __future__ import annotations

import copy
import socket
import threading

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import BackoffKind, Pools, Target
from common.redis_client import (
    TARGET_ERRORS,
    Failure,
    address_of,
    build_client,
    failure_of,
    open_control_client,
    ping_target,
    translated,
)
from common.units import NS_PER_S, Seconds
from tests.support.clients import QUICK, Events, NoFiles, quick_client, quick_target
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
def test_a_right_password_lets_us_in_from_the_plan_as_from_the_url(valkey_with_password: Server, protocol: int) -> None:
    password = valkey_with_password.password
    assert password is not None
    ping_target(quick_target(valkey_with_password.url, protocol=protocol, password=password))
    ping_target(quick_target(valkey_with_password.url.replace("//", f"//:{password.replace(' ', '%20')}@")))


def test_nobody_listening_is_said_as_such(refusing_url: str) -> None:
    assert "nothing listens there" in finding(quick_target(refusing_url))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_target_that_hangs_is_said_to_give_no_answer(silent_server: SocketServer, protocol: int) -> None:
    assert "did not answer (waited up to 200ms" in finding(quick_target(silent_server.url, protocol=protocol))


def test_a_target_that_cannot_be_reached_is_said_to_give_no_answer(deaf_url: str) -> None:
    assert "did not answer" in finding(quick_target(deaf_url))


def test_a_name_that_means_no_host_is_said_as_such() -> None:
    assert "cannot be resolved" in finding(quick_target("redis://no-such-host.invalid"))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_missing_password_is_asked_for(valkey_with_password: Server, protocol: int) -> None:
    text = finding(quick_target(valkey_with_password.url, protocol=protocol))
    assert "wants a password" in text
    assert "password_env" in text


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_wrong_password_is_said_to_be_wrong_and_not_shown(valkey_with_password: Server, protocol: int) -> None:
    text = finding(quick_target(valkey_with_password.url, protocol=protocol, password=WRONG))
    assert "refused our user name and password" in text
    assert WRONG not in text


def test_a_password_that_nobody_wants_is_said_as_such(valkey: Server) -> None:
    text = finding(quick_target(valkey.url, protocol=2, password=WRONG))
    assert "refused our password" in text
    assert WRONG not in text


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_web_server_is_told_from_redis(http_server: SocketServer, protocol: int) -> None:
    assert "does not speak RESP" in finding(quick_target(http_server.url, protocol=protocol))


def test_a_server_that_speaks_first_is_told_from_redis(smtp_server: SocketServer) -> None:
    assert "does not speak RESP" in finding(quick_target(smtp_server.url))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_that_agrees_to_everything_is_told_from_redis(protocol: int) -> None:
    with SocketServer(reply=b"+OK\r\n") as server:
        assert "does not speak RESP" in finding(quick_target(server.url, protocol=protocol))


def test_a_server_that_closes_is_asked_whether_it_is_redis(closing_server: SocketServer) -> None:
    assert "is it Redis, and not its TLS port?" in finding(quick_target(closing_server.url))


def test_a_database_that_does_not_exist_is_said_with_those_that_do(valkey: Server) -> None:
    assert "has databases 0 to 15 only, and no 99" in finding(quick_target(f"{valkey.url}/99"))


def test_a_command_that_is_not_permitted_is_said_as_such(valkey: Server) -> None:
    valkey.client().execute_command("ACL", "SETUSER", "bob", "on", ">secret", "+ping", "+client", "+hello")
    target = quick_target(valkey.url, username="bob", password="secret")
    with pytest.raises(TargetError, match="does not permit it: NOPERM") as caught, translated(target):  # noqa: PT012
        client = open_control_client(target)
        client.info()
    client.close()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_that_is_still_loading_is_said_as_such(protocol: int) -> None:
    with SocketServer(reply=b"-LOADING Redis is loading the dataset in memory\r\n") as server:
        text = finding(quick_target(server.url, protocol=protocol, client_name=None))
    assert "is still loading its data" in text
    assert "try again later" in text


def test_no_representation_of_what_holds_the_password_shows_it(valkey_with_password: Server) -> None:
    secret = valkey_with_password.password
    assert secret is not None
    target = quick_target(valkey_with_password.url, password=secret)
    client = build_client(target, Pools(max_connections=1), events=Events(), cancellation=Cancellation())
    with client, open_control_client(target) as control:
        client.ping()
        connection = client.connection_pool.get_connection()
        held = [target, address_of(target), client, client.connection_pool, connection, control, connection.retry]
        client.connection_pool.release(connection)
        shown = [text for each in held for text in (repr(each), str(each))]
    assert [text for text in shown if secret in text] == []


def test_the_control_client_tries_nothing_twice_and_opens_one_connection(valkey: Server) -> None:
    with open_control_client(quick_target(valkey.url)) as client:
        client.ping()
        first = client.client_id()
        valkey.client().execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
        began_ns = monotonic_ns()
        with pytest.raises(redis.TimeoutError):
            client.set("x", "y")
        assert monotonic_ns() - began_ns < 10 * QUICK.ns
        valkey.client().client_unpause()
        assert client.client_id() != first
        assert client.connection_pool.max_connections == 1


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
def test_an_error_reply_is_named_by_its_code_and_measured_to_the_byte(
    valkey: Server, arguments: tuple[str, ...], code: str
) -> None:
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
def test_what_ended_without_a_reply_is_named_by_its_class(error: Exception) -> None:
    assert failure_of(error) == Failure(False, type(error).__name__, 0)


def test_a_refused_handshake_is_no_reply_to_the_operation_that_wanted_the_connection(valkey: Server) -> None:
    admin = valkey.client()
    admin.ping()
    admin.config_set("maxclients", 1)
    with (
        quick_client(valkey.url, Events(), Cancellation(), retries=0) as client,
        pytest.raises(redis.RedisError) as caught,
    ):
        client.execute_command("GET", "key")
    failure = failure_of(caught.value)
    assert (failure.replied, failure.bytes_in) == (False, 0)
    assert failure.name == "handshake: maxclients"


# The contract with redis-py


def test_a_connect_is_told_once_with_its_handshake_done(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        assert events.seen == []
        client.ping()
        client.ping()
        assert events.seen == [("opened", None)]
    assert events.kinds == {"opened": 1, "closed": 1}


def test_closing_on_purpose_twice_is_told_once_and_is_no_drop(valkey: Server) -> None:
    events = Events()
    client = quick_client(valkey.url, events)
    client.ping()
    client.close()
    client.close()
    assert events.kinds == {"opened": 1, "closed": 1}


def test_an_idle_connection_that_the_server_closed_is_a_drop_and_a_reconnect(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        client.ping()
        valkey.client().client_kill_filter(_type="normal", skipme=True)
        assert client.ping()
        assert [kind for kind, _ in events.seen] == ["opened", "dropped", "opened"]
        assert events["dropped"] == ["closed by server"]
        assert 0 < events.dropped_ns < monotonic_ns()
        assert 0 < events["opened"][1] < 5 * NS_PER_S


def test_a_reconnect_takes_from_the_drop_to_the_end_of_the_new_handshake(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        client.ping()
        valkey.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("x")
        # Still lost: the handshake hangs, and the attempt fails.
        with pytest.raises(redis.TimeoutError):
            client.get("x")
        valkey.resume()
        client.ping()
        up_ns = monotonic_ns()
    assert [kind for kind, _ in events.seen] == ["opened", "dropped", "attempt failed", "opened", "closed"]
    assert QUICK.ns < events["opened"][1] <= up_ns - events.dropped_ns


def test_a_reply_that_does_not_come_is_a_drop_by_timeout_and_no_second_one(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        client.ping()
        valkey.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("x")
        valkey.resume()
        assert events["dropped"] == ["timeout"]
        client.ping()
        assert events.kinds == {"opened": 2, "dropped": 1}
        assert events["opened"][1] > 0


def test_each_retry_of_a_command_is_counted_once(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events, retries=2) as client:
        client.ping()
        valkey.client().execute_command(
            "CLIENT", "PAUSE", 30_000, "WRITE"
        )  # a handshake passes, so only SET is retried
        with pytest.raises(redis.TimeoutError):
            client.set("x", "y")
        valkey.client().client_unpause()
        assert events.kinds == {"opened": 3, "dropped": 3, "retried": 2}


def _time_out() -> None:
    raise redis.TimeoutError("as if no reply had come")


def test_each_failed_attempt_and_each_retry_of_a_connect_is_counted_once(refusing_url: str) -> None:
    events = Events()
    with quick_client(refusing_url, events, retries=3) as client:
        with pytest.raises(redis.ConnectionError):
            client.ping()
        assert events.kinds == {"attempt failed": 4, "retried": 3}
    assert events["attempt failed"] == ["refused"] * 4
    assert (events.made, events.tries) == (1, [1] * 4)


def test_a_failed_handshake_is_a_failed_attempt_and_no_drop(valkey_with_password: Server) -> None:
    events = Events()
    with quick_client(valkey_with_password.url, events) as client:
        with pytest.raises(redis.AuthenticationError):
            client.ping()
        assert events.seen == [("attempt failed", "authentication")]


def test_a_handshake_that_hangs_is_a_failed_attempt_and_no_drop(silent_server: SocketServer) -> None:
    events = Events()
    with quick_client(silent_server.url, events) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert events.seen == [("attempt failed", "timeout")]


def test_a_server_that_has_too_many_clients_is_a_cause_of_its_own(valkey: Server) -> None:
    admin, events = valkey.client(), Events()
    admin.ping()
    admin.config_set("maxclients", 1)
    with quick_client(valkey.url, events) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    assert events.seen == [("attempt failed", "maxclients")]


def test_a_process_without_a_file_left_is_a_cause_of_its_own(refusing_url: str, no_files_left: NoFiles) -> None:
    events = Events()
    with quick_client(refusing_url, events) as client, no_files_left(), pytest.raises(redis.ConnectionError):
        client.ping()
    assert events.seen == [("attempt failed", "ulimit -n")]


def test_a_connection_reset_under_a_command_is_a_drop_by_its_error(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        connection = client.connection_pool.get_connection()
        valkey.kill()
        with pytest.raises(TARGET_ERRORS):  # noqa: PT012 - either of the two may be the one that notices
            connection.send_command("PING")
            connection.read_response()
        client.connection_pool.release(connection)
        assert events.kinds == {"opened": 1, "dropped": 1}
        assert events["dropped"][0] in ("closed by server", "ConnectionResetError", "BrokenPipeError")


def test_a_retry_policy_is_always_passed_and_is_the_plans(valkey: Server) -> None:
    for kind in BackoffKind:
        with quick_client(valkey.url, Events(), retries=7, backoff=kind) as client:
            connection = client.connection_pool.get_connection()
            assert connection.retry.get_retries() == 7
            client.connection_pool.release(connection)


def test_every_connection_has_its_own_state_of_the_policy_and_the_same_events(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events, retries=1, backoff=BackoffKind.DECORRELATED_JITTER) as client:
        pool = client.connection_pool
        first, second = pool.get_connection(), pool.get_connection()
        assert first.retry is not second.retry
        assert first.retry._backoff is not second.retry._backoff
        assert first.retry._backoff.inner is not second.retry._backoff.inner
        for connection in (first, second):
            with pytest.raises(redis.TimeoutError):
                connection.retry.call_with_retry(_time_out, lambda _error: None)
            pool.release(connection)
        assert events.kinds["retried"] == 2


def test_redis_py_copies_a_retry_into_each_connection() -> None:
    retry = RedisRetry(NoBackoff(), 1)
    assert copy.deepcopy(retry) is not retry
    assert redis.Connection(retry=retry).retry is not retry


def test_maintenance_notifications_are_off_and_cost_no_round_trip(valkey: Server) -> None:
    with quick_client(valkey.url, Events()) as client:
        client.ping()
        assert not client.connection_pool.maint_notifications_enabled()
    assert not any("maint" in name for name in valkey.client().info("commandstats"))


def test_the_client_name_and_the_driver_are_told_to_the_server(valkey: Server) -> None:
    with quick_client(valkey.url, Events()) as client:
        mine = next(entry for entry in client.client_list() if entry["name"] == "stampede")
    assert mine["lib-name"].startswith("redis-py")
    assert mine["resp"] == "3"


# Cut short


def test_a_cut_ends_a_long_backoff_at_once(refusing_url: str) -> None:
    events, cancellation = Events(), Cancellation()
    raised: list[BaseException] = []

    def ping() -> None:
        with quick_client(
            refusing_url, events, cancellation, retries=9, backoff=BackoffKind.CONSTANT, base_s=Seconds(600.0)
        ) as client:
            try:
                client.ping()
            except CutShort as error:
                raised.append(error)

    thread = threading.Thread(target=ping)
    thread.start()
    assert events.first_retry.wait(10.0)
    cancellation.cancel()
    thread.join(10.0)
    assert not thread.is_alive()
    assert len(raised) == 1


def test_a_cut_ends_a_wait_for_a_reply_at_once_and_is_no_drop(valkey: Server) -> None:
    events, cancellation = Events(), Cancellation()
    client = build_client(
        Target(url=valkey.url, socket_timeout_s=Seconds(600.0)),
        Pools(max_connections=1),
        events=events,
        cancellation=cancellation,
    )
    client.ping()
    valkey.pause()
    ended = threading.Event()

    def get() -> None:
        with pytest.raises((CutShort, redis.ConnectionError)):
            client.get("x")
        ended.set()

    thread = threading.Thread(target=get)
    thread.start()
    cancellation.cancel()
    thread.join(10.0)
    assert ended.is_set()
    valkey.resume()
    client.close()
    assert events.kinds == {"opened": 1, "closed": 1}


def test_nothing_connects_after_a_cut(valkey: Server) -> None:
    events, cancellation = Events(), Cancellation()
    cancellation.cancel()
    with quick_client(valkey.url, events, cancellation) as client, pytest.raises(CutShort):
        client.ping()
    assert events.seen == []


def test_a_server_that_is_full_is_said_to_refuse_in_its_own_words(valkey: Server) -> None:
    admin = valkey.client()
    admin.config_set("maxclients", 1)
    text = finding(quick_target(valkey.url))
    assert "refused the connection: ERR max number of clients reached" in text
    assert "TLS" not in text

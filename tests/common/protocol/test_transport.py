from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import zmq

from common.errors import UsageError
from common.protocol import transport
from common.protocol.listener import Listener
from common.protocol.messages import MAX_MESSAGE_BYTES
from common.protocol.transport import (
    Context,
    CurveClient,
    CurveServer,
    Dialer,
    LinkEvent,
    key_pair_of,
    new_key_pair,
)
from tests.support.links import AGENT, ANYWHERE, CLIENT, COORDINATOR, PATIENCE_S, SERVER, Bench
from tests.support.runs import wait_until
from tests.support.servers import SocketServer

REFUSED = [
    pytest.param(CurveClient(new_key_pair(), COORDINATOR.public), id="another agent's key"),
    pytest.param(CurveClient(AGENT, new_key_pair().public), id="another coordinator's key"),
    pytest.param(None, id="no keys"),
]

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(stack: ExitStack) -> Bench:
    """With keys."""
    return Bench(stack, SERVER)


@pytest.fixture
def insecure(stack: ExitStack) -> Bench:
    """Without."""
    return Bench(stack, None)


def test_an_agent_with_the_token_exchanges_messages(bench: Bench) -> None:
    dialer = bench.dial(CLIENT)
    bench.until_up(dialer)
    assert dialer.send(b"hello")
    assert bench.until(lambda: bench.heard) == [b"hello"]
    assert bench.answer(b"hello", b"welcome")
    assert bench.until(lambda: bench.answers[dialer]) == [b"welcome"]
    assert not bench.listener.count_refused()


@pytest.mark.parametrize("endpoint", ["tcp://[::1]:*", "tcp://[::]:*"])
def test_an_agent_connects_over_ipv6(stack: ExitStack, endpoint: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    bench = Bench(stack, SERVER, endpoint)
    dialer = bench.dial(CLIENT, f"tcp://[::1]:{bench.listener.port}")
    assert dialer.send(b"hello") or bench.until(lambda: dialer.send(b"hello"))
    assert bench.until(lambda: bench.heard) == [b"hello"]


def test_both_sides_can_do_without_keys(insecure: Bench) -> None:
    dialer = insecure.dial(None)
    insecure.until_up(dialer)
    dialer.send(b"hello")
    assert insecure.until(lambda: insecure.heard) == [b"hello"]


@pytest.mark.parametrize("curve", REFUSED)
def test_an_agent_with_other_keys_is_refused_and_counted(bench: Bench, curve: CurveClient | None) -> None:
    dialer = bench.dial(curve)
    bench.until(lambda: bench.listener.count_refused())
    bench.until(lambda: LinkEvent.REFUSED in bench.events[dialer] or curve is None)
    assert LinkEvent.UP not in bench.events[dialer]
    assert not dialer.send(b"hello")
    assert bench.heard == []


def test_an_agent_with_keys_refuses_a_coordinator_without(insecure: Bench) -> None:
    dialer = insecure.dial(CLIENT)
    insecure.until(lambda: LinkEvent.REFUSED in insecure.events[dialer] or insecure.listener.count_refused())
    assert LinkEvent.UP not in insecure.events[dialer]
    assert not dialer.send(b"hello")


def test_a_refused_agent_does_not_block_others(bench: Bench) -> None:
    bench.dial(CurveClient(new_key_pair(), COORDINATOR.public))
    bench.until(lambda: bench.listener.count_refused())
    dialer = bench.dial(CLIENT)
    bench.until_up(dialer)
    dialer.send(b"hello")
    assert bench.until(lambda: bench.heard) == [b"hello"]


def test_a_refused_agent_keeps_trying_and_gets_an_event_each_time(bench: Bench) -> None:
    dialer = bench.dial(CurveClient(new_key_pair(), COORDINATOR.public))
    bench.until(lambda: bench.events[dialer].count(LinkEvent.REFUSED) >= 3)


def test_an_agent_joins_the_next_coordinator_with_its_token(bench: Bench) -> None:
    keys = new_key_pair()
    dialer = bench.dial(CurveClient(AGENT, keys.public))
    bench.until(lambda: LinkEvent.REFUSED in bench.events[dialer])
    bench.listen_again(CurveServer(keys, AGENT.public))
    bench.until_up(dialer)


def test_nothing_is_queued_while_there_is_no_coordinator(insecure: Bench) -> None:
    endpoint = insecure.listener.endpoint
    insecure.listener.close()
    with Context() as context, Dialer(context, endpoint, None) as dialer:
        assert not dialer.send(b"stale")


def test_a_lost_connection_is_noticed_and_reopened(insecure: Bench) -> None:
    dialer = insecure.dial(None)
    insecure.until_up(dialer)
    insecure.listen_again(None)
    insecure.until(lambda: LinkEvent.DOWN in insecure.events[dialer])
    insecure.until(lambda: insecure.events[dialer].count(LinkEvent.UP) == 2)
    insecure.until(lambda: dialer.send(b"again"))
    assert insecure.until(lambda: insecure.heard) == [b"again"]


def test_each_connection_has_a_routing_id_of_its_own(insecure: Bench) -> None:
    first, second = insecure.dial(None), insecure.dial(None)
    for dialer, said in ((first, b"one"), (second, b"two")):
        insecure.until_up(dialer)
        dialer.send(said)
    insecure.until(lambda: len(insecure.heard) == 2)
    assert len({routing_id for routing_id, _ in insecure.received}) == 2
    assert insecure.answer(b"two", b"for the second")
    assert insecure.until(lambda: insecure.answers[second]) == [b"for the second"]
    assert not insecure.answers[first]


def test_only_the_message_to_an_absent_agent_is_lost(insecure: Bench) -> None:
    insecure.listener.send(b"nobody", b"hello")
    gone, there = insecure.dial(None), insecure.dial(None)
    for dialer, said in ((gone, b"one"), (there, b"two")):
        insecure.until_up(dialer)
        dialer.send(said)
        insecure.until(lambda said=said: said in insecure.heard)  # type: ignore[misc]
    insecure.hang_up(gone)
    assert insecure.answer(b"one", b"are you there?")
    assert insecure.answer(b"two", b"for the other")
    assert insecure.until(lambda: insecure.answers[there]) == [b"for the other"]


def test_a_message_that_is_too_large_ends_its_connection(insecure: Bench) -> None:
    dialer = insecure.dial(None)
    insecure.until_up(dialer)
    dialer.send(bytes(2 * MAX_MESSAGE_BYTES))
    insecure.until(lambda: LinkEvent.DOWN in insecure.events[dialer])
    assert insecure.heard == []
    other = insecure.dial(None)
    insecure.until_up(other)
    other.send(b"small")
    insecure.until(lambda: b"small" in insecure.heard)


def test_a_peer_that_sends_messages_of_several_parts_is_cut(insecure: Bench) -> None:
    dialer = insecure.dial(None)
    insecure.until_up(dialer)
    dialer.socket.send_multipart([b"one", b"two", b"three"])
    insecure.until(lambda: LinkEvent.DOWN in insecure.events[dialer])
    assert insecure.heard == []
    [line] = insecure.until(insecure.listener.take_floods)
    assert line.startswith("cut a connection of a peer at 127.0.0.1:")
    assert line.endswith(": messages of several parts")


def test_a_port_in_use_is_one_line(insecure: Bench) -> None:
    with Context() as context, pytest.raises(UsageError, match="address already in use") as raised:
        Listener(context, insecure.listener.endpoint, None)
    assert str(raised.value).isprintable()
    assert "expected a free address" in str(raised.value)


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "tcp://", "tcp://127.0.0.1", "tcp://192.0.2.1:5555", "udp://127.0.0.1:5"]
)
def test_an_address_that_cannot_be_bound_is_one_line(endpoint: str) -> None:
    with Context() as context, pytest.raises(UsageError, match="--bind") as raised:
        Listener(context, endpoint, None)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://", "tcp://127.0.0.1", "udp://127.0.0.1:5"])
def test_an_address_that_cannot_be_connected_to_is_one_line(endpoint: str) -> None:
    with Context() as context, pytest.raises(UsageError, match="expected an address") as raised:
        Dialer(context, endpoint, None)
    assert str(raised.value).isprintable()


def test_a_listener_on_any_port_reports_its_port(insecure: Bench) -> None:
    assert insecure.listener.port > 0
    assert insecure.listener.endpoint == f"tcp://127.0.0.1:{insecure.listener.port}"


@pytest.mark.parametrize("server", ["silent_server", "closing_server", "http_server", "smtp_server"])
def test_a_port_of_another_program_never_comes_up(bench: Bench, server: str, request: pytest.FixtureRequest) -> None:
    other: SocketServer = request.getfixturevalue(server)
    dialer = bench.dial(CLIENT, f"tcp://127.0.0.1:{other.port}")
    fine = bench.dial(CLIENT)
    bench.until_up(fine)
    if server != "silent_server":
        bench.until(lambda: bench.events[dialer])
    assert LinkEvent.UP not in bench.events[dialer]
    assert not dialer.send(b"hello")


def test_closing_twice_does_no_harm() -> None:
    context = Context()
    listener = Listener(context, ANYWHERE, SERVER)
    dialer = Dialer(context, listener.endpoint, CLIENT)
    for _ in range(2):
        dialer.close()
        listener.close()
        context.close()


def test_refusals_are_counted_by_cause(bench: Bench) -> None:
    bench.dial(CurveClient(new_key_pair(), COORDINATOR.public))
    bench.until(lambda: bench.listener.count_refused()["another token"])
    bench.dial(CurveClient(AGENT, new_key_pair().public))
    bench.until(lambda: bench.listener.count_refused()["another token"] > 1)
    assert set(bench.listener.count_refused()) == {"another token"}
    with socket.create_connection(("127.0.0.1", bench.listener.port)):
        pass
    bench.until(lambda: bench.listener.count_refused()["no agent, or a connection that broke off"])


def test_a_dialer_can_change_its_address(insecure: Bench) -> None:
    dialer = insecure.dial(None, "tcp://127.0.0.1:9")
    assert dialer.missing
    for _ in range(2):
        dialer.dial(insecure.listener.endpoint)
    insecure.until_up(dialer)
    dialer.send(b"hello")
    assert insecure.until(lambda: insecure.heard) == [b"hello"]


def test_a_dialer_without_an_address_waits_for_one(insecure: Bench) -> None:
    dialer = insecure.dial(None, "")
    assert not dialer.send(b"hello")
    dialer.dial(insecure.listener.endpoint)
    insecure.until_up(dialer)


def test_a_key_pair_follows_from_its_secret_and_does_not_show_it() -> None:
    keys = new_key_pair()
    assert key_pair_of(keys.secret) == keys
    assert keys.secret.decode() not in repr(keys)


@pytest.mark.parametrize("secret", [b"", b"short", b"~" * 40, b"#" * 40])
def test_anything_but_a_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"Z85|z85"):
        key_pair_of(secret)


def test_an_agent_works_while_its_coordinator_cuts_every_connection(stack: ExitStack) -> None:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    server.settimeout(PATIENCE_S)
    context = stack.enter_context(Context())
    dialer = stack.enter_context(Dialer(context, f"tcp://127.0.0.1:{server.getsockname()[1]}", None))
    for _ in range(8):
        server.accept()[0].close()
        assert LinkEvent.UP not in list(dialer.link_events())
        assert not dialer.send(b"hello")
        assert list(dialer.receive()) == []
    wait_until(lambda: list(dialer.link_events()) and dialer.missing == "it is cut in its handshake", "it knows")


def test_an_agent_disconnects_from_a_coordinator_that_floods_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_FLOOD", 1_000)
    context = stack.enter_context(Context())
    router = stack.enter_context(closing(context.socket(zmq.ROUTER)))
    router.setsockopt(zmq.SNDHWM, 0)
    router.setsockopt(zmq.LINGER, 0)
    router.bind(ANYWHERE)
    dialer = stack.enter_context(Dialer(context, router.getsockopt_string(zmq.LAST_ENDPOINT), None))
    events: list[LinkEvent] = []
    wait_until(lambda: events.extend(dialer.link_events()) or LinkEvent.UP in events, "it is up")
    dialer.send(b"hello")
    routing_id, _ = router.recv_multipart()
    for _ in range(10_000):
        router.send_multipart((routing_id, b"flood"))
    taken: list[bytes] = []
    wait_until(
        lambda: taken.extend(dialer.receive()) or events.extend(dialer.link_events()) or LinkEvent.DOWN in events,
        "it hangs up",
    )
    assert len(taken) < 2_000
    wait_until(lambda: events.extend(dialer.link_events()) or events[-1] is LinkEvent.UP, "it comes back")
    assert list(dialer.receive()) == []

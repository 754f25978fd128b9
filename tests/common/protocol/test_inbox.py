from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.protocol import inbox as module
from common.protocol.inbox import MAX_MESSAGES, MAX_UNKNOWN_BYTES, MAX_UNKNOWN_MESSAGES, Connection, Inbox, PutResult


def control(name: str) -> Connection:
    return Connection(name.encode(), name=name)


def metrics(name: str) -> Connection:
    return Connection(name.encode(), name=name, metrics=True)


def filled(*connections: Connection, each: int = 1) -> Inbox:
    """So many messages on each of these."""
    inbox = Inbox()
    for connection in connections:
        for number in range(each):
            assert inbox.put(connection, b"%d" % number) is PutResult.TAKEN
    return inbox


def speakers(taken: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [routing_id for routing_id, _ in taken]


def test_messages_of_one_connection_are_taken_in_order() -> None:
    inbox = filled(control("a"), each=20)
    assert [data for _, data in inbox.take(100)] == [b"%d" % number for number in range(20)]
    assert not inbox
    assert inbox.take(100) == []


def test_control_messages_are_taken_before_metrics() -> None:
    inbox = filled(metrics("a"), control("b"), metrics("c"), control("d"))
    assert speakers(inbox.take(10)) == [b"b", b"d", b"a", b"c"]


def test_one_connection_cannot_starve_the_others() -> None:
    inbox = filled(control("loud"), each=1_000)
    inbox.put(control("quiet"), b"here")
    assert b"quiet" in speakers(inbox.take(10))


def test_endless_control_messages_cannot_starve_metrics() -> None:
    inbox = filled(*(control(f"a{number}") for number in range(100)), each=8)
    inbox.put(metrics("frames"), b"frame")
    assert b"frames" in speakers(inbox.take(256))


def test_more_may_wait_on_a_connection_with_a_known_agent() -> None:
    unknown = Connection(b"?")
    inbox = filled(unknown, each=MAX_UNKNOWN_MESSAGES)
    assert inbox.put(unknown, b"one more") is PutResult.FLOOD
    unknown.name = "web1"
    assert inbox.put(unknown, b"one more") is PutResult.TAKEN
    agent = control("web2")
    inbox = filled(agent, each=MAX_MESSAGES)
    assert inbox.put(agent, b"one more") is PutResult.FLOOD


def test_a_few_large_messages_of_an_unknown_peer_are_a_flood() -> None:
    inbox, unknown = Inbox(), Connection(b"?")
    assert inbox.put(unknown, bytes(MAX_UNKNOWN_BYTES)) is PutResult.TAKEN
    assert inbox.put(unknown, b"x") is PutResult.FLOOD


def test_a_cut_connection_has_no_messages_and_gets_none() -> None:
    loud, other = control("loud"), control("other")
    inbox = filled(loud, other, each=5)
    inbox.drop(loud)
    assert inbox.put(loud, b"late") is PutResult.FLOOD
    assert speakers(inbox.take(100)) == [b"other"] * 5
    assert inbox.total == 0


def test_frames_beyond_the_total_limit_are_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 10)
    inbox = Inbox()
    assert inbox.put(metrics("a"), bytes(6)) is PutResult.TAKEN
    assert inbox.put(metrics("b"), bytes(6)) is PutResult.DISCARDED
    assert inbox.put(control("a"), bytes(6)) is PutResult.TAKEN
    inbox.take(10)
    assert inbox.put(metrics("b"), bytes(6)) is PutResult.TAKEN


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 9)), max_size=60), st.integers(1, 20))
def test_every_message_is_taken_once_and_in_order(put: list[tuple[int, bool, int]], most: int) -> None:
    connections = [Connection(b"%d" % number, name="agent", metrics=number > 1) for number in range(4)]
    inbox, expected = Inbox(), {connection.routing_id: list[bytes]() for connection in connections}
    taken = {connection.routing_id: list[bytes]() for connection in connections}
    for number, (which, takes, count) in enumerate(put):
        connection = connections[which]
        for part in range(count):
            data = b"%d %d" % (number, part)
            assert inbox.put(connection, data) is PutResult.TAKEN
            expected[connection.routing_id].append(data)
        for routing_id, data in inbox.take(most) if takes else []:
            taken[routing_id].append(data)
    while inbox:
        for routing_id, data in inbox.take(most):
            taken[routing_id].append(data)
    assert taken == expected
    assert inbox.total == sum(connection.size for connection in connections) == 0


def test_two_connections_are_never_equal() -> None:
    assert control("a") != replace(control("a"))

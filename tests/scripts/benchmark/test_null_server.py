from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark.null_server import SummedCounters, open_null_server
from scripts.benchmark.null_server_program import OK, RequestParser

tricky = st.binary(max_size=40) | st.sampled_from(
    [b"*3\r\n$3\r\nSET\r\n", b"\r\n*1\r\n$4\r\nPING\r\n", b"\r\n" * 9, b"$"]
)
request_lists = st.lists(st.tuples(tricky, tricky) | st.tuples(tricky), min_size=1, max_size=12)


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def in_pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(places) if end > start]


@given(request_lists, st.lists(st.integers(min_value=0), max_size=30))
def test_each_request_gets_one_reply_for_any_content_and_any_pieces(
    requests: list[tuple[bytes, ...]], cuts: list[int]
) -> None:
    parser = RequestParser()
    stream = b"".join(packed([b"GET", b"SET"][len(words) - 1], *words) for words in requests)
    assert b"".join(parser.replies(piece) for piece in in_pieces(stream, cuts)) == OK * len(requests)
    assert parser.served == len(requests)


@given(request_lists, st.integers(min_value=0))
def test_a_request_is_answered_after_its_last_byte(requests: list[tuple[bytes, ...]], cut: int) -> None:
    whole = [packed([b"GET", b"SET"][len(words) - 1], *words) for words in requests]
    stream = b"".join(whole)
    seen = cut % len(stream)
    ends = [sum(map(len, whole[: number + 1])) for number in range(len(whole))]
    parser = RequestParser()
    parser.replies(stream[:seen])
    assert parser.served == sum(end <= seen for end in ends)


def test_the_handshake_is_answered_but_not_counted() -> None:
    parser = RequestParser()
    handshake = packed(b"HELLO", b"3") + packed(b"CLIENT", b"SETINFO", b"LIB-NAME", b"x") + packed(b"PING")
    reader = hiredis.Reader()
    reader.feed(parser.replies(handshake + packed(b"GET", b"key")))
    assert [reader.gets() for _ in range(4)] == [{b"server": b"null", b"proto": 3}, b"OK", b"PONG", b"OK"]
    assert parser.served == 1


def test_after_the_first_request_each_command_counts_as_a_request() -> None:
    parser = RequestParser()
    parser.replies(packed(b"GET", b"key"))
    assert parser.replies(packed(b"PING")) == OK
    assert parser.served == 2


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_works_with_a_null_server_which_counts_its_requests(protocol: int) -> None:
    with open_null_server(None) as null_server, redis.Redis(port=null_server.port, protocol=protocol) as client:
        assert client.set("key", b"\r\n*1\r\n") is True
        pipeline = client.pipeline(transaction=False)
        for number in range(1000):
            pipeline.set(f"key:{number}", bytes(1024))
        assert pipeline.execute() == [True] * 1000
        assert (null_server.served(), null_server.connections()) == (1001, 1)
        client.close()
        assert SummedCounters([null_server]).served() == 1001


@pytest.mark.usefixtures("no_leaks")
def test_a_client_that_sends_garbage_is_disconnected_and_others_continue() -> None:
    with open_null_server(None) as null_server, redis.Redis(port=null_server.port) as client:
        assert client.get("key") == b"OK"
        with socket.create_connection(("127.0.0.1", null_server.port)) as other:
            other.sendall(b"?nonsense\r\n")
            assert other.recv(1) == b""
        assert client.get("key") == b"OK"
        assert null_server.served() == 2

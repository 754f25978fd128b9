from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark.null import OK, Tap
from scripts.benchmark.responders import TogetherReferee, null_responder

nasty = st.binary(max_size=40) | st.sampled_from(
    [b"*3\r\n$3\r\nSET\r\n", b"\r\n*1\r\n$4\r\nPING\r\n", b"\r\n" * 9, b"$"]
)
requests = st.lists(st.tuples(nasty, nasty) | st.tuples(nasty), min_size=1, max_size=12)


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def in_pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(places) if end > start]


@given(requests, st.lists(st.integers(min_value=0), max_size=30))
def test_there_are_as_many_answers_as_requests_however_they_come_and_whatever_they_hold(
    asked: list[tuple[bytes, ...]], cuts: list[int]
) -> None:
    tap = Tap()
    stream = b"".join(packed([b"GET", b"SET"][len(words) - 1], *words) for words in asked)
    assert b"".join(tap.answers(piece) for piece in in_pieces(stream, cuts)) == OK * len(asked)
    assert tap.served == len(asked)


@given(requests, st.integers(min_value=0))
def test_no_request_is_answered_before_its_last_byte(asked: list[tuple[bytes, ...]], cut: int) -> None:
    whole = [packed([b"GET", b"SET"][len(words) - 1], *words) for words in asked]
    stream = b"".join(whole)
    seen = cut % len(stream)
    ends = [sum(map(len, whole[: number + 1])) for number in range(len(whole))]
    tap = Tap()
    tap.answers(stream[:seen])
    assert tap.served == sum(end <= seen for end in ends)


def test_greetings_are_answered_and_not_counted() -> None:
    tap = Tap()
    greeting = packed(b"HELLO", b"3") + packed(b"CLIENT", b"SETINFO", b"LIB-NAME", b"x") + packed(b"PING")
    reader = hiredis.Reader()
    reader.feed(tap.answers(greeting + packed(b"GET", b"key")))
    assert [reader.gets() for _ in range(4)] == [{b"server": b"null", b"proto": 3}, b"OK", b"PONG", b"OK"]
    assert tap.served == 1


def test_after_the_first_request_everything_is_one() -> None:
    tap = Tap()
    tap.answers(packed(b"GET", b"key"))
    assert tap.answers(packed(b"PING")) == OK
    assert tap.served == 2


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_speaks_with_it_and_it_counts(protocol: int) -> None:
    with null_responder(None) as responder, redis.Redis(port=responder.port, protocol=protocol) as client:
        assert client.set("key", b"\r\n*1\r\n") is True
        pipeline = client.pipeline(transaction=False)
        for number in range(1000):
            pipeline.set(f"key:{number}", bytes(1024))
        assert pipeline.execute() == [True] * 1000
        assert (responder.served(), responder.connected()) == (1001, 1)
        client.close()
        assert TogetherReferee([responder]).served() == 1001


@pytest.mark.usefixtures("no_leaks")
def test_one_who_speaks_nonsense_is_cut_off_and_the_others_go_on() -> None:
    with null_responder(None) as responder, redis.Redis(port=responder.port) as client:
        assert client.get("key") == b"OK"
        with socket.create_connection(("127.0.0.1", responder.port)) as other:
            other.sendall(b"?nonsense\r\n")
            assert other.recv(1) == b""
        assert client.get("key") == b"OK"
        assert responder.served() == 2

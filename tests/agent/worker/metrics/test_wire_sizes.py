from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.connection import HiredisRespSerializer

from agent.worker.metrics.wire_sizes import (
    MULTI_EXEC_REQUEST_BYTES,
    QUEUED_BYTES,
    bulk_bytes,
    reply_measure,
    transaction_reply_bytes,
)
from tests.support.servers import Server


@given(st.lists(st.integers(0, 1500), min_size=1))
@example([0, 9, 10, 99, 100, 999, 1000])
def test_the_size_of_a_bulk_string_includes_header_and_line_ends(lengths: list[int]) -> None:
    wanted = [len(b"$%d\r\n%s\r\n" % (length, bytes(length))) for length in lengths]
    assert bulk_bytes(np.array(lengths)).tolist() == wanted


def test_the_bytes_that_a_transaction_adds_are_exact() -> None:
    pack = HiredisRespSerializer().pack
    assert len(b"".join(pack("MULTI") + pack("EXEC"))) == MULTI_EXEC_REQUEST_BYTES
    assert len(b"+OK\r\n*12\r\n") == transaction_reply_bytes(12)
    assert len(b"+QUEUED\r\n") == QUEUED_BYTES


def test_resp2_and_resp3_differ_in_nil_and_maps() -> None:
    for protocol, nil, pairs in ((2, b"$-1\r\n", b"*4\r\n"), (3, b"_\r\n", b"%2\r\n")):
        measure = reply_measure("HGETALL", protocol, {})
        assert measure(None) == len(nil)
        assert measure({b"a": b"1", b"b": None}) == len(pairs + b"$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n" + nil)


def test_true_has_the_size_of_the_reply_that_it_stands_for() -> None:
    assert reply_measure("EXPIRE", 3, {"EXPIRE": bool})(True) == len(b":1\r\n")
    assert reply_measure("SET", 3, {})(True) == len(b"+OK\r\n")
    assert reply_measure("PING", 3, {})(True) == len(b"+PONG\r\n")


CASES: list[tuple[str, ...]] = [
    ("SET", "new", "value"),
    ("GET", "text"),
    ("GET", "nothing"),
    ("GET", "long"),
    ("INCR", "number"),
    ("INCRBY", "number", "-1000000"),
    ("DEL", "text"),
    ("DEL", "nothing"),
    ("LPUSH", "list", "x"),
    ("LPOP", "list"),
    ("LPOP", "nothing"),
    ("LPOP", "list", "2"),
    ("LRANGE", "list", "0", "9"),
    ("LRANGE", "nothing", "0", "9"),
    ("MGET", "text", "nothing", "long"),
    ("TYPE", "list"),
    ("EXPIRE", "text", "100"),
    ("EXPIRE", "nothing", "100"),
    ("PING",),
    ("HGETALL", "hash"),
    ("SMEMBERS", "set"),
    ("STRLEN", "long"),
    ("MSET", "a", "1"),
]


@pytest.mark.parametrize("protocol", [2, 3])
def test_requests_and_replies_have_the_size_that_hiredis_packs(valkey: Server, protocol: int) -> None:
    client = valkey.client(protocol=protocol)
    with socket.create_connection(("127.0.0.1", valkey.port), timeout=5.0) as raw:
        raw.sendall(b"*2\r\n$5\r\nHELLO\r\n$1\r\n%d\r\n" % protocol)
        raw.recv(65536)
        for arguments in CASES:
            _prepare(client)
            measure = reply_measure(arguments[0], protocol, client.response_callbacks)
            said = measure(client.execute_command(*arguments))
            _prepare(client)
            raw.sendall(client.connection_pool.make_connection().pack_command(*arguments)[0])
            assert said == len(_reply(raw)), arguments


def _prepare(client: Any) -> None:
    client.flushall()
    client.mset({"text": "abc", "number": "41", "long": "x" * 12345})
    client.rpush("list", *(str(number) for number in range(12)))
    client.hset("hash", mapping={"a": "1", "bb": "22"})
    client.sadd("set", "one", "three")


def _reply(raw: socket.socket) -> bytes:
    received = raw.recv(1 << 20)
    while not received.endswith(b"\r\n") or (received.startswith(b"$12345") and len(received) < 12345):
        received += raw.recv(1 << 20)
    return received


Measured = Callable[[Any], int]


@given(st.recursive(st.integers() | st.binary() | st.none(), st.lists, max_leaves=20))
def test_the_size_of_a_nested_reply_is_the_sum_of_its_parts(reply: Any) -> None:
    measure: Measured = reply_measure("EVAL", 2, {})
    assert measure(reply) == len(_encode(reply))


def _encode(reply: Any) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%s\r\n" % (len(reply), reply)
    return b"*%d\r\n%s" % (len(reply), b"".join(map(_encode, reply)))

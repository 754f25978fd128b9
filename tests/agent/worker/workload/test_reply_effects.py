from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.operations import draw_operations
from agent.worker.workload.reply_effects import MISMATCH, entry_ids, is_miss
from agent.worker.workload.values import is_intact
from tests.support.workloads import answer, arguments_of, mix_of, stream


def test_a_scan_continues_from_its_last_reply_and_keeps_its_key_until_the_end() -> None:
    operations = stream("HSCAN __key__ __cursor__", keys={"prefix": "", "distribution": "sequential"})
    asked = []
    for reply in ((17, {}), (b"9", {}), (0, {b"f": b"v"}), (0, {}), (12345678901234567890, {}), (0, {})):
        operation = next(operations)
        asked.append(operation[1][1:])
        assert operation[2] == request_bytes(operation[1])
        assert answer(operation, reply) is None
    assert asked[:4] == [(b"1", b"0"), (b"1", b"17"), (b"1", b"9"), (asked[3][0], b"0")]
    assert asked[3][0] != b"1"
    assert asked[5] == (asked[4][0], b"12345678901234567890")


CACHE_ASIDE = {
    "command": "GET",
    "then": [{"command": "SET", "when": "miss"}, {"command": "EXPIRE __key__ 5", "when": "hit"}],
}


def test_a_follow_up_command_comes_next_on_the_same_key_if_the_reply_calls_for_it() -> None:
    operations = stream(CACHE_ASIDE, keys={"prefix": "k", "distribution": "sequential"})
    first = next(operations)
    answer(first, None)
    second = next(operations)
    assert (first[1], second[1][:2], len(second[1][2])) == (("GET", b"k1"), ("SET", b"k1"), 32)
    third = next(operations)
    answer(third, b"value")
    assert [third[1], next(operations)[1], next(operations)[1]] == [
        ("GET", b"k2"),
        ("EXPIRE", b"k2", b"5"),
        ("GET", b"k3"),
    ]


def test_follow_up_commands_have_rows_of_their_own_and_new_values() -> None:
    mix = mix_of(CACHE_ASIDE)
    assert mix.names == ("GET", "SET", "EXPIRE")
    operations = draw_operations(mix, 1, 0)
    values = set()
    for _ in range(200):
        answer(next(operations), None)
        row, arguments, size, _ = next(operations)
        assert (row, size) == (1, request_bytes(arguments))
        values.add(arguments[2])
    assert len(values) > 190


def test_in_a_pipeline_follow_up_commands_come_before_new_operations() -> None:
    operations = stream(CACHE_ASIDE, pipeline=3, keys={"prefix": "k", "distribution": "sequential"})
    for operation in list(islice(operations, 3)):
        answer(operation, None)
    assert [arguments[:2] for _, arguments, _, _ in islice(operations, 5)] == [
        *(("SET", key) for key in (b"k1", b"k2", b"k3")),
        *(("GET", key) for key in (b"k4", b"k5")),
    ]


def test_replies_do_not_change_other_operations() -> None:
    def drawn(reply: Any) -> list[Any]:
        operations, found = stream(CACHE_ASIDE), []
        while len(found) < 700:
            operation = next(operations)
            if operation[1][0] == "GET":
                found.append(operation[1])
                answer(operation, reply)
        return found

    assert drawn(None) == drawn(b"value")


def test_a_new_key_may_have_follow_up_commands() -> None:
    entry = {"command": "SET __new_key__ 1", "then": [{"command": "EXPIRE __key__ 5"}]}
    operations = stream(entry, thread=1, threads=4, keys={"prefix": "k", "maximum": 10})
    answer(next(operations), True)
    assert next(operations)[1] == ("EXPIRE", b"k12", b"5")


def test_a_named_key_of_a_follow_up_command_is_the_key_that_it_follows() -> None:
    operations = stream(
        {"command": "GET", "then": [{"command": "SET __key:k__ c:__key:k__:__rand_1st__:__rand_1st__"}]}
    )
    for _ in range(200):
        first = next(operations)
        answer(first, b"value")
        arguments = next(operations)[1]
        assert arguments[1] == first[1][1]
        copied, one, other = bytes(arguments[2]).rsplit(b":", 2)  # type: ignore[arg-type]
        assert copied == b"c:" + first[1][1]  # type: ignore[operator]
        assert one == other


def test_stream_entries_are_acknowledged_with_all_their_ids_if_there_are_any() -> None:
    entry = {"command": "XREADGROUP", "then": [{"command": "XACK"}]}
    operations = stream(entry, keys={"prefix": "s", "distribution": "sequential"})
    answer(next(operations), {b"s1": [[(b"1-0", {b"a": b"b"}), (b"2-0", {b"a": b"b"})]]})
    row, arguments, size, _ = next(operations)
    assert (row, arguments) == (1, ("XACK", b"s1", b"stampede", b"1-0", b"2-0"))
    assert size == request_bytes(arguments)
    for empty in ({}, [], None):
        operation = next(operations)
        assert operation[1][0] == "XREADGROUP"
        answer(operation, empty)


@pytest.mark.parametrize(
    ("name", "reply", "ids"),
    [
        ("XADD", b"1-1", [b"1-1"]),
        ("XRANGE", [(b"1-1", {b"a": b"b"}), (b"1-2", {})], [b"1-1", b"1-2"]),
        ("XREADGROUP", [[b"s", [(b"1-1", {}), (b"1-2", None)]], [b"t", [(b"3-1", {})]]], [b"1-1", b"1-2", b"3-1"]),
        ("XREAD", {b"s": [[(b"1-1", {})]]}, [b"1-1"]),
        ("XAUTOCLAIM", [b"9-9", [(b"1-1", {})], [b"0-1"]], [b"1-1"]),
        ("XCLAIM", [b"1-1", b"1-2"], [b"1-1", b"1-2"]),
        ("GET", None, []),
        ("XREAD", None, []),
        ("LLEN", 3, []),
    ],
)
def test_entry_ids_are_found_in_the_reply_of_each_command(name: str, reply: Any, ids: list[bytes]) -> None:
    assert entry_ids(name, reply) == ids


def test_a_miss_is_a_reply_without_data() -> None:
    assert all(map(is_miss, (None, b"", 0, [], {}, set(), False, [None, None])))
    assert not any(map(is_miss, (b"0", 1, [b""], {b"a": b""}, True, [None, b"x"])))


VERIFIED = {"verify": True, "minimum": 60, "maximum": 90}


@pytest.mark.parametrize(
    ("command", "pairs"), [("SET", [(1, 2)]), ("SETEX", [(1, 3)]), ("MSET __pairs(2)__", [(1, 2), (3, 4)])]
)
def test_verified_values_contain_their_key(command: str, pairs: list[tuple[int, int]]) -> None:
    for arguments in arguments_of(stream(command, values=VERIFIED), 100):
        for key, value in pairs:
            assert is_intact(arguments[value], arguments[key])  # type: ignore[arg-type]


def test_a_reply_with_another_value_than_was_written_is_a_mismatch() -> None:
    keys = {"prefix": "k", "maximum": 1}
    [(_, _, value)] = arguments_of(stream("SET", values=VERIFIED, keys=keys), 1)
    assert isinstance(value, bytes)
    wrong = [value[:-1], value[:-1] + bytes([value[-1] ^ 1]), b"", b"x", value.replace(b"k1", b"k2")]
    get, mget, lrange, llen = (
        next(stream(command, values=VERIFIED, keys=keys)) for command in ("GET", "MGET __keys(2)__", "LRANGE", "LLEN")
    )
    assert [answer(get, reply) for reply in (value, None)] == [None, None]
    assert [answer(get, reply) for reply in wrong] == [MISMATCH] * 5
    assert [answer(mget, reply) for reply in ([value, None], [value, wrong[0]], [value])] == [None, MISMATCH, MISMATCH]
    assert [answer(lrange, reply) for reply in ([value, value], [value, b"x"])] == [None, MISMATCH]
    assert llen[3] is None


def test_without_verification_replies_are_ignored() -> None:
    assert all(on_reply is None for _, _, _, on_reply in islice(stream("GET", "SET"), 100))

"""Streams of operations whose arguments or order depend on what was drawn or answered before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from agent.worker.workload.reply_effects import MISMATCH, Operation, entry_ids, is_miss
from agent.worker.workload.values import is_intact
from common.plan.schema import Workload
from common.serde import from_builtins


def workload(*commands: str | dict[str, Any], **others: Any) -> Workload:
    listed = [{"command": command} if isinstance(command, str) else command for command in commands]
    return from_builtins({"commands": listed, **others}, Workload)


def stream(
    *commands: str | dict[str, Any], tag: int = 0, thread: int = 0, threads: int = 1, **others: Any
) -> Iterator[Operation]:
    return draw_operations(CommandMix(workload(*commands, **others), 1, tag), 1, thread, threads)


def some(operations: Iterator[Operation], count: int = 2000) -> list[tuple[str | bytes, ...]]:
    """The arguments of some operations; their sizes are looked at by the way."""
    found = []
    for _, arguments, size, _ in islice(operations, count):
        assert size == request_bytes(arguments)
        found.append(arguments)
    return found


def answer(operation: Operation, reply: Any) -> Any:
    follow = operation[3]
    assert follow is not None
    return follow(reply)


def test_numbers_within_an_argument_are_drawn_and_reach_both_ends() -> None:
    found = some(stream("HSET __key__ f:__rand(-2,2)__x __data__"))
    assert {arguments[2] for arguments in found} == {b"f:-2x", b"f:-1x", b"f:0x", b"f:1x", b"f:2x"}


def test_a_random_number_of_redis_benchmark_has_twelve_digits_and_the_keys_distribution() -> None:
    found = some(stream("SET key:__rand_int__ v", keys={"minimum": 5, "maximum": 9, "distribution": "sequential"}), 6)
    assert [arguments[1] for arguments in found] == [b"key:%012d" % number for number in (5, 6, 7, 8, 9, 5)]


def test_each_worker_counts_by_itself_over_all_of_its_commands() -> None:
    found = some(stream("ECHO __seq__", "ECHO __thread__:__seq__", thread=3, threads=8), 1500)
    assert [arguments[1].split(b":")[-1] for arguments in found] == [b"%d" % n for n in range(1, 1501)]  # type: ignore[arg-type]
    assert {bytes(arguments[1][:2]) for arguments in found if b":" in arguments[1]} == {b"3:"}  # type: ignore[operator, arg-type]


def test_new_keys_are_made_by_nobody_else_and_leave_no_gap() -> None:
    keys = {"prefix": "k", "minimum": 1, "maximum": 100}
    made = [
        {arguments[1] for arguments in some(stream("SET __new_key__ 1", thread=thread, threads=3, keys=keys), 700)}
        for thread in range(3)
    ]
    assert set().union(*made) == {b"k%d" % number for number in range(101, 101 + 2100)}


def test_the_latest_keys_are_those_that_the_thread_has_just_made() -> None:
    keys = {"prefix": "", "minimum": 1, "maximum": 100, "distribution": "latest", "exponent": 3}
    newest, near = 100, 0
    for arguments in some(stream("SET __new_key__ 1", "GET __key__", threads=4, keys=keys), 3000):
        number = int(arguments[1])
        if arguments[0] == "SET":
            newest = 100 + ((number - 101) // 4 + 1) * 4
        else:
            assert number <= newest
            near += number > newest - 10
    assert near > 1200


def test_times_to_live_are_whole_seconds_of_their_range() -> None:
    found = some(stream("SET", expiry={"minimum": "5s", "maximum": "7s"}))
    assert {arguments[3:] for arguments in found} == {(b"EX", b"5"), (b"EX", b"6"), (b"EX", b"7")}


def test_a_scripts_digest_is_that_of_its_text() -> None:
    found = some(stream("EVALSHA __sha(one)__ 0", scripts=[{"name": "one", "lua": "return 1"}]), 1)
    assert found == [("EVALSHA", b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db", b"0")]


def test_each_entry_may_have_keys_of_its_own() -> None:
    own = {"command": "GET", "key_prefix": "o", "key_minimum": 7, "key_maximum": 9, "key_distribution": "sequential"}
    assert some(stream(own), 4) == [("GET", b"o7"), ("GET", b"o8"), ("GET", b"o9"), ("GET", b"o7")]


def test_a_scan_goes_on_where_its_last_reply_said_and_keeps_its_key_until_the_end() -> None:
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


def test_what_follows_comes_next_on_the_same_key_when_the_reply_says_so() -> None:
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


def test_what_follows_has_rows_of_its_own_and_fresh_values() -> None:
    mixed = CommandMix(workload(CACHE_ASIDE), 1)
    assert mixed.names == ("GET", "SET", "EXPIRE")
    operations = draw_operations(mixed, 1, 0)
    values = set()
    for _ in range(200):
        answer(next(operations), None)
        row, arguments, size, _ = next(operations)
        assert (row, size) == (1, request_bytes(arguments))
        values.add(arguments[2])
    assert len(values) > 190


def test_in_a_pipeline_what_follows_comes_with_the_next_batch_before_anything_new() -> None:
    operations = stream(CACHE_ASIDE, pipeline=3, keys={"prefix": "k", "distribution": "sequential"})
    batch = list(islice(operations, 3))
    for operation in batch:
        answer(operation, None)
    following = list(islice(operations, 5))
    assert [arguments[0:2] for _, arguments, _, _ in following] == [
        *(("SET", key) for key in (b"k1", b"k2", b"k3")),
        *(("GET", key) for key in (b"k4", b"k5")),
    ]


def test_what_is_drawn_does_not_depend_on_what_was_answered() -> None:
    def drawn(reply: Any) -> list[Any]:
        operations, found = stream(CACHE_ASIDE), []
        while len(found) < 700:
            operation = next(operations)
            if operation[1][0] == "GET":
                found.append(operation[1])
                answer(operation, reply)
        return found

    assert drawn(None) == drawn(b"value")


def test_a_new_key_may_be_followed_too() -> None:
    entry = {"command": "SET __new_key__ 1", "then": [{"command": "EXPIRE __key__ 5"}]}
    operations = stream(entry, thread=1, threads=4, keys={"prefix": "k", "maximum": 10})
    answer(next(operations), True)
    assert next(operations)[1] == ("EXPIRE", b"k12", b"5")


def test_entries_of_a_stream_are_acknowledged_with_all_their_ids_and_nothing_without_any() -> None:
    entry = {"command": "XREADGROUP", "then": [{"command": "XACK"}]}
    operations = stream(entry, keys={"prefix": "s", "distribution": "sequential"})
    answer(next(operations), {b"s1": [[(b"1-0", {b"a": b"b"}), (b"2-0", {b"a": b"b"})]]})
    row, arguments, size, _ = next(operations)
    assert arguments == ("XACK", b"s1", b"stampede", b"1-0", b"2-0")
    assert size == request_bytes(arguments)
    for nothing in ({}, [], None):
        operation = next(operations)
        assert operation[1][0] == "XREADGROUP"
        answer(operation, nothing)
    assert row == 1


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
def test_the_ids_of_a_reply_are_found_whatever_its_command(name: str, reply: Any, ids: list[bytes]) -> None:
    assert entry_ids(name, reply) == ids


def test_a_miss_is_a_reply_that_holds_nothing() -> None:
    assert all(map(is_miss, (None, b"", 0, [], {}, set(), False, [None, None])))
    assert not any(map(is_miss, (b"0", 1, [b""], {b"a": b""}, True, [None, b"x"])))


def test_a_value_that_is_not_its_keys_is_a_mismatch_and_none_is_not() -> None:
    values = {"verify": True, "minimum": 60, "maximum": 90}
    for operation in islice(stream("SET", "SETEX", "MSET __pairs(2)__", values=values), 200):
        arguments = operation[1]
        assert operation[2] == request_bytes(arguments)
        if arguments[0] == "MSET":
            assert is_intact(arguments[2], arguments[1])  # type: ignore[arg-type]
            assert is_intact(arguments[4], arguments[3])  # type: ignore[arg-type]
        else:
            assert is_intact(arguments[-1] if arguments[0] == "SETEX" else arguments[2], arguments[1])  # type: ignore[arg-type]
    keys = {"prefix": "k", "maximum": 1}
    [written] = some(stream("SET", values=values, keys=keys), 1)
    value = written[2]
    assert isinstance(value, bytes)
    wrong = [value[:-1], value[:-1] + bytes([value[-1] ^ 1]), b"", b"x", value.replace(b"k1", b"k2")]
    read = next(stream("GET", values=values, keys=keys))
    assert answer(read, value) is None
    assert answer(read, None) is None
    assert [answer(read, other) for other in wrong] == [MISMATCH] * 5
    several = next(stream("MGET __keys(2)__", values=values, keys=keys))
    assert answer(several, [value, None]) is None
    assert answer(several, [value, wrong[0]]) == MISMATCH
    assert answer(several, [value]) == MISMATCH
    popped = next(stream("LRANGE", values=values, keys=keys))
    assert answer(popped, [value, value]) is None
    assert answer(popped, [value, b"x"]) == MISMATCH
    assert next(stream("LLEN", values=values, keys=keys))[3] is None


def test_without_verification_nothing_is_looked_at() -> None:
    assert all(follow is None for _, _, _, follow in islice(stream("GET", "SET"), 100))


TAGGED = re.compile(rb"[a-z:]*\{\d+\}:\d+")


@cache
def slot(key: bytes) -> int:
    return int(key_slot(key))


def slots(arguments: tuple[str | bytes, ...]) -> set[int]:
    """Of all arguments that are keys."""
    return {slot(each) for each in arguments[1:] if isinstance(each, bytes) and TAGGED.fullmatch(each)}


@given(
    tag=st.integers(1, 30),
    minimum=st.integers(0, 40),
    size=st.integers(1, 200),
    kind=st.sampled_from(["uniform", "sequential", "zipfian", "parallel"]),
)
@settings(max_examples=25, deadline=None)
def test_the_keys_of_a_command_share_a_slot_and_differ_where_they_can(
    tag: int, minimum: int, size: int, kind: str
) -> None:
    keys = {"minimum": minimum, "maximum": minimum + size - 1, "distribution": kind}
    for arguments in some(stream("MGET __keys(4)__", keys=keys, tag=tag), 200):
        numbers = [int(each.rpartition(b":")[2]) for each in arguments[1:]]  # type: ignore[arg-type]
        assert len(slots(arguments)) == 1
        assert all(minimum <= number < minimum + size for number in numbers)
        first = numbers[0] // tag * tag
        room = min(first + tag, minimum + size) - max(first, minimum)
        assert len(set(numbers)) == min(4, room)


@given(
    batch=st.integers(1, 12),
    tag=st.integers(1, 30),
    answers=st.lists(st.sampled_from([None, b"x"]), min_size=50, max_size=50),
)
@settings(max_examples=25, deadline=None)
def test_a_transaction_keeps_to_one_slot_whatever_its_commands_and_what_follows_them(
    batch: int, tag: int, answers: list[bytes | None]
) -> None:
    commands: tuple[str | dict[str, Any], ...] = (
        {"command": "SET", "key_prefix": "other:"},
        {"command": "MGET __keys(3)__", "key_distribution": "zipfian"},
        {**CACHE_ASIDE, "then": [*CACHE_ASIDE["then"], {"command": "MSET __pairs(3)__", "when": "always"}]},
        "PING",
    )
    for mix in (commands, ("SET", "MGET", "PING", {"command": "INCR", "key_prefix": "n:"})):
        operations = stream(*mix, tag=tag, transaction=batch, keys={"minimum": 3, "maximum": 500})
        seen = set()
        for reply in answers:
            made = list(islice(operations, batch))
            found = set().union(*(slots(arguments) for _, arguments, _, _ in made))
            assert len(found) <= 1
            assert all(size == request_bytes(arguments) for _, arguments, size, _ in made)
            seen |= found
            for operation in made:
                if operation[3] is not None:
                    answer(operation, reply)
        assert len(seen) > 1 or tag * len(answers) < 100


def test_slots_of_keys_are_seen_and_differ() -> None:
    """The test above can fail."""
    keys = {"prefix": "{1}:", "minimum": 1, "maximum": 9}
    assert slots(some(stream("SET", keys=keys), 1)[0]) == {slot(b"1")}
    tagged = [some(stream("SET", tag=5, thread=thread), 1)[0] for thread in range(5)]
    assert len(set().union(*map(slots, tagged))) > 1

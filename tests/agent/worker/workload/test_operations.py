from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.connection import HiredisRespSerializer
from redis.crc import key_slot

from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from agent.worker.workload.reply_effects import Operation
from agent.worker.workload.values import MessageBody, is_intact
from common.errors import PlanError
from tests.support.workloads import answer, arguments_of, mix_of, stream

SOME = 5000  # more than one block


def some(mix: CommandMix, seed: int = 1, thread: int = 0, count: int = SOME) -> list[Operation]:
    return list(islice(draw_operations(mix, seed, thread), count))


def test_the_same_seed_and_thread_draw_the_same_operations() -> None:
    values = {"minimum": 1, "maximum": 100}
    assert some(mix_of("SET", "GET", values=values)) == some(mix_of("SET", "GET", values=values))


def test_another_thread_and_another_seed_draw_others() -> None:
    drawn = [some(mix_of("GET"), seed, thread) for seed, thread in ((1, 0), (1, 1), (2, 0))]
    assert len({str(operations) for operations in drawn}) == 3


@given(minimum=st.integers(0, 10**12), span=st.integers(0, 3))
@settings(max_examples=25)
def test_keys_reach_both_ends_of_their_range_and_nothing_beyond(minimum: int, span: int) -> None:
    mix = mix_of("GET", keys={"prefix": "k:", "minimum": minimum, "maximum": minimum + span})
    assert {arguments for _, arguments, _, _ in some(mix, count=300)} == {
        ("GET", f"k:{number}".encode()) for number in range(minimum, minimum + span + 1)
    }


def test_each_entry_may_have_keys_of_its_own() -> None:
    own = {"command": "GET", "key_prefix": "o", "key_minimum": 7, "key_maximum": 9, "key_distribution": "sequential"}
    assert arguments_of(stream(own), 4) == [("GET", b"o7"), ("GET", b"o8"), ("GET", b"o9"), ("GET", b"o7")]


@given(minimum=st.integers(0, 50), span=st.integers(0, 3))
@settings(max_examples=25)
def test_values_have_every_size_of_their_range_and_no_other(minimum: int, span: int) -> None:
    operations = some(mix_of("SET", values={"minimum": minimum, "maximum": minimum + span}), count=300)
    assert {len(arguments[2]) for _, arguments, _, _ in operations} == set(range(minimum, minimum + span + 1))


def test_values_are_random_bytes_and_differ() -> None:
    values = [arguments[2] for _, arguments, _, _ in some(mix_of("SET"), count=1000)]
    assert len(set(values)) > 900
    assert len({byte for value in values for byte in value}) == 256


def test_weights_are_kept_and_weight_zero_is_never_drawn() -> None:
    mix = mix_of({"command": "SET", "weight": 30}, {"command": "DEL", "weight": 0}, {"command": "GET", "weight": 70})
    assert mix.names == ("SET", "GET")
    drawn = Counter(arguments[0] for _, arguments, _, _ in some(mix, count=20_000))
    assert set(drawn) == {"SET", "GET"}
    assert abs(drawn["SET"] / 20_000 - 0.3) < 0.02


def test_a_mix_without_any_weight_is_refused() -> None:
    with pytest.raises(PlanError, match="weight above 0"):
        mix_of({"command": "SET", "weight": 0})


def test_commands_of_one_template_share_a_row_and_others_have_their_own() -> None:
    mix = mix_of("GET", {"command": "GET __key__", "key_prefix": "b:"}, "GET other", "SET")
    assert mix.names == ("GET __key__", "GET other", "SET")
    assert {(row, arguments[0]) for row, arguments, _, _ in some(mix)} == {(0, "GET"), (1, "GET"), (2, "SET")}


@pytest.mark.parametrize(
    "template",
    [
        "GET",
        "SET",
        "MSET __key__ __data__ __key__ __data__",
        "EXPIRE __key__ 100",
        "ECHO 'a b'",
        "PING plain",
        "SET __key__ __data__ EX 1000000000",
        "PUBLISH __key__ __message__",
    ],
)
def test_the_size_of_a_request_is_that_of_its_resp(template: str) -> None:
    values = {"minimum": 0, "maximum": 1200}
    pack = HiredisRespSerializer().pack
    for _, arguments, size, _ in some(mix_of(template, values=values, keys={"minimum": 0, "maximum": 12345})):
        assert size == len(b"".join(pack(*arguments)))


def test_placeholders_of_one_command_are_drawn_separately() -> None:
    [arguments] = arguments_of(stream("MSET __key__ __data__ __key__ __data__"), 1)
    assert arguments[1] != arguments[3]
    assert arguments[2] != arguments[4]


def test_a_message_is_drawn_without_its_header_in_the_size_of_the_plan() -> None:
    bodies = [
        arguments[2]
        for arguments in arguments_of(stream("PUBLISH c __message__", values={"minimum": 40, "maximum": 60}), 300)
    ]
    assert all(type(body) is MessageBody for body in bodies)
    assert {len(body) for body in bodies} == set(range(40, 61))


def test_a_named_placeholder_is_drawn_once_for_all_its_places() -> None:
    named = "__key:k__ __seq:s__ __rand(1,99):r__ __data:d__ __rand_1st__"
    template = f"X {named} {named} __key__ __seq__ __rand(1,99)__ __data__ __rand_2nd__"
    calls = [arguments[1:] for _, arguments, _, _ in some(mix_of(template, keys={"maximum": 1000}))]
    assert all(call[:5] == call[5:10] for call in calls)
    assert [int(call[1]) for call in calls] == list(range(1, 2 * SOME, 2))
    for place in range(5):
        same = sum(call[place] == call[10 + place] for call in calls)
        assert same < SOME / 20
        assert len({call[place] for call in calls}) > 90


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("template", ["SET __key__ __data__", "MSET __pairs(2)__", "SET __key__ __data:d__ __data:d__"])
def test_json_values_are_documents_of_exactly_their_size(template: str, verify: bool) -> None:
    values = {"minimum": 40, "maximum": 50, "kind": "json", "verify": verify}
    calls = arguments_of(stream(template, values=values), 300)
    documents = [argument for arguments in calls for argument in arguments[2::2]]
    assert {len(document) for document in documents} == set(range(40, 51))
    assert all(list(json.loads(document)) == ["v"] for document in documents)
    if verify:
        assert all(is_intact(arguments[2], arguments[1]) for arguments in calls)  # type: ignore[arg-type]


def test_the_smallest_json_value_has_an_empty_text() -> None:
    [arguments] = arguments_of(stream("SET", values={"minimum": 8, "maximum": 8, "kind": "json"}), 1)
    assert json.loads(arguments[2]) == {"v": ""}


@pytest.mark.parametrize("kind", ["binary", "text", "json"])
@pytest.mark.parametrize("verify", [False, True])
def test_text_fits_into_json_of_a_template_with_every_kind_of_values(kind: str, verify: bool) -> None:
    values = {"minimum": 30, "maximum": 40, "kind": kind, "verify": verify}
    template = """JSON.SET __key__ $ '{"a": "__text__", "b": ["__text__", __seq__]}'"""
    for arguments in arguments_of(stream(template, values=values), 300):
        document = json.loads(arguments[3])
        assert all(30 <= len(text) <= 40 for text in (document["a"], document["b"][0]))


def test_integers_within_an_argument_reach_both_ends() -> None:
    found = arguments_of(stream("HSET __key__ f:__rand(-2,2)__x __data__"))
    assert {arguments[2] for arguments in found} == {b"f:-2x", b"f:-1x", b"f:0x", b"f:1x", b"f:2x"}


def test_rand_int_has_twelve_digits_and_the_distribution_of_keys() -> None:
    keys = {"minimum": 5, "maximum": 9, "distribution": "sequential"}
    found = arguments_of(stream("SET key:__rand_int__ v", keys=keys), 6)
    assert [arguments[1] for arguments in found] == [b"key:%012d" % number for number in (5, 6, 7, 8, 9, 5)]


def test_each_worker_counts_seq_over_all_of_its_commands() -> None:
    found = arguments_of(stream("ECHO __seq__", "ECHO __thread__:__seq__", thread=3, threads=8), 1500)
    texts = [bytes(arguments[1]) for arguments in found]  # type: ignore[arg-type]
    assert [text.split(b":")[-1] for text in texts] == [b"%d" % number for number in range(1, 1501)]
    assert {text[:2] for text in texts if b":" in text} == {b"3:"}


def test_new_keys_belong_to_one_worker_and_leave_no_gap() -> None:
    keys = {"prefix": "k", "minimum": 1, "maximum": 100}
    made = [
        {arguments[1] for arguments in arguments_of(stream("SET __new_key__ 1", thread=i, threads=3, keys=keys), 700)}
        for i in range(3)
    ]
    assert set().union(*made) == {b"k%d" % number for number in range(101, 101 + 2100)}


def test_latest_keys_are_the_newest_keys_of_the_worker() -> None:
    keys = {"prefix": "", "minimum": 1, "maximum": 100, "distribution": "latest", "exponent": 3}
    newest, near = 100, 0
    for arguments in arguments_of(stream("SET __new_key__ 1", "GET __key__", threads=4, keys=keys), 3000):
        number = int(arguments[1])
        if arguments[0] == "SET":
            newest = 100 + ((number - 101) // 4 + 1) * 4
        else:
            assert number <= newest
            near += number > newest - 10
    assert near > 1200


def test_times_to_live_are_whole_seconds_of_their_range() -> None:
    found = arguments_of(stream("SET", expiry={"minimum": "5s", "maximum": "7s"}))
    assert {arguments[3:] for arguments in found} == {(b"EX", b"5"), (b"EX", b"6"), (b"EX", b"7")}


def test_a_script_digest_is_the_sha1_of_its_text() -> None:
    found = arguments_of(stream("EVALSHA __sha(one)__ 0", scripts=[{"name": "one", "lua": "return 1"}]), 1)
    assert found == [("EVALSHA", b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db", b"0")]


TAGGED_KEY = re.compile(rb"[a-z:]*\{\d+\}:\d+")


@cache
def slot(key: bytes) -> int:
    return int(key_slot(key))


def slots(arguments: tuple[str | bytes, ...]) -> set[int]:
    """The slots of all arguments that are keys with a hash tag."""
    return {slot(each) for each in arguments[1:] if isinstance(each, bytes) and TAGGED_KEY.fullmatch(each)}


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
    for arguments in arguments_of(stream("MGET __keys(4)__", keys=keys, tag=tag), 200):
        numbers = [int(each.rpartition(b":")[2]) for each in arguments[1:]]  # type: ignore[arg-type]
        assert len(slots(arguments)) == 1
        assert all(minimum <= number < minimum + size for number in numbers)
        first = numbers[0] // tag * tag
        room = min(first + tag, minimum + size) - max(first, minimum)
        assert len(set(numbers)) == min(4, room)


CACHE_ASIDE = {"command": "GET", "then": [{"command": "SET", "when": "miss"}, {"command": "MSET __pairs(3)__"}]}


@given(
    batch=st.integers(1, 12),
    tag=st.integers(1, 30),
    answers=st.lists(st.sampled_from([None, b"x"]), min_size=50, max_size=50),
)
@settings(max_examples=25, deadline=None)
def test_a_transaction_keeps_to_one_slot_with_its_follow_up_commands(
    batch: int, tag: int, answers: list[bytes | None]
) -> None:
    commands: tuple[str | dict[str, Any], ...] = (
        {"command": "SET", "key_prefix": "other:"},
        {"command": "MGET __keys(3)__", "key_distribution": "zipfian"},
        CACHE_ASIDE,
        "PING",
    )
    for mix in (commands, ("SET", "MGET", "PING", {"command": "INCR", "key_prefix": "n:"})):
        operations = stream(*mix, tag=tag, transaction=batch, keys={"minimum": 3, "maximum": 500})
        seen = set()
        for reply in answers:
            made = list(islice(operations, batch))
            found = set().union(*(slots(arguments) for _, arguments, _, _ in made))
            assert len(found) <= 1
            seen |= found
            for operation in made:
                if operation[3] is not None:
                    answer(operation, reply)
        assert len(seen) > 1 or tag * len(answers) < 100

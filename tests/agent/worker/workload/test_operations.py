from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.connection import HiredisRespSerializer

from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from agent.worker.workload.reply_effects import Operation
from agent.worker.workload.values import MessageBody, is_intact
from common.errors import PlanError
from common.plan.schema import Workload
from common.serde import from_builtins

SOME = 5000  # more than one block


def mix(*commands: str | dict[str, Any], seed: int = 1, **workload: Any) -> CommandMix:
    listed = [{"command": command} if isinstance(command, str) else command for command in commands]
    return CommandMix(from_builtins({"commands": listed, **workload}, Workload), seed)


def some(mixed: CommandMix, seed: int = 1, thread: int = 0, count: int = SOME) -> list[Operation]:
    return list(islice(draw_operations(mixed, seed, thread), count))


def test_the_same_seed_and_thread_draw_the_same_operations() -> None:
    values = {"minimum": 1, "maximum": 100}
    assert some(mix("SET", "GET", values=values)) == some(mix("SET", "GET", values=values))


def test_another_thread_and_another_seed_draw_others() -> None:
    drawn = [some(mix("GET"), seed, thread) for seed, thread in ((1, 0), (1, 1), (2, 0))]
    assert len({str(operations) for operations in drawn}) == 3


@given(minimum=st.integers(0, 10**12), span=st.integers(0, 3))
@settings(max_examples=25)
def test_keys_reach_both_ends_of_their_range_and_nothing_beyond(minimum: int, span: int) -> None:
    operations = some(mix("GET", keys={"prefix": "k:", "minimum": minimum, "maximum": minimum + span}), count=300)
    assert {arguments for _, arguments, _, _ in operations} == {
        ("GET", f"k:{number}".encode()) for number in range(minimum, minimum + span + 1)
    }


def test_keys_are_drawn_evenly() -> None:
    drawn = Counter(arguments[1] for _, arguments, _, _ in some(mix("GET", keys={"minimum": 1, "maximum": 10})))
    assert len(drawn) == 10
    assert max(drawn.values()) < 1.3 * SOME / 10


def test_a_prefix_may_hold_anything() -> None:
    operations = some(mix("GET", keys={"prefix": "50%d é %%:", "minimum": 7, "maximum": 7}), count=1)
    assert operations[0][1] == ("GET", "50%d é %%:7".encode())


def test_a_commands_own_prefix_goes_before_the_plans() -> None:
    operations = some(mix({"command": "GET", "key_prefix": "own:"}, keys={"minimum": 1, "maximum": 1}), count=1)
    assert operations[0][1] == ("GET", b"own:1")


@given(minimum=st.integers(0, 50), span=st.integers(0, 3))
@settings(max_examples=25)
def test_values_have_every_size_of_their_range_and_no_other(minimum: int, span: int) -> None:
    operations = some(mix("SET", values={"minimum": minimum, "maximum": minimum + span}), count=300)
    assert {len(arguments[2]) for _, arguments, _, _ in operations} == set(range(minimum, minimum + span + 1))


def test_values_are_random_bytes_and_differ() -> None:
    values = [arguments[2] for _, arguments, _, _ in some(mix("SET"), count=1000)]
    assert len(set(values)) > 900
    assert len({byte for value in values for byte in value}) == 256


def test_a_value_of_a_mebibyte_is_made_only_when_it_is_wanted() -> None:
    stream = draw_operations(mix("SET", values={"minimum": "1MiB", "maximum": "1MiB"}), 1, 0)
    assert len(next(stream)[1][2]) == 1 << 20


def test_weights_are_kept_and_weight_zero_is_never_drawn() -> None:
    mixed = mix({"command": "SET", "weight": 30}, {"command": "DEL", "weight": 0}, {"command": "GET", "weight": 70})
    assert mixed.names == ("SET", "GET")
    drawn = Counter(arguments[0] for _, arguments, _, _ in some(mixed, count=20_000))
    assert set(drawn) == {"SET", "GET"}
    assert abs(drawn["SET"] / 20_000 - 0.3) < 0.02


def test_a_mix_in_which_nothing_can_be_drawn_is_refused() -> None:
    with pytest.raises(PlanError, match="weight above 0"):
        mix({"command": "SET", "weight": 0})


def test_commands_of_one_name_share_a_row() -> None:
    mixed = mix("GET", {"command": "GET other", "weight": 1}, "SET")
    assert mixed.names == ("GET", "SET")
    assert {(row, arguments[0]) for row, arguments, _, _ in some(mixed)} == {(0, "GET"), (1, "SET")}


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
    ],
)
def test_a_request_takes_on_the_wire_what_we_say(template: str) -> None:
    values = {"minimum": 0, "maximum": 1200}
    pack = HiredisRespSerializer().pack
    for _, arguments, request_bytes, _ in some(mix(template, values=values, keys={"minimum": 0, "maximum": 12345})):
        assert request_bytes == len(b"".join(pack(*arguments)))


def test_placeholders_of_one_command_are_drawn_apart() -> None:
    arguments = some(mix("MSET __key__ __data__ __key__ __data__"), count=1)[0][1]
    assert arguments[1] != arguments[3]
    assert arguments[2] != arguments[4]


def test_a_message_is_drawn_as_a_blank_of_the_plans_size_for_whoever_stamps_it() -> None:
    mixed = mix("PUBLISH __key__ __message__", values={"minimum": 40, "maximum": 60})
    operations = some(mixed, count=300)
    blanks = [arguments[2] for _, arguments, _, _ in operations]
    assert all(type(blank) is MessageBody for blank in blanks)
    assert {len(blank) for blank in blanks} == set(range(40, 61))
    packer = HiredisRespSerializer()
    for _, arguments, request_bytes, _ in operations:
        assert len(b"".join(packer.pack(*arguments))) == request_bytes  # as it is, it can be sent too


def test_a_placeholder_with_a_name_is_drawn_once_for_all_its_places() -> None:
    named = "__key:k__ __seq:s__ __rand(1,99):r__ __data:d__ __rand_1st__"
    template = f"X {named} {named} __key__ __seq__ __rand(1,99)__ __data__ __rand_2nd__"
    calls = [arguments[1:] for _, arguments, _, _ in some(mix(template, keys={"maximum": 1000}))]
    assert all(call[:5] == call[5:10] for call in calls)
    assert [int(call[1]) for call in calls] == list(range(1, 2 * SOME, 2))
    for place in range(5):
        same = sum(call[place] == call[10 + place] for call in calls)
        assert same < SOME / 20
        assert len({call[place] for call in calls}) > 90


def test_a_named_key_of_a_following_command_is_the_key_that_it_follows() -> None:
    mixed = mix({"command": "GET", "then": [{"command": "SET __key:k__ copy:__key:k__:__rand_1st__:__rand_1st__"}]})
    operations = draw_operations(mixed, 1, 0)
    for _ in range(200):
        _, get, _, follow = next(operations)
        assert follow is not None
        follow(b"value")
        _, arguments, _, _ = next(operations)
        assert arguments[1] == get[1]
        copied, first, second = arguments[2].rsplit(b":", 2)
        assert copied == b"copy:" + get[1]
        assert first == second


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("template", ["SET __key__ __data__", "MSET __pairs(2)__", "SET __key__ __data:d__ __data:d__"])
def test_values_of_json_are_documents_of_exactly_their_size(template: str, verify: bool) -> None:
    values = {"minimum": 40, "maximum": 50, "kind": "json", "verify": verify}
    calls = [arguments for _, arguments, _, _ in some(mix(template, values=values), count=300)]
    documents = [argument for arguments in calls for argument in arguments[2::2]]
    assert {len(document) for document in documents} == set(range(40, 51))
    assert all(list(json.loads(document)) == ["v"] for document in documents)
    if verify:
        assert all(is_intact(arguments[2], arguments[1]) for arguments in calls)


def test_the_smallest_json_has_empty_text() -> None:
    [(_, arguments, _, _)] = some(mix("SET", values={"minimum": 8, "maximum": 8, "kind": "json"}), count=1)
    assert json.loads(arguments[2]) == {"v": ""}


@pytest.mark.parametrize("kind", ["binary", "text", "json"])
@pytest.mark.parametrize("verify", [False, True])
def test_text_of_a_template_makes_json_of_it_whatever_the_kind_of_values(kind: str, verify: bool) -> None:
    values = {"minimum": 30, "maximum": 40, "kind": kind, "verify": verify}
    template = """JSON.SET __key__ $ '{"a": "__text__", "b": ["__text__", __seq__]}'"""
    for _, arguments, size, _ in some(mix(template, values=values), count=300):
        document = json.loads(arguments[3])
        assert all(30 <= len(text) <= 40 for text in (document["a"], document["b"][0]))
        assert size == len(b"".join(HiredisRespSerializer().pack(*arguments)))

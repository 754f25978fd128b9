from __future__ import annotations

import pytest
from msgspec.structs import replace

from common.commands import COMMANDS, PUBLISHING, SUBSCRIBING, KeyType, Placeholder, Template, find_command
from common.plan.planned_commands import sample_calls
from common.plan.schema import Command, Script, Target, Workload
from tests.support.servers import Server

KEY, DATA = Placeholder.KEY, Placeholder.DATA


def test_a_single_word_names_a_row_and_several_words_are_a_template() -> None:
    assert find_command("lrange").arguments == (b"LRANGE", KEY, b"0", b"9")
    assert find_command("LRANGE __key__ 0 -1").arguments == (b"LRANGE", KEY, b"0", b"-1")
    assert find_command("MEMORY USAGE __key__").name == "MEMORY"


def test_an_unknown_name_is_refused_with_similar_names() -> None:
    with pytest.raises(
        ValueError, match=r'a name of the command table, or a template .*, got "GETT"; did you mean GET '
    ):
        find_command("GETT")
    with pytest.raises(ValueError, match=r'got "JSON.MERGE"; write =JSON.MERGE if it takes no arguments'):
        find_command("JSON.MERGE")


def test_any_command_without_arguments_can_be_named() -> None:
    assert find_command("=ft._list") == Template("FT._LIST", (b"FT._LIST",))


def test_a_plan_with_an_expiry_uses_the_expiring_template_of_a_row() -> None:
    assert find_command("SET", expiring=True).arguments == (b"SET", KEY, DATA, b"EX", Placeholder.TTL)
    assert find_command("SET __key__ 1", expiring=True).arguments == (b"SET", KEY, b"1")
    assert find_command("GET", expiring=True).arguments == (b"GET", KEY)


def test_every_row_is_found_by_its_name() -> None:
    for name, row in COMMANDS.items():
        assert find_command(name) is row.template
        assert row.template.name == name
        assert row.template.arguments[0] == name.encode()
        assert row.summary


def test_the_table_agrees_with_the_server(valkey: Server) -> None:
    client = valkey.client(decode_responses=True)
    workload = Workload(scripts=(Script(name="main", lua="return 1"),))
    for name, row in COMMANDS.items():
        [info] = client.execute_command("COMMAND", "INFO", name).values()
        assert (("write" in info["flags"]) or name in _SCRIPTS) is row.writes, name
        arguments = len(row.template.arguments)
        assert arguments == info["arity"] or arguments >= -info["arity"] > 0, name
        category = "keyspace" if row.group == "generic" else row.group
        assert row.group == "server" or f"@{category}" in info["acl_categories"], name
        assert ("blocking" in info["flags"]) is (row.timeout is not None), name
        [(_, call)] = sample_calls(Target(), replace(workload, commands=(Command(command=row.template.name),)))
        keys = [part for part in call if part.startswith(b"stampede:")]
        if keys:
            assert client.execute_command("COMMAND GETKEYS", *call) == [key.decode() for key in keys], name
        else:
            assert row.key_type is KeyType.NOTHING, name
            assert info["first_key_pos"] == 0 or row.group == "pubsub", name


_SCRIPTS = {"EVAL", "EVALSHA", "FCALL"}
"""The server cannot know whether these write."""


def test_each_publishing_command_has_a_subscribing_one_and_a_measured_message() -> None:
    assert {name.removesuffix("SUBSCRIBE") for name in SUBSCRIBING} == {
        name.removesuffix("PUBLISH") for name in PUBLISHING
    }
    assert all(COMMANDS[name].template.arguments[-1] is Placeholder.MESSAGE for name in PUBLISHING)

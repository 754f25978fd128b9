from __future__ import annotations

from typing import Any

import pytest

from common.errors import PlanError
from common.plan.rules.checks import check_plan
from common.plan.schema import Plan
from common.serde import from_builtins

CLUSTER = {"target": {"url": "redis+cluster://127.0.0.1:7000"}}


def refusal(workload: dict[str, Any], **sections: Any) -> str | None:
    raw = {"target": {"url": "redis://127.0.0.1"}, "load": {"duration": 1}, **sections}
    raw["workload"] = {"commands": [{"command": "GET"}], **workload}
    try:
        check_plan(from_builtins(raw, Plan))
    except PlanError as error:
        return str(error).removeprefix("plan: $.workload.")
    return None


def commands(*texts: str | dict[str, Any]) -> list[dict[str, Any]]:
    return [{"command": text} if isinstance(text, str) else text for text in texts]


@pytest.mark.parametrize(
    ("workload", "line"),
    [
        (
            {"commands": commands("SET", "GETT")},
            "commands[1].command: expected a name of the command table, or a template such as "
            '"SET __key__ __data__", got "GETT"; did you mean GET or GETSET or GETBIT?',
        ),
        (
            {"commands": commands({"command": "GET", "then": [{"command": "SET __kee__ 1"}]})},
            "commands[0].then[0].command: expected one of __key__, ",
        ),
        (
            {"commands": commands({"command": "GET", "name": "read"}, {"command": "HGET", "name": "read"})},
            'commands[1].name: expected a name for one command, got "read" for "GET __key__" and "HGET __key__ ',
        ),
        (
            {"commands": commands("GET", {"command": "SET", "then": [{"command": "INCR", "name": "GET"}]})},
            'commands[1].then[0].name: expected a name for one command, got "GET" for "GET __key__" and "INCR __key__"',
        ),
        ({"preload": [{"command": "SETT"}]}, "preload[0].command: expected a name of the command table"),
        (
            {"commands": commands("SELECT 1")},
            "commands[0].command: expected a command that leaves its connection unchanged, got SELECT",
        ),
        (
            {"commands": commands(" multi")},
            "commands[0].command: expected a command that leaves its connection unchanged, got MULTI",
        ),
        (
            {"commands": commands({"command": "GET", "then": [{"command": "multi x"}]})},
            "commands[0].then[0].command: expected a command that leaves its connection unchanged, got MULTI",
        ),
        ({"commands": commands("=SELECT")}, "commands[0].command: expected a command that leaves its connection"),
        *(
            (
                {"commands": commands(text)},
                "commands[0].command: expected CLIENT with one of GETNAME, GETREDIR, HELP, ID, INFO, LIST, "
                f"TRACKINGINFO, which change no connection, got {found}",
            )
            for text, found in (
                ("CLIENT", "CLIENT"),
                ("client kill ID 3", '"CLIENT KILL"'),
                ("CLIENT REPLY OFF", '"CLIENT REPLY"'),
                ("CLIENT PAUSE 100", '"CLIENT PAUSE"'),
                ("CLIENT __data__", "CLIENT"),
            )
        ),
        (
            {"commands": commands("SET"), "values": {"minimum": 7, "maximum": 7, "kind": "json"}},
            "values.minimum: expected sizes of at least 8 bytes, because JSON values contain braces, got 7",
        ),
        (
            {"commands": commands("SET"), "values": {"minimum": 30, "maximum": 40, "kind": "json", "verify": True}},
            "values.minimum: expected sizes of at least 34 bytes, because verified values contain their key",
        ),
        (
            {"commands": commands("SET"), "values": {"kind": "text", "compressible": 0.1}},
            "values.compressible: expected 0, or at least 0.25, the least for values of text, got 0.1",
        ),
        (
            {"commands": commands("PUBLISH"), "values": {"kind": "json"}},
            "values.kind: expected binary where the plan has __message__, whose header is binary, got json",
        ),
        (
            {
                "commands": commands({"command": "SET", "key_prefix": 'a"'}),
                "values": {"minimum": 99, "maximum": 99, "kind": "json", "verify": True},
            },
            "commands[0].command: expected keys without quotes, backslashes and control characters, because",
        ),
        ({"commands": []}, "commands: expected at least one command, got none"),
        ({"commands": [{"command": "GET", "weight": 0}]}, "commands: expected at least one weight above zero"),
        ({"commands": commands("XACK")}, "commands[0].command: expected __ids__ only in `then`, after a command"),
        (
            {"commands": commands("GET __cursor__")},
            "commands[0].command: expected __cursor__ only in HSCAN, SCAN, SSCAN, ZSCAN of the mix, got it in GET",
        ),
        (
            {"commands": commands({"command": "GET", "then": [{"command": "SSCAN"}]})},
            "commands[0].then[0].command: expected __cursor__ only in HSCAN, SCAN, SSCAN, ZSCAN of the mix",
        ),
        (
            {"commands": commands("EVALSHA __sha(two)__ 0"), "scripts": [{"name": "one", "lua": "return 1"}]},
            'commands[0].command: expected __sha(NAME)__ of a script of the plan (one), got "two"',
        ),
        ({"commands": commands("EVALSHA")}, "commands[0].command: expected __sha(NAME)__ of a script of the plan (no"),
        (
            {"scripts": [{"name": "one", "lua": "return 1"}] * 2},
            'scripts[1].name: expected a unique name, got "one" a second time',
        ),
        (
            {"commands": commands("SETEX __key__ __ttl__ x")},
            "commands[0].command: expected an expiry for __ttl__, got none; set one, such as --expiry 60s",
        ),
        (
            {"preload": [{"command": "MSET"}]},
            'preload[0].command: expected a command with one __key__, to be issued for each key, got "MSET"',
        ),
        (
            {"commands": commands("BLPOP __key__ 0")},
            "commands[0].command: expected BLPOP to wait for more than 0s and less than the socket timeout of 5s, got "
            "0, which waits forever; set a shorter timeout, or a longer --socket-timeout",
        ),
        (
            {"commands": commands("xread count 1 block 5000 streams __key__ 0")},
            "commands[0].command: expected XREAD to wait for more than 0s and less than the socket timeout of 5s, got",
        ),
        ({"commands": commands("BZMPOP 9 1 __key__ MIN")}, "commands[0].command: expected BZMPOP to wait"),
        ({"commands": commands("WAIT 1 0")}, "commands[0].command: expected WAIT to wait"),
        ({"keys": {"minimum": 9, "maximum": 2}}, "keys.minimum: expected minimum <= maximum, got 9 and 2"),
        ({"keys": {"maximum": 0}}, "keys.maximum: expected minimum <= maximum, got 1 and 0"),
        ({"keys": {"maximum": 2**61}}, "keys.maximum: expected at most 2^60, got 2305843009213693952"),
        (
            {"commands": commands({"command": "GET", "key_maximum": 0})},
            "commands[0].key_maximum: expected key_minimum <= key_maximum, got 1 and 0",
        ),
        (
            {"preload": [{"key_minimum": 2_000_000}]},
            "preload[0].key_minimum: expected key_minimum <= key_maximum, got 2000000 and 1000000",
        ),
        (
            {"keys": {"distribution": "gaussian", "maximum": 10, "median": 11}},
            "keys.median: expected a median of 1..10, got 11",
        ),
        (
            {"keys": {"exponent": 1.2}},
            "keys.exponent: expected only with key distribution zipfian or latest, got uniform",
        ),
        (
            {"keys": {"median": 5}, "commands": commands({"command": "GET", "key_distribution": "hotspot"})},
            "keys.median: expected only with key distribution gaussian, got hotspot, uniform",
        ),
        ({"keys": {"deviation": 5, "distribution": "latest"}}, "keys.deviation: expected only with key distribution"),
        ({"keys": {"hot_keys": 0.5}}, "keys.hot_keys: expected only with key distribution hotspot"),
        ({"keys": {"hot_operations": 0.5}}, "keys.hot_operations: expected only with key distribution hotspot"),
        ({"pipeline": 100_001}, "pipeline: expected at most 100000 commands per round trip, got 100001"),
        ({"transaction": 10**9}, "transaction: expected at most 100000 commands per round trip, got 1000000000"),
        ({"values": {"minimum": 9, "maximum": 2}}, "values.minimum: expected minimum <= maximum, got 9B and 2B"),
        ({"values": {"maximum": "1GiB"}}, "values.maximum: expected at most Redis' 512MiB, got 1GiB"),
        ({"values": {"sizes": [{"size": "1GiB"}]}}, "values.sizes[0].size: expected at most Redis' 512MiB, got 1GiB"),
        (
            {"values": {"sizes": [{"size": 1, "weight": 0}]}},
            "values.sizes: expected weights with a finite sum above zero, got 0",
        ),
        (
            {"commands": commands("SET"), "values": {"minimum": 20, "maximum": 99, "verify": True}},
            "values.minimum: expected sizes of at least 26 bytes, because verified values contain their key",
        ),
        (
            {"commands": commands("SET __new_key__ __data__"), "values": {"verify": True, "sizes": [{"size": 5}]}},
            "values.sizes: expected sizes of at least 27 bytes",
        ),
        ({"commands": commands("SET"), "expiry": {"minimum": 0.5, "maximum": 3}}, "expiry.minimum: expected whole"),
        ({"commands": commands("SET"), "expiry": {"minimum": 1, "maximum": 2.5}}, "expiry.maximum: expected whole"),
        ({"commands": commands("SET"), "expiry": {"minimum": 9, "maximum": 3}}, "expiry.minimum: expected minimum <="),
        (
            {"expiry": {"minimum": 9, "maximum": 9}},
            "expiry: expected a command that sets it: SET, or a template with __ttl__; got none",
        ),
    ],
)  # fmt: skip
def test_a_workload_is_refused_with_the_path_and_the_reason(workload: dict[str, Any], line: str) -> None:
    found = refusal(workload)
    assert found is not None
    assert found.isprintable()
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("workload", "line"),
    [
        (
            {"commands": commands("MGET"), "keys": {"prefix": "{a}"}},
            'keys.prefix: expected a key prefix without { where keys have hash tags, got "{a}"',
        ),
        (
            {"commands": commands({"command": "MGET", "key_prefix": "{a}"})},
            "commands[0].key_prefix: expected a key prefix without {",
        ),
        (
            {"commands": commands("MSET __key__ 1 __new_key__ 2")},
            "commands[0].command: expected __new_key__ as the only key, because all keys must share a slot",
        ),
        ({"commands": commands("SET __new_key__ 1"), "transaction": 2}, "commands[0].command: expected __new_key__ as"),
        ({"commands": commands("HSCAN"), "transaction": 2}, "commands[0].command: expected no __cursor__ of a key"),
        (
            {"commands": commands("GET", {"command": "SET", "key_maximum": 7}), "transaction": 2},
            "commands[1].command: expected the same range of keys for all commands of a transaction",
        ),
    ],
)
def test_in_a_cluster_commands_that_cannot_keep_to_one_slot_are_refused(workload: dict[str, Any], line: str) -> None:
    found = refusal(workload, **CLUSTER)
    assert found is not None
    assert found.isprintable()
    assert found.startswith(line)
    assert found.endswith("or use --keys-per-hash-tag 0")
    assert refusal(workload) is None


@pytest.mark.parametrize("workload", [{"commands": commands("MGET")}, {"commands": commands("GET"), "transaction": 2}])
def test_in_a_cluster_keys_of_several_slots_are_refused(workload: dict[str, Any]) -> None:
    assert refusal(workload, **CLUSTER) is None
    found = refusal({**workload, "keys": {"per_hash_tag": 0}}, **CLUSTER)
    assert found is not None
    assert found.startswith("commands[0].command: expected keys of one slot, because the target is a cluster and ")
    assert refusal({**workload, "keys": {"per_hash_tag": 0, "prefix": "{1}:"}}, **CLUSTER) is None
    assert refusal({**workload, "keys": {"per_hash_tag": 0}}) is None


def test_in_a_cluster_commands_for_no_node_in_particular_are_refused() -> None:
    found = refusal({"commands": commands("GET", "SCAN")}, **CLUSTER)
    assert found == (
        "commands[1].command: expected a command that can be sent to one node of a cluster, got SCAN; leave it out"
    )
    assert refusal({"commands": commands("HSCAN", "DBSIZE")}, **CLUSTER) is None
    found = refusal({"commands": commands("CLIENT INFO")}, **CLUSTER)
    assert found == (
        "commands[0].command: expected a command that redis-py can send to one node of a cluster, got CLIENT; "
        "use --driver wire"
    )
    assert refusal({"commands": commands("CLIENT INFO")}, pools=[{"driver": "wire"}], **CLUSTER) is None


def test_other_workloads_are_accepted() -> None:
    assert refusal({"commands": commands("SET"), "expiry": {"minimum": 1, "maximum": 60}}) is None
    assert refusal({"commands": commands("SET"), "values": {"minimum": 26, "maximum": 26, "verify": True}}) is None
    assert (
        refusal({"commands": commands("BLPOP", "XREAD", "XREAD STREAMS __key__ 0", "BLPOP __key__ __rand(1,2)__")})
        is None
    )
    lists = [{"command": "LPUSH", "times": 3, "key_prefix": "list:"}]
    assert refusal({"commands": commands("GET"), "preload": lists}) is None
    assert refusal({"commands": commands({"command": "XREADGROUP", "then": [{"command": "XACK"}]})}) is None
    assert refusal({"keys": {"distribution": "gaussian", "median": 3}}) is None


def test_a_setting_of_the_distribution_of_one_command_may_stand_at_the_workload() -> None:
    one = commands("SET", {"command": "GET", "key_distribution": "zipfian"})
    assert refusal({"keys": {"exponent": 1.2}, "commands": one}) is None


@pytest.mark.parametrize("text", ["CLIENT INFO", "client list TYPE normal", "CLIENT ID", "CONFIG GET maxclients"])
def test_a_command_that_only_reads_is_accepted_in_mix_and_setup(text: str) -> None:
    assert refusal({"commands": commands(text), "setup": [text]}) is None

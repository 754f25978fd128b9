"""Every row of the command table, drawn as a worker draws it and carried out by a real server through redis-py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from agent.worker.operations import Mix, Operation, draw_operations
from agent.worker.resp import reply_measure
from common.commands import COMMANDS, Holds, Placeholder
from common.plain import from_plain
from common.plan.schema import Workload
from tests.support.servers import Server, start_server

KEYS = 3
LUA = "return redis.call('GET', KEYS[1])"
FUNCTION = """#!lua name=stampede
redis.register_function{function_name='stampede', flags={'no-writes'},
                        callback=function(keys) return redis.call('GET', keys[1]) end}
"""
IMPATIENT = {
    "BLMOVE": "BLMOVE __keys(2)__ LEFT RIGHT 0.01",
    "BLMPOP": "BLMPOP 0.01 2 __keys(2)__ LEFT COUNT 2",
    "BLPOP": "BLPOP __key__ 0.01",
    "BRPOP": "BRPOP __key__ 0.01",
    "BRPOPLPUSH": "BRPOPLPUSH __keys(2)__ 0.01",
    "BZMPOP": "BZMPOP 0.01 1 __key__ MIN",
    "BZPOPMAX": "BZPOPMAX __key__ 0.01",
    "BZPOPMIN": "BZPOPMIN __key__ 0.01",
    "XREAD": "XREAD COUNT 10 BLOCK 10 STREAMS __key__ 0",
    "XREADGROUP": "XREADGROUP GROUP stampede worker:__thread__ COUNT 10 BLOCK 10 STREAMS __key__ >",
}
NOT_WITHOUT_DATA = {"RENAME", "RENAMENX", "LSET"}
"""They are errors on keys that do not exist."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start_server() as started:
        yield started


def fill(client: redis.Redis, holds: Holds) -> None:
    """Each key of the range holds something of this kind, whole numbers and fractions among it."""
    client.flushall()
    client.function_load(FUNCTION, replace=True)
    client.script_load(LUA)
    for number in range(1, KEYS + 1):
        key = f"stampede:{number}"
        match holds:
            case Holds.STRING | Holds.ANYTHING:
                client.set(key, "x" * 40 * number, ex=1000)
            case Holds.NUMBER:
                client.set(key, "10.25" if number == 3 else "41")
            case Holds.HASH:
                client.hset(key, mapping={f"field:{field}": "v" * field for field in range(1, 11)})
            case Holds.LIST:
                client.rpush(key, *(f"value {place}" for place in range(12)), "pivot")
            case Holds.SET:
                client.sadd(key, *(f"member:{member}" for member in range(1, 1001, number)))
            case Holds.SORTED_SET:
                scores = (1, 2.5, 0.1, 1e-7, 123456.789, 1e21, 17, 3e9)
                client.zadd(key, {f"member:{member}": scores[member % 8] for member in range(1, 1001, number)})
            case Holds.STREAM:
                client.xgroup_create(key, "stampede", "0", mkstream=True)
                for entry in range(12):
                    client.xadd(key, {"data": "x" * entry, "more": "1"})
                if number > 1:
                    client.xreadgroup("stampede", "worker:9", {key: ">"}, count=5)
            case Holds.HYPERLOGLOG:
                client.pfadd(key, *range(100 * number))
            case Holds.GEO:
                places = ((13.361389, 38.115556), (15.087269, 37.502669), (-0.127, 51.507))
                for member in range(1, 1001, number):
                    longitude, latitude = places[member % 3]
                    client.geoadd(key, (longitude, latitude, f"member:{member}"))
            case Holds.NOTHING:
                client.set(key, "x")


def operations(command: str, name: str) -> Iterator[Operation]:
    """The stream of a mix of one command; one that names entries follows XRANGE."""
    entry: dict[str, Any] = {"command": command}
    if COMMANDS[name].template.count(Placeholder.IDS):
        entry = {"command": "XRANGE", "then": [entry]}
    # In order, so that two keys of one command differ.
    raw: dict[str, Any] = {
        "commands": [entry],
        "keys": {"maximum": KEYS, "distribution": "sequential"},
        "scripts": [{"name": "main", "lua": LUA}],
    }
    if COMMANDS[name].holds is Holds.NUMBER:
        raw["keys"]["maximum"] = 2 if name != "INCRBYFLOAT" else 3
    return draw_operations(Mix(from_plain(raw, Workload), 1), 1, 0)


def counters(watch: redis.Redis, client_id: int) -> tuple[int, int]:
    """Bytes that the server read from and wrote to one client."""
    [told] = watch.client_list(client_id=[client_id])
    return int(told["tot-net-in"]), int(told["tot-net-out"])


def differences(server: Server, protocol: int, with_data: bool) -> list[str]:
    """Where what we say is not what the server counted, over several operations of each row."""
    client, watch = server.client(protocol=protocol, single_connection_client=True), server.client()
    client_id = client.client_id()
    found = []
    for name, row in COMMANDS.items():
        if row.subscribes or (name in NOT_WITHOUT_DATA and not with_data):
            continue  # its reply comes on a connection of its own; tests/agent/worker/test_subscriber.py
        fill(watch, row.holds if with_data else Holds.DUMP)
        if name == "ZSCAN" and with_data:  # see agent/worker/resp.py on its fractions
            for number in range(1, KEYS + 1):
                watch.zunionstore(f"stampede:{number}", {f"stampede:{number}": 0})
        if not with_data and row.holds is Holds.STREAM:
            for number in range(1, KEYS + 1):
                watch.xgroup_create(f"stampede:{number}", "stampede", "0", mkstream=True)
        stream = operations(IMPATIENT.get(name, name), name)
        for _ in range(6):
            _, arguments, bytes_out, follow = next(stream)
            measure = reply_measure(str(arguments[0]), protocol, client.response_callbacks)
            read, written = counters(watch, client_id)
            try:
                reply = client.execute_command(*arguments)
            except redis.RedisError as error:
                found.append(f"{arguments[0]}: {error}")
                break
            said = (bytes_out, measure(reply))
            after = counters(watch, client_id)
            counted = (after[0] - read, after[1] - written)
            if follow is not None:
                follow(reply)
            if said != counted:
                found.append(f"{arguments[0]}: said {said}, counted {counted}: {str(reply)[:100]}")
                break
    return found


@pytest.mark.parametrize("with_data", [True, False], ids=("on fitting data", "on no data"))
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_row_takes_on_the_wire_what_we_say_and_is_no_error(
    server: Server, protocol: int, with_data: bool
) -> None:
    assert differences(server, protocol, with_data) == []

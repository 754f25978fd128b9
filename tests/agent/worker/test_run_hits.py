"""Hits and misses of every driver, compared with what the server counts and with what the keys have."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from common.plan.schema import Command, Driver, Keys, Plan, Retry, Then, When, Workload
from common.units import Count
from tests.support.plans import plan_with
from tests.support.servers import Server
from tests.support.workers import WorkerThread

pytestmark = pytest.mark.usefixtures("no_leaks")

EACH_DRIVER = pytest.mark.parametrize("driver", list(Driver), ids=lambda driver: driver.value)
EACH_BATCH = pytest.mark.parametrize("batch", [{}, {"pipeline": 4}, {"transaction": 5}], ids=str)
EACH_PROTOCOL = pytest.mark.parametrize("protocol", [2, 3])


def plan_of(url: str, driver: Driver, commands: tuple[Command, ...], requests: int, **settings: Any) -> Plan:
    workload = {name: settings.pop(name) for name in ("pipeline", "transaction") if name in settings}
    connections = {"max_connections": 2} if driver is Driver.WIRE else {}
    plan = plan_with(
        url, "GET", requests=Count(requests), driver=driver, retry=Retry(retries=0), **connections, **settings
    )
    return msgspec.structs.replace(plan, workload=Workload(commands=commands, keys=Keys(maximum=Count(40)), **workload))


CACHE_ASIDE = (
    Command(command="GET", weight=9.0, then=(Then(command="SET", when=When.MISS),)),
    Command(command="DEL", weight=3.0),
)
READ_AND_WRITE = (Command(command="GET", weight=4.0), Command(command="SET"), Command(command="DEL"))
PACKED = (Command(command="GET", weight=4.0), Command(command="SET __key__ __data__"))


@EACH_DRIVER
@EACH_BATCH
@EACH_PROTOCOL
@pytest.mark.parametrize("mix", [CACHE_ASIDE, READ_AND_WRITE, PACKED], ids=["cache-aside", "three commands", "packed"])
def test_hits_and_misses_are_those_that_the_server_counts(
    valkey: Server, worker: WorkerThread, driver: Driver, batch: dict[str, int], protocol: int, mix: tuple[Command, ...]
) -> None:
    admin = valkey.client()
    admin.set("stampede:7", "")  # an empty value is a hit
    admin.config_resetstat()
    report = worker.run(plan_of(valkey.url, driver, mix, 1003, protocol=protocol, **batch))
    stats: Any = admin.info("stats")
    got = report.pool.commands["GET"]
    assert (got.hits, got.misses) == (stats["keyspace_hits"], stats["keyspace_misses"])
    assert got.hits + got.misses == got.ok
    assert min(got.hits, got.misses) > 0
    others = [metrics for name, metrics in report.pool.commands.items() if name != "GET"]
    assert not any(metrics.hits or metrics.misses for metrics in others)


@EACH_DRIVER
def test_misses_of_an_open_loop_are_counted(valkey: Server, worker: WorkerThread, driver: Driver) -> None:
    mix = (Command(command="GET absent"), Command(command="GET there"), Command(command="SET there x"))
    valkey.client().set("there", "x")
    report = worker.run(plan_of(valkey.url, driver, mix, 300, rate_per_s=3000.0))
    found = {name: (metrics.hits, metrics.misses, metrics.ok) for name, metrics in report.pool.commands.items()}
    assert found["GET absent"] == (0, found["GET absent"][2], found["GET absent"][2])
    assert found["GET there"] == (found["GET there"][2], 0, found["GET there"][2])
    assert found["SET"][:2] == (0, 0)


LOOKED_UP: dict[str, tuple[int, int]] = {
    "GET string": (1, 0),
    "GET absent": (0, 1),
    "GET empty": (1, 0),
    "GETEX absent PERSIST": (0, 1),
    "MGET string absent string": (2, 1),
    "EXISTS string absent string string": (3, 1),
    "TOUCH absent": (0, 1),
    "STRLEN string": (1, 0),
    "STRLEN absent": (0, 1),
    "TTL absent": (0, 1),
    "TTL string": (1, 0),
    "TYPE absent": (0, 1),
    "TYPE string": (1, 0),
    "HGET hash a": (1, 0),
    "HGET hash x": (0, 1),
    "HMGET hash a x b y": (2, 2),
    "HMGET absent a": (0, 1),
    "HEXISTS hash a": (1, 0),
    "HEXISTS hash x": (0, 1),
    "HGETALL hash": (1, 0),
    "HGETALL absent": (0, 1),
    "LPOP absent": (0, 1),
    "LPOP absent 2": (0, 1),
    "LINDEX list 0": (1, 0),
    "LINDEX list 99999": (0, 1),
    "LRANGE list 0 9": (1, 0),
    "LRANGE absent 0 9": (0, 1),
    "LPOS list a": (1, 0),
    "LPOS list x": (0, 1),
    "BLPOP list2 list 1": (1, 0),
    "SISMEMBER set a": (1, 0),
    "SISMEMBER set x": (0, 1),
    "SMISMEMBER set a x y": (1, 2),
    "SMEMBERS absent": (0, 1),
    "SPOP absent": (0, 1),
    "SRANDMEMBER absent 3": (0, 1),
    "ZSCORE zset zero": (1, 0),
    "ZSCORE zset x": (0, 1),
    "ZMSCORE zset zero x": (1, 1),
    "ZRANK zset zero": (1, 0),
    "ZRANK zset x": (0, 1),
    "ZPOPMIN absent": (0, 1),
    "ZRANGE zset 0 -1": (1, 0),
    "XREAD COUNT 1 STREAMS stream 0": (1, 0),
    "XREAD COUNT 1 STREAMS absent 0": (0, 1),
    "XRANGE stream - + COUNT 1": (1, 0),
    "GEOPOS absent a": (0, 1),
    "GEODIST absent a b": (0, 1),
    "EVAL 'return redis.call(\"GET\", KEYS[1])' 1 absent": (0, 1),
    "EVAL 'return redis.call(\"GET\", KEYS[1])' 1 string": (1, 0),
    "EVAL 'return 1' 1 string": (0, 0),
    "EVAL 'return redis.status_reply(\"OK\")' 1 string": (0, 0),
    "OBJECT ENCODING string": (0, 0),
    "INCR counter": (0, 0),
    "DEL absent": (0, 0),
    "ECHO string": (0, 0),
}


@EACH_DRIVER
@EACH_BATCH
@EACH_PROTOCOL
def test_every_reply_that_shows_what_was_found_counts(
    valkey: Server, worker: WorkerThread, driver: Driver, batch: dict[str, int], protocol: int
) -> None:
    fill(valkey)
    mix = tuple(Command(command=text, name=f"n{number}") for number, text in enumerate(LOOKED_UP))
    report = worker.run(plan_of(valkey.url, driver, mix, 2003, protocol=protocol, **batch))
    for number, (text, (hits, misses)) in enumerate(LOOKED_UP.items()):
        found = report.pool.commands[f"n{number}"]
        assert not found.errors
        assert (found.hits, found.misses) == (hits * found.ok, misses * found.ok), text


@EACH_BATCH
@EACH_PROTOCOL
@pytest.mark.parametrize(
    "text", ["MGET string absent", "EXISTS string absent", "ZRANK zset x", "GET absent", "LPOP absent"]
)
def test_one_command_beside_writes_is_counted_by_the_wire_driver_without_examining_other_replies(
    valkey: Server, worker: WorkerThread, batch: dict[str, int], protocol: int, text: str
) -> None:
    fill(valkey)
    mix = (Command(command=text, name="read"), Command(command="SET"))
    report = worker.run(plan_of(valkey.url, Driver.WIRE, mix, 503, protocol=protocol, **batch))
    found = report.pool.commands["read"]
    hits = found.ok if text in ("MGET string absent", "EXISTS string absent") else 0
    assert (found.hits, found.misses) == (hits, found.ok)
    assert report.pool.commands["SET"].hits == report.pool.commands["SET"].misses == 0


def fill(server: Server) -> None:
    """Write the keys that `LOOKED_UP` names."""
    client = server.client()
    client.mset({"string": "x", "empty": ""})
    client.hset("hash", mapping={"a": "1", "b": "2"})
    client.rpush("list", *["a"] * 5000)
    client.sadd("set", "a")
    client.zadd("zset", {"zero": 0})
    client.xadd("stream", {"a": "1"}, id="1-1")

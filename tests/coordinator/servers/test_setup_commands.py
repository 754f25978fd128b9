from __future__ import annotations

from typing import Any

import pytest

from common.errors import TargetError
from common.plan.planned_commands import script_digests
from common.plan.schema import Keys, Plan, Script, Target
from common.units import Count, Seconds
from coordinator.servers.setup_commands import BATCH, flush, set_up
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.plans import plan_for
from tests.support.servers import Server, SocketServer


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    # Shared servers keep their own connections open.
    if not {"shared_cluster", "shared_sentinel"} & set(request.fixturenames):
        request.getfixturevalue("no_leaks")


LUA = "return redis.call('GET', KEYS[1])"


def plan_of(url: str, *setup: str, maximum: int = 20, **workload: Any) -> Plan:
    target = Target(url=url, connect_timeout_s=Seconds(0.5), socket_timeout_s=Seconds(0.5))
    return plan_for(target, setup=setup, keys=Keys(prefix="k:", maximum=Count(maximum)), **workload)


def done(plan: Plan) -> tuple[int, list[str]]:
    said: list[str] = []
    return set_up(plan, said.append), said


def test_the_bytes_of_a_setup_reach_the_server_unchanged(valkey: Server) -> None:
    done(plan_of(valkey.url, r'SET "a\xff" "\x00\x80é"', r'HSET __key__ "\xfe" C:\temp', maximum=1))
    client = valkey.client()
    assert client.get(b"a\xff") == b"\x00\x80" + "é".encode()
    assert client.hgetall("k:1") == {b"\xfe": rb"C:\temp"}


def test_a_named_key_of_a_setup_is_the_same_at_each_place(valkey: Server) -> None:
    done(plan_of(valkey.url, "SET __key:k__ of:__key:k__", maximum=2))
    assert valkey.client().mget("k:1", "k:2") == [b"of:k:1", b"of:k:2"]


def test_a_flush_empties_only_the_database_of_the_target(valkey: Server) -> None:
    first, second = valkey.client(), valkey.client(db=1)
    first.mset({"a": 1, "b": 2})
    second.set("c", 3)
    assert flush(Target(url=f"{valkey.url}/0")) == 2
    assert (first.dbsize(), second.dbsize()) == (0, 1)


def test_a_forbidden_flush_is_a_target_error(valkey: Server) -> None:
    valkey.client().set("a", 1)
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+dbsize"], keys=["*"])
    with pytest.raises(TargetError, match=r"does not permit a command.*flushdb"):
        flush(Target(url=valkey.url, username="narrow", password="word", client_name=None))
    assert valkey.client().dbsize() == 1


def test_a_plan_without_setup_does_not_connect(refusing_url: str) -> None:
    assert done(plan_of(refusing_url)) == (0, [])


def test_a_setup_loads_the_scripts(valkey: Server) -> None:
    plan = plan_of(valkey.url, scripts=(Script(name="read", lua=LUA), Script(name="one", lua="return 1")))
    assert done(plan) == (2, [])
    digests = [digest.decode() for digest in script_digests(plan.workload).values()]
    assert valkey.client().script_exists(*digests) == [True, True]


LIBRARY = "#!lua name=mine\nserver.register_function{function_name='f', callback=function() return 1 end}"
FUNCTION_LOAD = f'FUNCTION LOAD REPLACE "{LIBRARY}"'


def test_a_setup_without_a_key_is_issued_once(valkey: Server) -> None:
    assert done(plan_of(valkey.url, "SET 'a key' 'a value'", FUNCTION_LOAD)) == (2, [])
    assert valkey.client().get("a key") == b"a value"
    assert valkey.client().execute_command("FCALL", "f", 0) == 1


@pytest.mark.parametrize("maximum", [1, BATCH, 2 * BATCH + 1])
def test_a_setup_with_a_key_is_issued_for_each_key(valkey: Server, maximum: int) -> None:
    plan = plan_of(valkey.url, "XGROUP CREATE __key__ workers 0 MKSTREAM", maximum=maximum)
    assert done(plan) == (maximum, [])
    assert valkey.client().dbsize() == maximum
    assert valkey.client().exists("k:1", f"k:{maximum}") == 2
    # A second run finds its groups there, and that is fine.
    assert done(plan) == (maximum, [])


def test_a_key_may_be_part_of_an_argument_and_scripts_have_names(valkey: Server) -> None:
    plan = plan_of(
        valkey.url, "SET copy:__key__ x", "EVALSHA __sha(read)__ 1 copy:__key__", maximum=3,
        scripts=(Script(name="read", lua=LUA),),
    )  # fmt: skip
    assert done(plan) == (7, [])
    found: Any = valkey.client().keys("*")
    assert set(found) == {b"copy:k:1", b"copy:k:2", b"copy:k:3"}


def test_an_error_reply_is_named_with_its_template_and_key(valkey: Server) -> None:
    valkey.client().set("k:17", "x")
    with pytest.raises(TargetError) as caught:
        done(plan_of(valkey.url, "XGROUP CREATE __key__ workers 0 MKSTREAM"))
    assert str(caught.value) == (
        f'target 127.0.0.1:{valkey.port} refused the setup: "XGROUP CREATE __key__ workers 0 MKSTREAM", key k:17 was '
        "answered with WRONGTYPE Operation against a key holding the wrong kind of value"
    )


def test_an_error_reply_to_a_single_call_or_a_script_is_named(valkey: Server) -> None:
    with pytest.raises(TargetError, match='refused the setup: "NOSUCH thing" was answered with ERR unknown command'):
        done(plan_of(valkey.url, "NOSUCH thing"))
    with pytest.raises(TargetError, match="refused the setup: script bad was answered with ERR"):
        done(plan_of(valkey.url, scripts=(Script(name="bad", lua="return ("),)))


def test_a_target_that_is_down_or_hangs_is_a_target_error(refusing_url: str, silent_server: SocketServer) -> None:
    with pytest.raises(TargetError, match="refused the connection"):
        done(plan_of(refusing_url, "SET a b"))
    with pytest.raises(TargetError, match="did not answer"):
        done(plan_of(silent_server.url, "SET __key__ b"))
    with pytest.raises(TargetError, match="did not answer"):
        flush(Target(url=silent_server.url, socket_timeout_s=Seconds(0.2)))


def test_a_long_setup_reports_its_progress(valkey: Server) -> None:
    plan = plan_of(valkey.url, "SET __key__ x", maximum=100_001)
    assert done(plan) == (100_001, ['setup: "SET __key__ x": 100,000 keys so far'])


def test_a_cluster_is_flushed_and_set_up_on_all_its_primaries(shared_cluster: ClusterGroup) -> None:
    shared_cluster.client().mset_nonatomic({f"old:{number}": 1 for number in range(50)})
    plan = plan_of(
        shared_cluster.url, "XGROUP CREATE __key__ workers 0 MKSTREAM", FUNCTION_LOAD, "SET literal x",
        maximum=2 * BATCH + 1, scripts=(Script(name="read", lua=LUA),),
    )  # fmt: skip
    assert flush(plan.target) == 50
    assert sum(shared_cluster.at(port).dbsize() for port in shared_cluster.primaries) == 0
    assert done(plan) == (3 + 2 * BATCH + 1 + 2, [])
    for port in shared_cluster.primaries:
        assert shared_cluster.at(port).script_exists(*script_digests(plan.workload).values()) == [True]
        assert len(shared_cluster.at(port).function_list()) == 1
        assert shared_cluster.at(port).dbsize() > 300
        shared_cluster.at(port).function_flush()
    assert sum(shared_cluster.at(port).dbsize() for port in shared_cluster.primaries) == 2 * BATCH + 2


def test_keys_of_a_cluster_have_the_hash_tags_of_the_load(shared_cluster: ClusterGroup) -> None:
    keys = Keys(prefix="k:", maximum=Count(20), per_hash_tag=10)
    plan = plan_for(Target(url=shared_cluster.url), setup=("SET __key__ x",), keys=keys)
    assert done(plan) == (20, [])
    assert shared_cluster.client().exists("k:{1}:17") == 1


def test_the_primary_behind_sentinels_is_flushed_and_set_up(shared_sentinel: SentinelGroup) -> None:
    shared_sentinel.client().set("old", 1)
    plan = plan_of(shared_sentinel.url, "SET __key__ x", "SET literal x")
    assert flush(plan.target) == 1
    assert done(plan) == (21, [])
    assert shared_sentinel.at(shared_sentinel.primary).dbsize() == 21

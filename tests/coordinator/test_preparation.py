from __future__ import annotations

from typing import Any

import pytest

from common.commands import script_digest
from common.errors import TargetError
from common.plan.schema import Keys, Plan, Script, Target
from common.units import Count, Seconds
from coordinator.preparation import BATCH, flush, set_up
from tests.support.plans import plan_for
from tests.support.servers import Server, SocketServer

pytestmark = pytest.mark.usefixtures("no_leaks")

LUA = "return redis.call('GET', KEYS[1])"


def plan_of(url: str, *setup: str, maximum: int = 20, **workload: Any) -> Plan:
    target = Target(url=url, connect_timeout_s=Seconds(0.5), socket_timeout_s=Seconds(0.5))
    return plan_for(target, setup=setup, keys=Keys(prefix="k:", maximum=Count(maximum)), **workload)


def done(plan: Plan) -> tuple[int, list[str]]:
    said: list[str] = []
    return set_up(plan, said.append), said


def test_a_flush_empties_the_database_of_the_target_and_no_other(valkey: Server) -> None:
    first, second = valkey.client(), valkey.client(db=1)
    first.mset({"a": 1, "b": 2})
    second.set("c", 3)
    assert flush(Target(url=f"{valkey.url}/0")) == 2
    assert (first.dbsize(), second.dbsize()) == (0, 1)


def test_a_flush_that_is_not_permitted_is_a_target_error_in_one_line(valkey: Server) -> None:
    valkey.client().set("a", 1)
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+dbsize"], keys=["*"])
    with pytest.raises(TargetError, match=r"does not permit it.*flushdb"):
        flush(Target(url=valkey.url, username="narrow", password="word", client_name=None))
    assert valkey.client().dbsize() == 1


def test_a_plan_without_setup_asks_the_target_nothing(refusing_url: str) -> None:
    assert done(plan_of(refusing_url)) == (0, [])


def test_scripts_are_there_afterwards(valkey: Server) -> None:
    plan = plan_of(valkey.url, scripts=(Script(name="read", lua=LUA), Script(name="one", lua="return 1")))
    assert done(plan) == (2, [])
    digests = [script_digest(script.lua).decode() for script in plan.workload.scripts]
    assert valkey.client().script_exists(*digests) == [True, True]


def test_a_setup_without_a_key_is_issued_once(valkey: Server) -> None:
    library = "#!lua name=mine\\nserver.register_function{function_name='f', callback=function() return 1 end}"
    text = library.replace("\\n", "\n")
    assert done(plan_of(valkey.url, "SET 'a key' 'a value'", f'FUNCTION LOAD "{text}"')) == (2, [])
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


def test_a_key_may_be_a_part_of_an_argument_and_scripts_be_named(valkey: Server) -> None:
    plan = plan_of(
        valkey.url, "SET copy:__key__ x", "EVALSHA __sha(read)__ 1 copy:__key__", maximum=3,
        scripts=(Script(name="read", lua=LUA),),
    )  # fmt: skip
    assert done(plan) == (7, [])
    found: Any = valkey.client().keys("*")
    assert set(found) == {b"copy:k:1", b"copy:k:2", b"copy:k:3"}


def test_any_other_error_reply_names_template_key_and_reply(valkey: Server) -> None:
    valkey.client().set("k:17", "x")
    with pytest.raises(TargetError) as caught:
        done(plan_of(valkey.url, "XGROUP CREATE __key__ workers 0 MKSTREAM"))
    assert str(caught.value) == (
        f'target 127.0.0.1:{valkey.port} refused the setup: "XGROUP CREATE __key__ workers 0 MKSTREAM", key k:17 was '
        "answered with WRONGTYPE Operation against a key holding the wrong kind of value"
    )


def test_an_error_reply_to_a_single_call_and_to_a_script_is_told_too(valkey: Server) -> None:
    with pytest.raises(TargetError, match='refused the setup: "NOSUCH thing" was answered with ERR unknown command'):
        done(plan_of(valkey.url, "NOSUCH thing"))
    with pytest.raises(TargetError, match="refused the setup: script bad was answered with ERR"):
        done(plan_of(valkey.url, scripts=(Script(name="bad", lua="return ("),)))


def test_a_target_that_is_gone_or_hangs_is_a_target_error(refusing_url: str, silent_server: SocketServer) -> None:
    with pytest.raises(TargetError, match="refused the connection"):
        done(plan_of(refusing_url, "SET a b"))
    with pytest.raises(TargetError, match="did not answer"):
        done(plan_of(silent_server.url, "SET __key__ b"))
    with pytest.raises(TargetError, match="did not answer"):
        flush(Target(url=silent_server.url, socket_timeout_s=Seconds(0.2)))


def test_a_long_setup_tells_how_far_it_is(valkey: Server) -> None:
    plan = plan_of(valkey.url, "SET __key__ x", maximum=100_001)
    assert done(plan) == (100_001, ['setup: "SET __key__ x": 100,000 keys so far'])

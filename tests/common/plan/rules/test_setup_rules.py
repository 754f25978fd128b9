from __future__ import annotations

from typing import Any

import pytest

from common.errors import PlanError
from common.plan.rules.checks import check_plan
from common.plan.rules.setup_rules import MOST_SETUP_KEYS
from common.plan.schema import Command, Keys, Load, Plan, Preload, Script, Target, Workload
from common.units import Count, Seconds


def problem(**workload: Any) -> str | None:
    """What is wrong with a plan, with the path that says it; None for a plan in which nothing is."""
    plan = Plan(
        target=Target(url="redis://h"),
        load=Load(duration_s=Seconds(1)),
        workload=Workload(commands=(Command(command="GET"),), **workload),
    )
    try:
        check_plan(plan, lambda path: ".".join(map(str, path)))
    except PlanError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NOSUCH", "expected a name of the command table, or a template"),
        ("SET 'k", "expected a command such as"),
        ("SELECT 3", "expected a command that leaves its connection unchanged, got SELECT"),
        ("SET __key__ __data__", "expected only the placeholders __key__ and __sha(NAME)__ in setup, got __data__"),
        (
            "SET k:__rand(1,5)__ x",
            "expected only the placeholders __key__ and __sha(NAME)__ in setup, got __rand(1,5)__",
        ),
        ("EVALSHA __sha(two)__ 0", 'expected __sha(NAME)__ of a script of the plan (one), got "two"'),
    ],
)
def test_an_invalid_setup_is_refused_at_its_place(text: str, said: str) -> None:
    found = problem(setup=("SET k v", text), scripts=(Script(name="one", lua="return 1"),))
    assert found is not None
    assert found.startswith(f"workload.setup.1: {said}")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Preload(command="NOSUCH"), "command: expected a name of the command table, or a template"),
        (Preload(command="GET"), "command: expected a command that writes, got GET"),
        (Preload(command="SET k v"), "command: expected a command with one __key__, to be issued for each key"),
        (Preload(command="CLIENT SETNAME __key__"), "command: expected CLIENT with one of GETNAME, GETREDIR, "),
        (Preload(command="SET __key__ __ids__"), "command: expected __ids__ only in `then`"),
        (Preload(command="SET __key__ __message__"), "command: expected no __message__ in preload"),
        (Preload(command="EVALSHA __sha(x)__ 1 __key__"), "command: expected __sha(NAME)__ of a script of the plan"),
        (
            Preload(key_minimum=Count(9), key_maximum=Count(8)),
            "key_minimum: expected key_minimum <= key_maximum, got 9 ",
        ),
        (Preload(key_maximum=Count(0)), "key_maximum: expected key_minimum <= key_maximum, got 1 and 0"),
    ],
)
def test_an_invalid_preload_is_refused_at_its_place(entry: Preload, said: str) -> None:
    found = problem(preload=(Preload(), entry))
    assert found is not None
    assert found.startswith(f"workload.preload.1.{said}")


def test_valid_setups_and_preloads_are_accepted() -> None:
    assert problem(
        setup=("XGROUP CREATE __key__ g 0 MKSTREAM", "FUNCTION LOAD x", "EVALSHA __sha(one)__ 1 a:__key__"),
        scripts=(Script(name="one", lua="return 1"),),
        preload=(
            Preload(),
            Preload(times=3),
            Preload(command="JSON.SET __key__ $ __data__"),
            Preload(command="HSET __key__ f:__rand(1,9)__ __data__", key_prefix="hash:"),
            Preload(key_minimum=Count(7), key_maximum=Count(7)),
        ),
    ) is None  # fmt: skip


def test_only_a_setup_for_each_key_limits_the_keys() -> None:
    keys = Keys(minimum=Count(0), maximum=Count(MOST_SETUP_KEYS))
    found = problem(setup=("INCR __key__",), keys=keys)
    assert found is not None
    assert "expected at most 1000000 keys for a setup command that names __key__, got 1000001" in found
    assert problem(setup=("INCR counter",), keys=keys) is None
    assert problem(setup=("INCR __key__",), keys=Keys(minimum=Count(1), maximum=Count(MOST_SETUP_KEYS))) is None

"""What only the target can say of a plan's commands, asked before anything starts: does it know them, does each keep to
one slot?

A command or subcommand that the server does not know, or that has too few or too many arguments, would be refused at
each call. COMMAND INFO describes commands, and since Redis 7 their subcommands. If the server refuses COMMAND INFO
itself, nothing is checked.

A cluster refuses a command whose keys lie in several slots, at each call. So the server is asked which arguments of a
sample call are keys (COMMAND GETKEYS, which executes nothing); their slots are computed here. That keys which are drawn
share one is a rule of the plan: what is found here are keys, or parts of them, that stand in a command as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import chain
from typing import Any

from common.commands import COMMANDS
from common.errors import PlanError
from common.plan.planned_commands import is_cluster, sample_calls, sample_setup_calls
from common.plan.schema import Plan
from common.redis_client import nodes_of, slot_of, translated
from common.units import show
from coordinator.servers.facts import Asked, ask, asking

_REMEDY = "give its keys one hash tag, as in {user}:a, or let drawn keys share one with --keys-per-hash-tag"


def refuse_misfits(plan: Plan) -> None:
    """Raises PlanError for the first command of the plan that the target would refuse at each call, TargetError when it
    cannot be asked."""
    with translated(plan.target):
        node = nodes_of(plan.target)[0]
    with asking(plan.target, node) as client:
        refuse_unknown(plan, client)
        if is_cluster(plan.target):
            refuse_slots_of(plan, client)


def refuse_unknown(plan: Plan, client: Asked) -> None:
    """Raises PlanError for the first command or subcommand that this node does not know, or whose number of arguments
    is wrong."""
    calls = chain(sample_calls(plan.target, plan.workload), sample_setup_calls(plan.target, plan.workload))
    for name, call in calls:
        told = ask(client, "COMMAND INFO", name)
        if not isinstance(told, list) or len(told) != 1:
            continue
        if told[0] is None:
            raise PlanError(
                f"workload: expected commands that the target knows, got {show(name)}, which it does not; is it "
                f"spelled right, and its module loaded?{_meant(name, COMMANDS)}"
            )
        subcommands = _subcommands(told[0])
        if subcommands and len(call) > 1:
            word = call[1].decode(errors="replace").upper()
            if word not in subcommands:
                raise PlanError(
                    f"workload: expected a subcommand of {name} that the target knows, got {show(word)}"
                    f"{_meant(word, subcommands) or f'; it knows {_listed(subcommands)}'}"
                )
            _refuse_count(f"{name} {word}", subcommands[word], len(call), 2)
        else:
            _refuse_count(name, _arity(told[0]), len(call), 1)


def _refuse_count(name: str, arity: int, given: int, words: int) -> None:
    """Raises PlanError for a wrong number of arguments. arity: as COMMAND INFO has it: arguments including the name, if
    negative the least number, 0 for unknown. given: the same count. words: how many of these are the name."""
    if not arity or (given >= -arity if arity < 0 else given == arity):
        return
    wanted = abs(arity) - words
    least = "at least " if arity < 0 else ""
    raise PlanError(f"workload: {name} takes {least}{wanted} argument{'' if wanted == 1 else 's'}, got {given - words}")


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _subcommands(info: Any) -> dict[str, int]:
    """The arity of each subcommand by name; empty for a command without subcommands, and before Redis 7."""
    listed = info[9] if isinstance(info, list) and len(info) > 9 else None
    found = {}
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, list) and each and isinstance(each[0], bytes):
            found[each[0].decode(errors="replace").partition("|")[2].upper()] = _arity(each)
    return found


def _arity(info: Any) -> int:
    """How many arguments a command takes, including its name; if negative, the least number; 0 if unknown."""
    return info[1] if isinstance(info, list) and len(info) > 1 and isinstance(info[1], int) else 0


def refuse_slots_of(plan: Plan, client: Asked) -> None:
    """Raises PlanError for the first command of a cluster plan, or its transaction, whose keys lie in several slots.
    client: of any node."""
    workload = plan.workload
    together: dict[bytes, str] = {}
    for name, call in sample_calls(plan.target, workload):
        keys = _keys(client, call)
        if len(_slots(keys)) > 1:
            raise PlanError(_refusal(f"{name} with the keys {_list(keys)}", len(_slots(keys))))
        together.update(dict.fromkeys(keys, name))
    slots = _slots(together)
    if workload.transaction > 1 and len(slots) > 1:
        names = ", ".join(sorted(set(together.values())))
        raise PlanError(_refusal(f"the transaction of {names} with the keys {_list(together)}", len(slots)))


def _refusal(what: str, slots: int) -> str:
    return f"workload: {what} needs {slots} slots of the cluster, and one is allowed: {_REMEDY}"


def _keys(client: Asked, call: tuple[bytes, ...]) -> list[bytes]:
    # Refused for a command that has no keys, or that the server does not know: what that means is said elsewhere.
    told = ask(client, "COMMAND GETKEYS", *call) or ()
    return [key if isinstance(key, bytes) else str(key).encode() for key in told]


def _slots(keys: Iterable[bytes]) -> set[int]:
    return {slot_of(key) for key in keys}


def _list(keys: Iterable[bytes]) -> str:
    return ", ".join(key.decode(errors="replace") for key in keys)

"""Check a plan's commands before the run, with what only the target knows.

- Does the server know each command, and does the command take this many arguments? COMMAND INFO describes commands and,
  since Redis 7, subcommands. If the server refuses COMMAND INFO, nothing is checked.
- In a cluster: do all keys of a command lie in one slot? COMMAND GETKEYS returns which arguments of a sample call are
  keys, without executing the call; the slots are computed here. A rule of the plan already ensures that drawn keys
  share a slot, so this finds keys, or parts of keys, that are literals in a command.

The server would refuse such a command at each call.
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
from coordinator.servers.queries import CommandClient, open_node, query

_REMEDY = "give its keys one hash tag, as in {user}:a, or let drawn keys share one with --keys-per-hash-tag"


def check_commands(plan: Plan) -> None:
    """Raise PlanError for the first command that the target would refuse at each call, and TargetError if the target
    cannot be queried."""
    with translated(plan.target):
        node = nodes_of(plan.target)[0]
    with open_node(plan.target, node) as client:
        check_known(plan, client)
        if is_cluster(plan.target):
            check_slots(plan, client)


def check_known(plan: Plan, client: CommandClient) -> None:
    """Raise PlanError for the first command or subcommand that this node does not know, or that has a wrong number of
    arguments."""
    calls = chain(sample_calls(plan.target, plan.workload), sample_setup_calls(plan.target, plan.workload))
    for name, call in calls:
        reply = query(client, "COMMAND INFO", name)
        if not isinstance(reply, list) or len(reply) != 1:
            continue
        if reply[0] is None:
            raise PlanError(
                f"workload: the target does not know the command {show(name)}; check its spelling and that its module "
                f"is loaded{_suggestion(name, COMMANDS)}"
            )
        subcommands = _subcommands(reply[0])
        if subcommands and len(call) > 1:
            word = call[1].decode(errors="replace").upper()
            if word not in subcommands:
                raise PlanError(
                    f"workload: the target does not know the subcommand {show(word)} of {name}"
                    f"{_suggestion(word, subcommands) or f'; it knows {_listed(subcommands)}'}"
                )
            _check_argument_count(f"{name} {word}", subcommands[word], len(call), 2)
        else:
            _check_argument_count(name, _arity(reply[0]), len(call), 1)


def _check_argument_count(name: str, arity: int, given: int, words: int) -> None:
    """Raise PlanError for a wrong number of arguments.

    arity: as in COMMAND INFO, the number of words including the name; if negative, the least number; 0 if unknown.
    given: the number of words in the call. words: how many of these are the command's name.
    """
    if not arity or (given >= -arity if arity < 0 else given == arity):
        return
    wanted = abs(arity) - words
    least = "at least " if arity < 0 else ""
    raise PlanError(f"workload: {name} takes {least}{wanted} argument{'' if wanted == 1 else 's'}, got {given - words}")


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _subcommands(info: Any) -> dict[str, int]:
    """Return the arity of each subcommand by name; empty without subcommands, and before Redis 7."""
    listed = info[9] if isinstance(info, list) and len(info) > 9 else None
    found = {}
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, list) and each and isinstance(each[0], bytes):
            found[each[0].decode(errors="replace").partition("|")[2].upper()] = _arity(each)
    return found


def _arity(info: Any) -> int:
    """Return the arity from a reply of COMMAND INFO; 0 if unknown."""
    return info[1] if isinstance(info, list) and len(info) > 1 and isinstance(info[1], int) else 0


def check_slots(plan: Plan, client: CommandClient) -> None:
    """Raise PlanError for the first command of a cluster plan, or its transaction, whose keys lie in several slots.
    client: of any node."""
    workload = plan.workload
    together: dict[bytes, str] = {}
    for name, call in sample_calls(plan.target, workload):
        keys = _keys(client, call)
        if len(_slots(keys)) > 1:
            raise PlanError(_slots_error(f"{name} with the keys {_listed_keys(keys)}", len(_slots(keys))))
        together.update(dict.fromkeys(keys, name))
    slots = _slots(together)
    if workload.transaction > 1 and len(slots) > 1:
        names = ", ".join(sorted(set(together.values())))
        raise PlanError(_slots_error(f"the transaction of {names} with the keys {_listed_keys(together)}", len(slots)))


def _slots_error(what: str, slots: int) -> str:
    return f"workload: {what} uses {slots} slots of the cluster, but a cluster allows one: {_REMEDY}"


def _keys(client: CommandClient, call: tuple[bytes, ...]) -> list[bytes]:
    # The server refuses this for a command without keys and for an unknown command; `check_known` reports the latter.
    reply = query(client, "COMMAND GETKEYS", *call) or ()
    return [key if isinstance(key, bytes) else str(key).encode() for key in reply]


def _slots(keys: Iterable[bytes]) -> set[int]:
    return {slot_of(key) for key in keys}


def _listed_keys(keys: Iterable[bytes]) -> str:
    return ", ".join(key.decode(errors="replace") for key in keys)

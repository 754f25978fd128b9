"""What only the target can say of a plan's commands, asked before anything starts: does it know them, does each keep to
one slot?

A command that the server does not know, or that has too few or too many arguments, would be refused at each call.
COMMAND INFO tells; where it is refused itself, the plan is taken at its word.

A cluster refuses a command whose keys lie in several slots, at each call. So the server is asked which arguments of a
sample call are keys (COMMAND GETKEYS, which executes nothing); their slots are computed here. That keys which are drawn
share one is a rule of the plan: what is found here are keys, or parts of them, that stand in a command as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.commands import is_cluster, sample_calls
from common.errors import PlanError
from common.plan.schema import Plan
from common.target import nodes_of, slot_of, translated
from common.units import show
from coordinator.probe import Asked, ask, asking

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
    """Raises PlanError for the first command that this node does not know, or not with so many arguments."""
    for name, call in sample_calls(plan.target, plan.workload):
        told = ask(client, "COMMAND INFO", name)
        if not isinstance(told, list) or len(told) != 1:
            continue
        if told[0] is None:
            raise PlanError(
                f"workload: expected commands that the target knows, got {show(name)}, which it does not; is it "
                "spelled right, and its module loaded?"
            )
        # A negative one is the least that there may be. Like the calls', it counts the name.
        arity = _arity(told[0])
        if arity and (len(call) < -arity if arity < 0 else len(call) != arity):
            wanted = f"at least {-arity - 1}" if arity < 0 else f"{arity - 1}"
            raise PlanError(
                f"workload: expected as many arguments of {name} as the target does, {wanted}, got {len(call) - 1}"
            )


def _arity(info: Any) -> int:
    """How many arguments a command takes, 0 where the server does not say so."""
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

"""What only the target can say of a plan's commands, asked before anything starts: does each keep to one slot?

A cluster refuses a command whose keys lie in several slots, at each call. So the server is asked which arguments of a
sample call are keys (COMMAND GETKEYS, which executes nothing); their slots are computed here. That keys which are drawn
share one is a rule of the plan: what is found here are keys, or parts of them, that stand in a command as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.commands import is_cluster, sample_calls
from common.errors import PlanError
from common.plan.schema import Plan
from common.target import PRIMARY, nodes_of, slot_of, translated
from coordinator.probe import Asked, ask, asking

_REMEDY = "give its keys one hash tag, as in {user}:a, or let drawn keys share one with --keys-per-hash-tag"


def refuse_several_slots(plan: Plan) -> None:
    """Raises PlanError for the first command of a cluster plan, or its transaction, whose keys lie in several slots;
    TargetError when the cluster cannot be asked. Asks nothing of any other target."""
    if not is_cluster(plan.target):
        return
    with translated(plan.target):
        node = next(node for node in nodes_of(plan.target) if node.role == PRIMARY)
    with asking(plan.target, node) as client:
        refuse_slots_of(plan, client)


def refuse_slots_of(plan: Plan, client: Asked) -> None:
    """The same, asking this node."""
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

"""Plans in few words."""

from __future__ import annotations

from typing import Any

from common.plan.schema import Command, Plan, Target, Workload


def plan_for(target: Target, *commands: str, **workload: Any) -> Plan:
    """A plan with these commands, alike in weight; keywords are further fields of its workload."""
    return Plan(
        target=target,
        workload=Workload(commands=tuple(Command(command=command) for command in commands or ("GET",)), **workload),
    )

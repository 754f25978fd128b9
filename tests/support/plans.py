"""Plans for tests, in one line."""

from __future__ import annotations

from typing import Any

from common.plan.schema import Command, Fleet, Load, Plan, Pools, Target, Workload


def plan_for(target: Target, *commands: str, **workload: Any) -> Plan:
    """A plan with these commands at equal weight; keywords are further fields of its workload."""
    return Plan(
        target=target,
        workload=Workload(commands=tuple(Command(command=command) for command in commands or ("GET",)), **workload),
    )


def plan_with(url: str, *commands: str, **settings: Any) -> Plan:
    """A plan with one group of pools. Each setting goes to the section that has a field of its name."""

    def section(kind: type[Any], **given: Any) -> Any:
        mine = {name: settings.pop(name) for name in list(settings) if name in kind.__struct_fields__}
        return kind(**given, **mine)

    plan = Plan(
        target=section(Target, url=url),
        pools=(section(Pools),),
        load=section(Load),
        workload=section(Workload, commands=tuple(Command(command=command) for command in commands)),
        fleet=section(Fleet),
    )
    assert not settings, "no section has these fields"
    return plan

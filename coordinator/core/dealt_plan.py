"""Deals a plan to agents: pools, threads and connections. Pure.

Pools of each group are dealt in proportion to the agents' worker processes. What does not divide goes, one pool each,
to the agents that have the fewest threads for their processes so far, the first of them first. With `per_agent`,
every agent gets the plan's numbers of pools and the fleet's rate and requests are that many times the plan's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from common.errors import FleetError
from common.plan.scenarios import scenario_plans
from common.plan.schema import Plan, Pools, StampRole
from common.protocol.messages import MAX_MESSAGE_BYTES, Assignment, PoolShare
from common.serde import to_builtins
from common.units import Count, PerSecond, counted

_ENVELOPE_BYTES = 1024
"""Upper limit for the rest of a message that carries an assignment."""


@dataclass(frozen=True, slots=True)
class AgentCapacity:
    """An agent and its worker processes."""

    agent_id: str
    processes: int


@dataclass(frozen=True, slots=True)
class DealtPlan:
    """The share of each agent. plan: its numbers are the fleet's, also if the plan was given per agent. assignments: by
    agent id, in the order of the agents; one for each scenario of which the agent has pools. An agent without any pool
    has one empty assignment. threads, connection_ceilings: of each scenario."""

    plan: Plan
    assignments: dict[str, tuple[Assignment, ...]]
    pools_total: int
    threads: tuple[int, ...]
    connection_ceilings: tuple[int, ...]

    @property
    def threads_total(self) -> int:
        """Worker threads of all scenarios."""
        return sum(self.threads)

    @property
    def connection_ceiling(self) -> int:
        """The most TCP connections of all scenarios together; to each node of a cluster."""
        return sum(self.connection_ceilings)

    def pools_of(self, agent_id: str) -> tuple[PoolShare, ...]:
        """The pools of an agent, in all scenarios."""
        return pools_of(self.assignments[agent_id])


def pools_of(assignments: Sequence[Assignment]) -> tuple[PoolShare, ...]:
    """The pools of several assignments."""
    return tuple(share for assignment in assignments for share in assignment.pools)


def assign(plan: Plan, agents: Sequence[AgentCapacity]) -> DealtPlan:
    """Each agent's share. Pools are numbered through all scenarios, threads within each scenario; both first through
    the groups and then through the agents.

    Raises FleetError without agents.
    """
    if not agents:
        raise FleetError("expected at least one agent to deal the plan to, got none")
    loads = [0] * len(agents)
    dealt: list[list[PoolShare]] = [[] for _ in agents]
    fleet_wide: list[Plan] = []
    threads: list[int] = []
    number = 0
    writers: list[list[int]] | None = None
    for scenario in scenario_plans(plan):
        stamps = scenario.plan.workload.stamps
        if stamps is not None and stamps.role is StampRole.READ and writers is not None:
            counts = writers  # on the same agent, whose clock both use
        else:
            counts = _deal(scenario.plan, agents, loads)
        if stamps is not None and stamps.role is StampRole.WRITE:
            writers = counts
        part = _fleet_wide(scenario.plan, len(agents), [sum(group) for group in counts])
        for agent, share in _numbered(part, counts, number, scenario.number):
            dealt[agent].append(share)
        number += sum(map(sum, counts))
        threads.append(
            sum(sum(group) * pools.workers_per_pool for group, pools in zip(counts, part.pools, strict=True))
        )
        fleet_wide.append(part)
    whole = _joined(plan, fleet_wide)
    return DealtPlan(
        plan=whole,
        assignments={
            agent.agent_id: assignments_of(whole, pools, threads) for agent, pools in zip(agents, dealt, strict=True)
        },
        pools_total=number,
        threads=tuple(threads),
        connection_ceilings=tuple(map(connection_ceiling, fleet_wide)),
    )


def assignments_of(
    plan: Plan, pools: Sequence[PoolShare], threads: Sequence[int], *, preloads: bool = True
) -> tuple[Assignment, ...]:
    """The assignments of an agent with these pools: one for each scenario of which it has pools; an empty one of the
    first scenario without any pool. plan: with fleet-wide numbers. threads: of each scenario in the whole fleet."""
    made = []
    for scenario in scenario_plans(plan):
        hand = tuple(share for share in pools if share.scenario == scenario.number)
        if hand or (not pools and scenario.number == 0):
            made.append(
                Assignment(
                    plan=scenario.plan,
                    pools=hand,
                    threads_total=threads[scenario.number],
                    preloads=preloads,
                    scenario=scenario.name,
                    scenarios=len(threads),
                    start_ns=scenario.start_ns,
                    first_leg=scenario.first_leg,
                )
            )
    return tuple(made)


def oversized(shares: DealtPlan) -> str:
    """Why a share cannot be sent to its agent; "" if all can."""
    agent_id = max(shares.assignments, key=lambda each: len(shares.pools_of(each)))
    size = len(msgspec.msgpack.encode(to_builtins(shares.assignments[agent_id]))) + _ENVELOPE_BYTES
    if size <= MAX_MESSAGE_BYTES:
        return ""
    return (
        f"the share of agent {agent_id} takes {size:,} bytes, expected at most {MAX_MESSAGE_BYTES:,}; use fewer than "
        f"its {counted(len(shares.pools_of(agent_id)), 'client pool')}, more agents, or shorter scripts"
    )


def connection_ceiling(plan: Plan) -> int:
    """The most TCP connections that one scenario with fleet-wide numbers can open: the sum over its pool groups of
    pools x client instances x max connections."""
    return sum(
        (group.client_pools or 0) * group.client_instances_per_pool * group.max_connections for group in plan.pools
    )


def group_ceiling(group: Pools) -> int:
    """The most TCP connections that a group with a number of pools can open."""
    return (group.client_pools or 0) * group.client_instances_per_pool * group.max_connections


def connections_line(group: Pools, scenario: str = "") -> str:
    """The arithmetic of one group: pools x client instances x connections. scenario: "name/" of several."""
    return (
        f"connections of {scenario}{group.name}: {counted(group.client_pools or 0, 'client pool')} x "
        f"{counted(group.client_instances_per_pool, 'client instance')} x "
        f"{counted(group.max_connections, 'connection')} = {group_ceiling(group)}"
    )


def split(count: int, weights: Sequence[int], order: Sequence[int]) -> list[int]:
    """`count` in proportion to `weights`, which are >= 1; what is left over goes one each to the first in `order`."""
    total = sum(weights)
    parts = [count * weight // total for weight in weights]
    for position in order[: count - sum(parts)]:
        parts[position] += 1
    return parts


def _deal(plan: Plan, agents: Sequence[AgentCapacity], threads: list[int]) -> list[list[int]]:
    """How many pools of each group each agent gets: one list a group, one number an agent. threads: how many threads
    each agent has so far; those of these pools are added."""
    processes = [agent.processes for agent in agents]
    counts = []
    for group in plan.pools:
        counts.append(_deal_group(group, plan.fleet.per_agent, processes, threads))
        threads[:] = [had + count * group.workers_per_pool for had, count in zip(threads, counts[-1], strict=True)]
    return counts


def _deal_group(group: Pools, per_agent: bool, processes: list[int], threads: list[int]) -> list[int]:
    if group.client_pools is None:
        return list(processes)
    if per_agent:
        return [group.client_pools] * len(processes)
    least_loaded = sorted(range(len(processes)), key=lambda agent: threads[agent] / processes[agent])
    return split(group.client_pools, processes, least_loaded)


def _fleet_wide(plan: Plan, agents: int, pools: list[int]) -> Plan:
    groups = tuple(
        msgspec.structs.replace(group, client_pools=count) for group, count in zip(plan.pools, pools, strict=True)
    )
    if not plan.fleet.per_agent:
        return msgspec.structs.replace(plan, pools=groups)
    load = msgspec.structs.replace(
        plan.load,
        requests=None if plan.load.requests is None else Count(plan.load.requests * agents),
        rate_per_s=_times(plan.load.rate_per_s, agents),
        stages=tuple(
            msgspec.structs.replace(stage, rate_per_s=_times(stage.rate_per_s, agents)) for stage in plan.load.stages
        ),
    )
    fleet = msgspec.structs.replace(plan.fleet, per_agent=False)
    return msgspec.structs.replace(plan, pools=groups, load=load, fleet=fleet)


def _joined(plan: Plan, parts: Sequence[Plan]) -> Plan:
    """The whole plan with the fleet-wide numbers of its scenarios."""
    if not plan.scenarios:
        return parts[0]
    scenarios = tuple(
        msgspec.structs.replace(scenario, pools=part.pools, load=part.load)
        for scenario, part in zip(plan.scenarios, parts, strict=True)
    )
    return msgspec.structs.replace(plan, scenarios=scenarios, fleet=parts[0].fleet)


def _times(rate_per_s: PerSecond | None, agents: int) -> PerSecond | None:
    return None if rate_per_s is None else PerSecond(rate_per_s * agents)


def _numbered(plan: Plan, counts: list[list[int]], number: int, scenario: int) -> Iterator[tuple[int, PoolShare]]:
    """Every pool of a scenario as (position of its agent, share). number: of the first pool."""
    first_thread = 0
    for group, agents in enumerate(counts):
        for agent, count in enumerate(agents):
            for _ in range(count):
                yield agent, PoolShare(group=group, number=number, first_thread=first_thread, scenario=scenario)
                number += 1
                first_thread += plan.pools[group].workers_per_pool

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
from common.plan.schema import Plan, Pools
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
    """A plan with the assignment of each agent. plan: its numbers are fleet-wide, also if the user's plan was
    `per_agent`. assignments: by agent id, in the agents' order; one may have no pool."""

    plan: Plan
    assignments: dict[str, Assignment]
    pools_total: int
    threads_total: int
    connection_ceiling: int


def assign(plan: Plan, agents: Sequence[AgentCapacity]) -> DealtPlan:
    """Each agent's share. Pools are numbered, and so are threads, through the groups and in each through the agents.

    Raises FleetError without agents.
    """
    if not agents:
        raise FleetError("expected at least one agent to deal the plan to, got none")
    counts = _deal(plan, agents)
    fleet = _fleet_wide(plan, len(agents), [sum(group) for group in counts])
    dealt: list[list[PoolShare]] = [[] for _ in agents]
    for agent, share in _numbered(fleet, counts):
        dealt[agent].append(share)
    threads_total = sum(sum(group) * pools.workers_per_pool for group, pools in zip(counts, fleet.pools, strict=True))
    assignments = {
        agent.agent_id: Assignment(plan=fleet, pools=tuple(pools), threads_total=threads_total)
        for agent, pools in zip(agents, dealt, strict=True)
    }
    processes = sum(agent.processes for agent in agents)
    return DealtPlan(fleet, assignments, sum(map(sum, counts)), threads_total, connection_ceiling(fleet, processes))


def oversized(dealt: DealtPlan) -> str:
    """Why an assignment is too large for a message; "" if all fit."""
    agent_id, largest = max(dealt.assignments.items(), key=lambda item: len(item[1].pools))
    size = len(msgspec.msgpack.encode(to_builtins(largest))) + _ENVELOPE_BYTES
    if size <= MAX_MESSAGE_BYTES:
        return ""
    return (
        f"the share of agent {agent_id} takes {size:,} bytes, expected at most {MAX_MESSAGE_BYTES:,}; use fewer than "
        f"its {counted(len(largest.pools), 'client pool')}, more agents, or shorter scripts"
    )


def connection_ceiling(plan: Plan, processes_total: int) -> int:
    """The most TCP connections that a plan with fleet-wide numbers can open: the sum over its pool groups of
    pools x client instances x max connections."""
    return sum(
        (group.client_pools or processes_total) * group.client_instances_per_pool * group.max_connections
        for group in plan.pools
    )


def group_ceiling(group: Pools) -> int:
    """The most TCP connections that a group with a number of pools can open."""
    return (group.client_pools or 0) * group.client_instances_per_pool * group.max_connections


def connections_line(group: Pools) -> str:
    """The arithmetic of one group: pools x client instances x connections."""
    return (
        f"connections of {group.name}: {counted(group.client_pools or 0, 'client pool')} x "
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


def _deal(plan: Plan, agents: Sequence[AgentCapacity]) -> list[list[int]]:
    """How many pools of each group each agent gets: one list a group, one number an agent."""
    processes = [agent.processes for agent in agents]
    threads = [0] * len(agents)
    counts = []
    for group in plan.pools:
        counts.append(_deal_group(group, plan.fleet.per_agent, processes, threads))
        threads = [had + count * group.workers_per_pool for had, count in zip(threads, counts[-1], strict=True)]
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


def _times(rate_per_s: PerSecond | None, agents: int) -> PerSecond | None:
    return None if rate_per_s is None else PerSecond(rate_per_s * agents)


def _numbered(plan: Plan, counts: list[list[int]]) -> Iterator[tuple[int, PoolShare]]:
    """Yield (position of the agent, pool) for every pool."""
    number = first_thread = 0
    for group, agents in enumerate(counts):
        for agent, count in enumerate(agents):
            for _ in range(count):
                yield agent, PoolShare(group=group, number=number, first_thread=first_thread)
                number += 1
                first_thread += plan.pools[group].workers_per_pool

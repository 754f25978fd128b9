"""`coordinator check`: can the target do what the plan needs? Nothing is written to the target.

`_query_node` collects the facts of each node, and each function of `_CHECKS` makes one line of the report from them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from common.commands import COMMANDS
from common.errors import PlanError, TargetError, named
from common.plan.open_files import REMEDY, USUAL_FILES, needed, shortage
from common.plan.planned_commands import is_cluster, plan_templates, sample_calls, sample_calls_around_load
from common.plan.scenarios import scenario_plans, target_subject
from common.plan.schema import Plan
from common.plan.schema.target_url import TargetKind
from common.plan.value_sizes import mean_value_bytes
from common.protocol.assignments import processes_of
from common.redis_client import (
    PRIMARY,
    SLOTS,
    TARGET_ERRORS,
    Node,
    TlsFacts,
    address_of,
    failure_of,
    nodes_of,
    ping_target,
    tls_facts,
    translated,
)
from common.units import counted
from coordinator.core.dealt_plan import AgentCapacity, DealtPlan
from coordinator.servers.facts import server_name, topology, wrong_url
from coordinator.servers.preflight import check_known, check_slots
from coordinator.servers.queries import (
    CommandClient,
    dictionary,
    info,
    max_clients,
    open_node,
    ping_us,
    query,
    whole_number,
    write_commands,
)

CLOCK_TOLERANCE_S = 5.0
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One check. text: what was found, and a remedy if it is not ok. scenario: whose, in a plan with several."""

    name: str
    ok: bool
    text: str
    scenario: str = ""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All checks, in the order to show them."""

    lines: tuple[CheckLine, ...]

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(line.ok for line in self.lines)


def check(plan: Plan, ceiling: int) -> CheckReport:
    """Check the plan's target. ceiling: how many TCP connections the plan may open.

    A node that is down is a line of the report. Raises TargetError if no node can be reached, PlanError for an invalid
    URL.
    """
    ping_target(plan.target)
    with translated(plan.target):
        nodes = nodes_of(plan.target)
    reachable, down = [], []
    for node in nodes:
        try:
            with open_node(plan.target, node) as client:
                reachable.append(_query_node(client, node, plan))
        except TargetError as error:
            down.append(error)
    if not reachable:
        raise down[0]
    lines = [check_one(plan, ceiling, reachable) for check_one in _CHECKS]
    if down:
        lines.insert(_AFTER_TOPOLOGY, _check_down(down, len(nodes)))
    if is_cluster(plan.target):
        lines.insert(_AFTER_TOPOLOGY, _check_slots(reachable[0]))
    if address_of(plan.target).tls:
        lines.insert(_AFTER_TOPOLOGY, _check_tls(reachable))
    return CheckReport(tuple(lines))


def check_scenarios(dealt: DealtPlan) -> list[CheckLine]:
    """Check the target of each scenario. It must allow the connections of all scenarios that use it."""
    scenarios, lines = scenario_plans(dealt.plan), []
    ceilings = Counter[str]()
    for scenario, ceiling in zip(scenarios, dealt.connection_ceilings, strict=True):
        ceilings[scenario.target] += ceiling
    for scenario in scenarios:
        name = scenario.name if dealt.plan.scenarios else ""
        with named(target_subject(scenario.target)):
            report = check(scenario.plan, ceilings[scenario.target])
        lines += [replace(line, scenario=name) for line in report.lines]
    return lines


def check_files(dealt: DealtPlan, agents: Sequence[AgentCapacity], limit: int | None) -> list[CheckLine]:
    """Check whether the worker processes of local agents may open enough files; no line without local agents. limit:
    how many files a process may have open, None for no limit."""
    local = [agent for agent in agents if agent.agent_id.startswith("local-")]
    hands = [hand for agent in local for hand in processes_of(dealt.assignments[agent.agent_id], agent.processes)]
    wanted = [needed(hand.plan, hand.pools) for hand in hands]
    if not wanted:
        return []
    each = " to each node" if any(is_cluster(hand.plan.target) for hand in hands) else ""
    most = max(need.all_at_once + need.as_needed for need in wanted)
    text = f"a worker process may open {'any number of' if limit is None else f'{limit:,}'} files (`ulimit -n`)"
    if not any(shortage(limit, USUAL_FILES, need.all_at_once + need.as_needed) for need in wanted):
        return [CheckLine("open files", True, f"{text}, and needs {counted(most, 'connection')}{each}")]
    found = f"{text}, but needs {counted(most, 'connection')}{each}: {REMEDY}"
    return [CheckLine("open files", not any(shortage(limit, USUAL_FILES, need.all_at_once) for need in wanted), found)]


@dataclass(frozen=True, slots=True)
class _NodeState:
    """The facts of one node; None or empty where the node does not report them.

    clock_ahead_s: its wall clock minus ours. refused: the plan's commands that our user may not call, with the reason.
    cluster: CLUSTER INFO. unknown: the error for the first of the plan's commands that the node does not know, or
    does not accept with these arguments. several_slots: the error for the first command that a cluster would refuse
    because its keys lie in several slots. Both are "" if all commands are fine.
    """

    node: Node
    ping_us: float
    server: str
    topology: str
    replication: dict[str, Any]
    memory: dict[str, Any]
    max_clients: int | None
    connected_clients: int
    writing: frozenset[str]
    refused: tuple[str, ...] | None
    clock_ahead_s: float | None
    tls: TlsFacts | None = None
    cluster: dict[str, Any] = field(default_factory=dict)
    several_slots: str = ""
    unknown: str = ""


Nodes: TypeAlias = Sequence[_NodeState]
"""All nodes that could be reached; primaries first."""


def _query_node(client: Any, node: Node, plan: Plan) -> _NodeState:
    server, replication = info(client, "server"), info(client, "replication")
    is_primary = node.role == PRIMARY
    unknown = _error_of(check_known, client, plan) if is_primary else ""
    return _NodeState(
        node=node,
        ping_us=ping_us(client),
        server=server_name(server),
        topology=topology(server, replication),
        replication=replication,
        memory=info(client, "memory"),
        max_clients=max_clients(client),
        connected_clients=whole_number(info(client, "clients").get("connected_clients")) or 1,
        writing=_writing(client, plan),
        refused=_refused(client, plan, unknown) if is_primary else (),
        clock_ahead_s=_clock_ahead_s(client),
        tls=tls_facts(client),
        cluster=dictionary(query(client, "CLUSTER INFO")) if is_cluster(plan.target) else {},
        several_slots=_error_of(check_slots, client, plan) if is_primary and is_cluster(plan.target) else "",
        unknown=unknown,
    )


def _error_of(check_command: Callable[[Plan, CommandClient], None], client: CommandClient, plan: Plan) -> str:
    try:
        check_command(plan, client)
    except PlanError as error:
        return str(error)
    return ""


def _writing(client: CommandClient, plan: Plan) -> frozenset[str]:
    """Return the plan's commands that change data; the server decides on commands that are not in our table."""
    names = {template.name for template in plan_templates(plan.workload)}
    writing = {name for name in names if name in COMMANDS and COMMANDS[name].writes}
    if unknown := names - COMMANDS.keys():
        listed = write_commands(client) or frozenset()
        writing |= {name for name in unknown if name.lower() in listed}
    return frozenset(writing)


def _refused(client: CommandClient, plan: Plan, unknown: str) -> tuple[str, ...] | None:
    user = address_of(plan.target).username or "default"
    if query(client, "ACL DRYRUN", user, "PING") is None:
        return None
    calls = [*sample_calls(plan.target, plan.workload), *sample_calls_around_load(plan.target, plan.workload)]
    if plan.workload.transaction:
        calls += [("MULTI", (b"MULTI",)), ("EXEC", (b"EXEC",))]
    # A mix may name a command more than once.
    reasons = dict.fromkeys((name, _reason(client, user, arguments, unknown)) for name, arguments in calls)
    return tuple(f"{name}: {reason}" for name, reason in reasons if reason)


def _reason(client: CommandClient, user: str, arguments: tuple[bytes, ...], unknown: str) -> str:
    """Return why the user may not call this; "" if the user may. unknown: the error for an unknown command of the plan,
    which another line reports."""
    try:
        reply = client.execute_command("ACL DRYRUN", user, *arguments)
    except TARGET_ERRORS as error:
        if failure_of(error).replied:  # no such command, or not with these arguments
            return "" if unknown else " ".join(str(error).split())
        raise
    return "" if reply == b"OK" else reply.decode(errors="replace")


def _clock_ahead_s(client: CommandClient) -> float | None:
    before_s = time.time()
    reply = query(client, "TIME")
    after_s = time.time()
    if reply is None:
        return None
    seconds, microseconds = reply
    return float(seconds + microseconds / 1e6 - (before_s + after_s) / 2)


def _check_reachable(plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    slowest = max(nodes, key=lambda node: node.ping_us)
    found = f"{address_of(plan.target)} answers PING in {slowest.ping_us / 1000:.2f} ms"
    return CheckLine("reachable", True, found if len(nodes) == 1 else f"{found}, the slowest node, {slowest.node.name}")


def _check_server(_plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    names = Counter(node.server for node in nodes)
    if len(names) == 1:
        return CheckLine("server", True, nodes[0].server)
    listed = (f"{name} ({counted(count, 'node')})" for name, count in names.most_common())
    return CheckLine("server", True, ", ".join(listed))


def _check_topology(plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    first = nodes[0]
    if address_of(plan.target).kind is TargetKind.STANDALONE:
        found = wrong_url(plan.target, first.topology)
        if not found and first.topology == "replica" and first.writing and _is_on(first.replication, "slave_read_only"):
            primary = f"{first.replication.get('master_host')}:{first.replication.get('master_port')}"
            found = f"is a read-only replica, but the plan writes ({_list(first.writing)}): use its primary, {primary}"
        listed = f"{first.topology}, {counted(len(nodes) - 1, 'replica')}" if len(nodes) > 1 else first.topology
        found = found or _no_replica(nodes[1:]) or _broken_link(nodes[1:])
        return CheckLine("topology", not found, found or listed)
    primaries = [node for node in nodes if node.node.role == PRIMARY]
    replicas = [node for node in nodes if node.node.role != PRIMARY]
    found = f"{address_of(plan.target).kind.value}, {counted(len(primaries), 'primary')}, "
    found += counted(len(replicas), "replica")
    problem = _broken_cluster(nodes) or _broken_link(replicas)
    return CheckLine("topology", not problem, f"{found}; {problem}" if problem else found + _served(nodes))


def _broken_cluster(nodes: Nodes) -> str:
    for node in nodes:
        state = node.cluster.get("cluster_state", "ok")
        served = whole_number(node.cluster.get("cluster_slots_assigned"))
        if served not in (None, SLOTS):
            missing = SLOTS - (served or 0)
            has = "has" if missing == 1 else "have"
            return f"{counted(missing, 'slot')} {has} no node: assign them (redis-cli --cluster fix)"
        if state != "ok":
            return f"{node.node.name} reports the cluster state {state}: bring back the nodes that are down"
    return ""


def _no_replica(listed: Nodes) -> str:
    """Return what is wrong with a server that the plan lists as a replica; "" if all are replicas."""
    wrong = (node.node.name for node in listed if node.topology != "replica")
    return next((f"{name} is no replica: take it out of --replicas" for name in wrong), "")


def _broken_link(replicas: Nodes) -> str:
    for node in replicas:
        if node.replication.get("master_link_status", "up") != "up":
            return f"replica {node.node.name} has lost its primary: look at the replica's log, or remove the replica"
    return ""


def _served(nodes: Nodes) -> str:
    served = whole_number(nodes[0].cluster.get("cluster_slots_ok"))
    return "" if served is None else f", {served:,} of {SLOTS:,} slots served"


def _check_commands(_plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    found = next((node.unknown for node in nodes if node.unknown), "")
    return CheckLine(
        "commands", not found, found or "the server knows all commands, and their numbers of arguments are right"
    )


def _check_down(down: Sequence[TargetError], count: int) -> CheckLine:
    return CheckLine("nodes", False, f"{len(down)} of {count} cannot be reached: {'; '.join(map(str, down))}")


def _check_slots(node: _NodeState) -> CheckLine:
    found = node.several_slots
    return CheckLine("slots", not found, found or "every command uses one slot")


def _check_tls(nodes: Nodes) -> CheckLine:
    versions = _list({node.tls.version for node in nodes if node.tls is not None})
    ends = [(node.tls.expires_at_s, node.node.name) for node in nodes if node.tls and node.tls.expires_at_s is not None]
    if not ends:
        return CheckLine("tls", True, f"{versions}, certificate not verified (target.tls.verify is none)")
    ends_s, name = min(ends)
    left_s = ends_s - time.time()
    found = f"{versions}, certificate valid for {counted(round(left_s / DAY_S), 'day')}"
    if left_s >= DAY_S:
        return CheckLine("tls", True, found)
    return CheckLine("tls", False, f"{versions}, the certificate of {name} expires within a day: renew it")


def _check_memory(plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    """Check the node with the least free memory. Primaries share the keys; each replica has its primary's keys."""
    shards = max(1, sum(node.node.role == PRIMARY for node in nodes))
    lines = [_check_memory_of(plan, node, shards) for node in nodes]
    tightest = min(range(len(nodes)), key=lambda number: (lines[number].ok, _free_memory(nodes[number])))
    line = lines[tightest]
    return line if len(nodes) == 1 else replace(line, text=f"{nodes[tightest].node.name}: {line.text}")


def _free_memory(node: _NodeState) -> float:
    used, limit = whole_number(node.memory.get("used_memory")), whole_number(node.memory.get("maxmemory"))
    return limit - used if used is not None and limit else math.inf


def _check_memory_of(plan: Plan, node: _NodeState, shards: int) -> CheckLine:
    used, limit = whole_number(node.memory.get("used_memory")), whole_number(node.memory.get("maxmemory"))
    if used is None or limit is None:
        return CheckLine("memory", True, "could not be verified: the server does not report it")
    if limit == 0:
        return CheckLine("memory", True, f"{_mebibytes(used)} used, no limit set")
    policy = str(node.memory.get("maxmemory_policy", "noeviction"))
    found = f"{_mebibytes(used)} used of {_mebibytes(limit)}, {policy}"
    keys, values = plan.workload.keys, plan.workload.values
    count, size = -(-(keys.maximum - keys.minimum + 1) // shards), mean_value_bytes(values)
    # The other policies evict only keys with a time to live.
    makes_room = policy.startswith(("allkeys-", "volatile-") if plan.workload.expiry.maximum_s else "allkeys-")
    if makes_room or not node.writing or used + count * size < limit:
        return CheckLine("memory", True, found)
    return CheckLine(
        "memory",
        False,
        f"{found}, but {counted(count, 'key')} of {size:g} bytes need more than {_mebibytes(count * size)}, and writes "
        "fail when memory is full: raise maxmemory, set an allkeys-* policy, or use fewer keys or smaller values",
    )


def _check_connections(_plan: Plan, ceiling: int, nodes: Nodes) -> CheckLine:
    # One of the connected clients is ours, and will be closed before the run.
    known = [(node.max_clients - (node.connected_clients - 1), node) for node in nodes if node.max_clients is not None]
    each = "" if len(nodes) == 1 else " by each node"
    if not known:
        text = f"up to {ceiling:,} wanted{each}; could not be verified: the server does not report maxclients"
        return CheckLine("connections", True, text)
    free, fullest = min(known, key=lambda pair: pair[0])
    found = f"up to {ceiling:,} wanted{each}, {free:,} of {fullest.max_clients:,} free"
    if each:
        found += f" at {fullest.node.name}"
    remedy = "raise maxclients, or use fewer pools, client instances per pool or connections"
    return CheckLine("connections", ceiling <= free, found if ceiling <= free else f"{found}: {remedy}")


def _check_permissions(plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    if any(node.refused is None for node in nodes):
        text = "could not be verified: the server does not know ACL DRYRUN, or does not permit it to us"
        return CheckLine("permissions", True, text)
    refused = list(dict.fromkeys(reason for node in nodes for reason in node.refused or ()))
    if not refused and any(node.unknown for node in nodes):
        return CheckLine("permissions", True, "could not be verified: the server does not know all commands")
    if not refused:
        names = {template.name for template in plan_templates(plan.workload)}
        names |= {name for name, _ in sample_calls_around_load(plan.target, plan.workload)}
        return CheckLine("permissions", True, f"we may call {_list(names)}")
    remedy = "permit it with ACL SETUSER, use another user, or change the plan's commands or key prefix"
    return CheckLine("permissions", False, f"{'; '.join(refused)}: {remedy}")


def _check_clock(_plan: Plan, _ceiling: int, nodes: Nodes) -> CheckLine:
    clocks = [(node.clock_ahead_s, node.node.name) for node in nodes if node.clock_ahead_s is not None]
    if not clocks:
        return CheckLine("clock", True, "could not be verified: the server does not report its time")
    ahead_s, name = max(clocks, key=lambda clock: abs(clock[0]))
    found = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    if len(nodes) > 1:
        found += f" at {name}"
    remedy = "synchronize the clocks, or times in the server's log and in the report do not match"
    ok = abs(ahead_s) <= CLOCK_TOLERANCE_S
    return CheckLine("clock", ok, found if ok else f"{found}: {remedy}")


_CHECKS: tuple[Callable[[Plan, int, Nodes], CheckLine], ...] = (
    _check_reachable,
    _check_server,
    _check_topology,
    _check_commands,
    _check_memory,
    _check_connections,
    _check_permissions,
    _check_clock,
)
_AFTER_TOPOLOGY = _CHECKS.index(_check_topology) + 1


def _is_on(section: dict[str, Any], field_name: str) -> bool:
    return bool(whole_number(section.get(field_name)))


def _list(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names))


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"

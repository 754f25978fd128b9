"""Can the target do what the plan wants of it? Asked before a run, so that no run fails for what a question tells.

Questions first, then judgement: `_ask_all` talks to each node, each of `_JUDGES` looks at one side of what they said.
Nothing is written to the target.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from common.commands import COMMANDS
from common.errors import PlanError, TargetError
from common.open_files import REMEDY, USUAL_FILES, needed, pools_by_process, shortage
from common.plan.planned_commands import is_cluster, plan_templates, sample_calls, sample_calls_around_load
from common.plan.schema import Plan
from common.plan.target_url import TargetKind
from common.plan.value_sizes import mean_value_bytes
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
from coordinator.core.shares import AgentCapacity, Shares
from coordinator.servers.facts import (
    Asked,
    ask,
    asking,
    dictionary,
    info,
    max_clients,
    misaddressed,
    ping_us,
    server_name,
    topology,
    whole,
    write_commands,
)
from coordinator.servers.preflight import refuse_slots_of, refuse_unknown

CLOCK_TOLERANCE_S = 5.0
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One thing looked at. text: what was found, and what to do about it when it is not ok."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything looked at, in the order in which it is to be read."""

    lines: tuple[CheckLine, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the plan's way."""
        return all(line.ok for line in self.lines)


def check(plan: Plan, ceiling: int) -> CheckReport:
    """What the plan's target says to what the plan wants. ceiling: TCP connections that the plan may open.

    A node that is down is a line. Raises TargetError when none can be reached, PlanError for a URL that is none.
    """
    ping_target(plan.target)
    with translated(plan.target):
        nodes = nodes_of(plan.target)
    told, down = [], []
    for node in nodes:
        try:
            with asking(plan.target, node) as client:
                told.append(_ask_all(client, node, plan))
        except TargetError as error:
            down.append(error)
    if not told:
        raise down[0]
    lines = [judge(plan, ceiling, told) for judge in _JUDGES]
    if down:
        lines.insert(_AFTER_TOPOLOGY, _judge_down(down, len(nodes)))
    if is_cluster(plan.target):
        lines.insert(_AFTER_TOPOLOGY, _judge_slots(plan, told[0]))
    if address_of(plan.target).tls:
        lines.insert(_AFTER_TOPOLOGY, _judge_tls(told))
    return CheckReport(tuple(lines))


def check_files(shares: Shares, agents: Sequence[AgentCapacity], limit: int | None) -> list[CheckLine]:
    """Whether the worker processes of local agents may open enough files; empty if the plan has no local agents. limit:
    of open files, None for no limit."""
    local = [agent for agent in agents if agent.agent_id.startswith("local-")]
    dealt = [pools_by_process(shares.assignments[agent.agent_id].pools, agent.processes)[:1] for agent in local]
    wanted = [needed(shares.plan, hand) for first in dealt for hand in first]
    if not wanted:
        return []
    each = " to each node" if is_cluster(shares.plan.target) else ""
    most = max(need.all_at_once + need.as_needed for need in wanted)
    text = f"a worker process may open {'any number of' if limit is None else f'{limit:,}'} files (`ulimit -n`)"
    if not any(shortage(limit, USUAL_FILES, need.all_at_once + need.as_needed) for need in wanted):
        return [CheckLine("open files", True, f"{text}, and needs {counted(most, 'connection')}{each}")]
    found = f"{text}, but needs {counted(most, 'connection')}{each}: {REMEDY}"
    return [CheckLine("open files", not any(shortage(limit, USUAL_FILES, need.all_at_once) for need in wanted), found)]


@dataclass(frozen=True, slots=True)
class _Told:
    """What one node said. clock_ahead_s: its wall clock less ours. Where it did not tell: empty, or None.

    refused: those of the plan's commands that our user may not call as the plan does, with the reason. cluster: CLUSTER
    INFO. unknown: what is wrong with the first of the plan's commands that this node does not know, or not with these
    arguments; several_slots: with the first one that the cluster would refuse; "" if all are fine.
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


Nodes: TypeAlias = Sequence[_Told]
"""What all nodes said; primaries first."""


def _ask_all(client: Any, node: Node, plan: Plan) -> _Told:
    server, replication = info(client, "server"), info(client, "replication")
    is_primary = node.role == PRIMARY
    unknown = _refusal(refuse_unknown, client, plan) if is_primary else ""
    return _Told(
        node=node,
        ping_us=ping_us(client),
        server=server_name(server),
        topology=topology(server, replication),
        replication=replication,
        memory=info(client, "memory"),
        max_clients=max_clients(client),
        connected_clients=whole(info(client, "clients").get("connected_clients")) or 1,
        writing=_writing(client, plan),
        refused=_refused(client, plan, unknown) if is_primary else (),
        clock_ahead_s=_clock_ahead_s(client),
        tls=tls_facts(client),
        cluster=dictionary(ask(client, "CLUSTER INFO")) if is_cluster(plan.target) else {},
        several_slots=_refusal(refuse_slots_of, client, plan) if is_primary and is_cluster(plan.target) else "",
        unknown=unknown,
    )


def _refusal(refuse: Callable[[Plan, Asked], None], client: Asked, plan: Plan) -> str:
    try:
        refuse(plan, client)
    except PlanError as error:
        return str(error)
    return ""


def _writing(client: Asked, plan: Plan) -> frozenset[str]:
    """Those of the plan's commands that change data; the target is asked about those that the table does not know."""
    names = {template.name for template in plan_templates(plan.workload)}
    writing = {name for name in names if name in COMMANDS and COMMANDS[name].writes}
    if unknown := names - COMMANDS.keys():
        listed = write_commands(client) or frozenset()
        writing |= {name for name in unknown if name.lower() in listed}
    return frozenset(writing)


def _refused(client: Asked, plan: Plan, unknown: str) -> tuple[str, ...] | None:
    user = address_of(plan.target).username or "default"
    if ask(client, "ACL DRYRUN", user, "PING") is None:
        return None
    calls = [*sample_calls(plan.target, plan.workload), *sample_calls_around_load(plan.target, plan.workload)]
    if plan.workload.transaction:
        calls += [("MULTI", (b"MULTI",)), ("EXEC", (b"EXEC",))]
    # A mix may name a command more than once.
    reasons = dict.fromkeys((name, _reason(client, user, arguments, unknown)) for name, arguments in calls)
    return tuple(f"{name}: {reason}" for name, reason in reasons if reason)


def _reason(client: Asked, user: str, arguments: tuple[bytes, ...], unknown: str) -> str:
    """Why the user may not call this; "" if the user may. unknown: why a command of the plan cannot be called."""
    try:
        reply = client.execute_command("ACL DRYRUN", user, *arguments)
    except TARGET_ERRORS as error:
        if failure_of(error).replied:  # no such command, or not with these arguments
            return "" if unknown else " ".join(str(error).split())
        raise
    return "" if reply == b"OK" else reply.decode(errors="replace")


def _clock_ahead_s(client: Asked) -> float | None:
    before_s = time.time()
    told = ask(client, "TIME")
    after_s = time.time()
    if told is None:
        return None
    seconds, microseconds = told
    return float(seconds + microseconds / 1e6 - (before_s + after_s) / 2)


def _judge_reach(plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    slowest = max(told, key=lambda node: node.ping_us)
    found = f"{address_of(plan.target)} answers PING in {slowest.ping_us / 1000:.2f} ms"
    return CheckLine("reachable", True, found if len(told) == 1 else f"{found}, the slowest node, {slowest.node.name}")


def _judge_server(_plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    names = Counter(node.server for node in told)
    if len(names) == 1:
        return CheckLine("server", True, told[0].server)
    told_by = (f"{name} ({counted(count, 'node')})" for name, count in names.most_common())
    return CheckLine("server", True, ", ".join(told_by))


def _judge_topology(plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    first = told[0]
    if address_of(plan.target).kind is TargetKind.STANDALONE:
        found = misaddressed(plan.target, first.topology)
        if not found and first.topology == "replica" and first.writing and _is_on(first.replication, "slave_read_only"):
            primary = f"{first.replication.get('master_host')}:{first.replication.get('master_port')}"
            found = f"is a read-only replica, but the plan writes ({_list(first.writing)}): use its primary, {primary}"
        return CheckLine("topology", not found, found or first.topology)
    primaries = [node for node in told if node.node.role == PRIMARY]
    replicas = [node for node in told if node.node.role != PRIMARY]
    found = f"{address_of(plan.target).kind.value}, {counted(len(primaries), 'primary')}, "
    found += counted(len(replicas), "replica")
    problem = _broken_cluster(told) or _broken_link(replicas)
    return CheckLine("topology", not problem, f"{found}; {problem}" if problem else found + _served(told))


def _broken_cluster(told: Nodes) -> str:
    for node in told:
        state, served = node.cluster.get("cluster_state", "ok"), whole(node.cluster.get("cluster_slots_assigned"))
        if served not in (None, SLOTS):
            missing = SLOTS - (served or 0)
            has = "has" if missing == 1 else "have"
            return f"{counted(missing, 'slot')} {has} no node: assign them (redis-cli --cluster fix)"
        if state != "ok":
            return f"{node.node.name} finds that the cluster is in state {state}: bring back the nodes that are down"
    return ""


def _broken_link(replicas: Nodes) -> str:
    for node in replicas:
        if node.replication.get("master_link_status", "up") != "up":
            return f"replica {node.node.name} has lost its primary: look into its log, or take it out"
    return ""


def _served(told: Nodes) -> str:
    served = whole(told[0].cluster.get("cluster_slots_ok"))
    return "" if served is None else f", {served:,} of {SLOTS:,} slots served"


def _judge_commands(_plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    found = next((node.unknown for node in told if node.unknown), "")
    return CheckLine(
        "commands", not found, found or "the server knows all commands and takes their numbers of arguments"
    )


def _judge_down(down: Sequence[TargetError], count: int) -> CheckLine:
    return CheckLine("nodes", False, f"{len(down)} of {count} cannot be asked: {'; '.join(map(str, down))}")


def _judge_slots(_plan: Plan, told: _Told) -> CheckLine:
    found = told.several_slots
    return CheckLine("slots", not found, found or "every command keeps to one")


def _judge_tls(told: Nodes) -> CheckLine:
    versions = _list({node.tls.version for node in told if node.tls is not None})
    ends = [(node.tls.expires_at_s, node.node.name) for node in told if node.tls and node.tls.expires_at_s is not None]
    if not ends:
        return CheckLine("tls", True, f"{versions}, certificate not looked at (target.tls.verify is none)")
    ends_s, name = min(ends)
    left_s = ends_s - time.time()
    found = f"{versions}, certificate valid for {counted(round(left_s / DAY_S), 'day')}"
    if left_s >= DAY_S:
        return CheckLine("tls", True, found)
    return CheckLine("tls", False, f"{versions}, the certificate of {name} expires within a day: renew it")


def _judge_memory(plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    """Of the node that is tightest; primaries share the keys, and each replica has those of its primary."""
    shards = max(1, sum(node.node.role == PRIMARY for node in told))
    lines = [_judge_memory_of(plan, node, shards) for node in told]
    tightest = min(range(len(told)), key=lambda number: (lines[number].ok, _free_memory(told[number])))
    line = lines[tightest]
    return line if len(told) == 1 else replace(line, text=f"{told[tightest].node.name}: {line.text}")


def _free_memory(told: _Told) -> float:
    used, limit = whole(told.memory.get("used_memory")), whole(told.memory.get("maxmemory"))
    return limit - used if used is not None and limit else math.inf


def _judge_memory_of(plan: Plan, told: _Told, shards: int) -> CheckLine:
    used, limit = whole(told.memory.get("used_memory")), whole(told.memory.get("maxmemory"))
    if used is None or limit is None:
        return CheckLine("memory", True, "could not be verified: the server does not tell")
    if limit == 0:
        return CheckLine("memory", True, f"{_mebibytes(used)} used, no limit set")
    policy = str(told.memory.get("maxmemory_policy", "noeviction"))
    found = f"{_mebibytes(used)} used of {_mebibytes(limit)}, {policy}"
    keys, values = plan.workload.keys, plan.workload.values
    count, size = -(-(keys.maximum - keys.minimum + 1) // shards), mean_value_bytes(values)
    # The other policies spare keys without a time to live.
    makes_room = policy.startswith(("allkeys-", "volatile-") if plan.workload.expiry.maximum_s else "allkeys-")
    if makes_room or not told.writing or used + count * size < limit:
        return CheckLine("memory", True, found)
    return CheckLine(
        "memory",
        False,
        f"{found}, but {counted(count, 'key')} of {size:g} bytes need {_mebibytes(count * size)} and more, and writes "
        "fail when it is full: raise maxmemory, set an allkeys-* policy, or use fewer keys or smaller values",
    )


def _judge_connections(_plan: Plan, ceiling: int, told: Nodes) -> CheckLine:
    # One of the connected clients is us, and will be gone.
    known = [(node.max_clients - (node.connected_clients - 1), node) for node in told if node.max_clients is not None]
    each = "" if len(told) == 1 else " by each node"
    if not known:
        text = (
            f"up to {ceiling:,} wanted{each}; could not be verified: the server does not tell how many clients it takes"
        )
        return CheckLine("connections", True, text)
    free, fullest = min(known, key=lambda pair: pair[0])
    found = f"up to {ceiling:,} wanted{each}, {free:,} of {fullest.max_clients:,} free"
    if each:
        found += f" at {fullest.node.name}"
    remedy = "raise maxclients, or use fewer pools, client instances per pool or connections"
    return CheckLine("connections", ceiling <= free, found if ceiling <= free else f"{found}: {remedy}")


def _judge_permissions(plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    if any(node.refused is None for node in told):
        text = "could not be verified: ACL DRYRUN is not permitted to us, or not known to the server"
        return CheckLine("permissions", True, text)
    refused = list(dict.fromkeys(reason for node in told for reason in node.refused or ()))
    if not refused and any(node.unknown for node in told):
        return CheckLine("permissions", True, "could not be verified: the server does not know each command")
    if not refused:
        names = {template.name for template in plan_templates(plan.workload)}
        names |= {name for name, _ in sample_calls_around_load(plan.target, plan.workload)}
        return CheckLine("permissions", True, f"we may call {_list(names)}")
    remedy = "permit it with ACL SETUSER, use another user, or change the plan's commands or key prefix"
    return CheckLine("permissions", False, f"{'; '.join(refused)}: {remedy}")


def _judge_clock(_plan: Plan, _ceiling: int, told: Nodes) -> CheckLine:
    clocks = [(node.clock_ahead_s, node.node.name) for node in told if node.clock_ahead_s is not None]
    if not clocks:
        return CheckLine("clock", True, "could not be verified: the server does not tell")
    ahead_s, name = max(clocks, key=lambda clock: abs(clock[0]))
    found = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    if len(told) > 1:
        found += f" at {name}"
    remedy = "set both, or the times in the server's log and in the report do not match"
    ok = abs(ahead_s) <= CLOCK_TOLERANCE_S
    return CheckLine("clock", ok, found if ok else f"{found}: {remedy}")


_JUDGES: tuple[Callable[[Plan, int, Nodes], CheckLine], ...] = (
    _judge_reach,
    _judge_server,
    _judge_topology,
    _judge_commands,
    _judge_memory,
    _judge_connections,
    _judge_permissions,
    _judge_clock,
)
_AFTER_TOPOLOGY = _JUDGES.index(_judge_topology) + 1


def _is_on(section: dict[str, Any], field_name: str) -> bool:
    return bool(whole(section.get(field_name)))


def _list(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names))


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"

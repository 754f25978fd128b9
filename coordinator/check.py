"""Can the target do what the plan wants of it? Asked before a run, so that no run fails for what a question tells.

Questions first, then judgement: `_ask_all` talks to the target, each of `_JUDGES` looks at one side of what it said.
Nothing is written to the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.commands import COMMANDS, plan_templates, sample_calls
from common.plan.schema import Plan
from common.plan.sizes import mean_size
from common.target import TARGET_ERRORS, address_of, ending_of, open_control_client, ping_target, translated
from coordinator.probe import Asked, ask, info, max_clients, ping_us, server_name, topology, whole

CLOCK_TOLERANCE_S = 5.0


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

    Raises TargetError when the target cannot be reached or ends the talk, PlanError for a URL that is none.
    """
    ping_target(plan.target)
    with translated(plan.target), open_control_client(plan.target) as client:
        told = _ask_all(client, plan)
    return CheckReport(tuple(judge(plan, ceiling, told) for judge in _JUDGES))


@dataclass(frozen=True, slots=True)
class _Told:
    """What the target said. clock_ahead_s: its wall clock less ours. Where it did not tell: empty, or None.

    refused: those of the plan's commands that our user may not call as the plan does, with the reason.
    """

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


def _ask_all(client: Asked, plan: Plan) -> _Told:
    server, replication = info(client, "server"), info(client, "replication")
    return _Told(
        ping_us=ping_us(client),
        server=server_name(server),
        topology=topology(server, replication),
        replication=replication,
        memory=info(client, "memory"),
        max_clients=max_clients(client),
        connected_clients=whole(info(client, "clients").get("connected_clients")) or 1,
        writing=_writing(client, plan),
        refused=_refused(client, plan),
        clock_ahead_s=_clock_ahead_s(client),
    )


def _writing(client: Asked, plan: Plan) -> frozenset[str]:
    """Those of the plan's commands that change data; the target is asked about those that the table does not know."""
    names = {template.name for template in plan_templates(plan.workload)}
    writing = {name for name in names if name in COMMANDS and COMMANDS[name].writes}
    if unknown := names - COMMANDS.keys():
        listed = ask(client, "COMMAND LIST", "FILTERBY", "ACLCAT", "write") or ()
        writing |= unknown & {name.decode().upper() for name in listed}
    return frozenset(writing)


def _refused(client: Asked, plan: Plan) -> tuple[str, ...] | None:
    user = address_of(plan.target).username or "default"
    if ask(client, "ACL DRYRUN", user, "PING") is None:
        return None
    calls = list(sample_calls(plan.target, plan.workload))
    if plan.workload.transaction:
        calls += [("MULTI", (b"MULTI",)), ("EXEC", (b"EXEC",))]
    # A mix may name a command more than once.
    reasons = dict.fromkeys((name, _reason(client, user, arguments)) for name, arguments in calls)
    return tuple(f"{name}: {reason}" for name, reason in reasons if reason)


def _reason(client: Asked, user: str, arguments: tuple[bytes, ...]) -> str:
    """Why the user may not call this, or "" when it may."""
    try:
        reply = client.execute_command("ACL DRYRUN", user, *arguments)
    except TARGET_ERRORS as error:
        if ending_of(error).replied:  # no such command, or not with these arguments
            return " ".join(str(error).split())
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


def _judge_reach(plan: Plan, _ceiling: int, told: _Told) -> CheckLine:
    return CheckLine("reachable", True, f"{address_of(plan.target)} answers PING in {told.ping_us / 1000:.2f} ms")


def _judge_server(_plan: Plan, _ceiling: int, told: _Told) -> CheckLine:
    return CheckLine("server", True, told.server)


_NO_TARGETS = {
    "cluster": "is a node of a cluster, which holds a part of the keys only: use a server with cluster-enabled no",
    "sentinel": "is a Sentinel, which holds no data: give the URL of the server that it watches",
}


def _judge_topology(_plan: Plan, _ceiling: int, told: _Told) -> CheckLine:
    found = _NO_TARGETS.get(told.topology, "")
    if not found and told.topology == "replica" and told.writing and whole(told.replication.get("slave_read_only")):
        primary = f"{told.replication.get('master_host')}:{told.replication.get('master_port')}"
        found = f"is a read-only replica, but the plan writes ({_list(told.writing)}): use its primary, {primary}"
    return CheckLine("topology", not found, found or told.topology)


def _judge_memory(plan: Plan, _ceiling: int, told: _Told) -> CheckLine:
    used, limit = whole(told.memory.get("used_memory")), whole(told.memory.get("maxmemory"))
    if used is None or limit is None:
        return CheckLine("memory", True, "could not be verified: the server does not tell")
    if limit == 0:
        return CheckLine("memory", True, f"{_mebibytes(used)} used, no limit set")
    policy = str(told.memory.get("maxmemory_policy", "noeviction"))
    found = f"{_mebibytes(used)} used of {_mebibytes(limit)}, {policy}"
    keys, values = plan.workload.keys, plan.workload.values
    count, size = keys.maximum - keys.minimum + 1, mean_size(values)
    # The other policies spare keys without a time to live.
    makes_room = policy.startswith(("allkeys-", "volatile-") if plan.workload.expiry.maximum_s else "allkeys-")
    if makes_room or not told.writing or used + count * size < limit:
        return CheckLine("memory", True, found)
    return CheckLine(
        "memory",
        False,
        f"{found}, but {count:,} keys of {size:g} bytes need {_mebibytes(count * size)} and more, and writes fail when "
        "it is full: raise maxmemory, set an allkeys-* policy, or use fewer keys or smaller values",
    )


def _judge_connections(_plan: Plan, ceiling: int, told: _Told) -> CheckLine:
    if told.max_clients is None:
        text = f"up to {ceiling:,} wanted; could not be verified: the server does not tell how many clients it takes"
        return CheckLine("connections", True, text)
    free = told.max_clients - (told.connected_clients - 1)  # ours will be gone
    found = f"up to {ceiling:,} wanted, {free:,} of {told.max_clients:,} free"
    remedy = "raise maxclients, or use fewer pools, client instances per pool or connections"
    return CheckLine("connections", ceiling <= free, found if ceiling <= free else f"{found}: {remedy}")


def _judge_permissions(plan: Plan, _ceiling: int, told: _Told) -> CheckLine:
    if told.refused is None:
        text = "could not be verified: ACL DRYRUN is not permitted to us, or not known to the server"
        return CheckLine("permissions", True, text)
    if not told.refused:
        names = {template.name for template in plan_templates(plan.workload)}
        return CheckLine("permissions", True, f"we may call {_list(names)}")
    remedy = "permit it with ACL SETUSER, use another user, or change the plan's commands or key prefix"
    return CheckLine("permissions", False, f"{'; '.join(told.refused)}: {remedy}")


def _judge_clock(_plan: Plan, _ceiling: int, told: _Told) -> CheckLine:
    ahead_s = told.clock_ahead_s
    if ahead_s is None:
        return CheckLine("clock", True, "could not be verified: the server does not tell")
    found = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    remedy = "set both, or the times in the server's log and in the report do not match"
    ok = abs(ahead_s) <= CLOCK_TOLERANCE_S
    return CheckLine("clock", ok, found if ok else f"{found}: {remedy}")


_JUDGES: tuple[Callable[[Plan, int, _Told], CheckLine], ...] = (
    _judge_reach,
    _judge_server,
    _judge_topology,
    _judge_memory,
    _judge_connections,
    _judge_permissions,
    _judge_clock,
)


def _list(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names))


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"

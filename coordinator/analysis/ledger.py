"""The audit: three independent counts of a run's operations, and how many operations they disagree on. Pure.

The audit covers the whole run, including the warmup, which most figures of the report leave out.

    issued        operations begun, as workers count them when they begin one
    counted       operations that ended, summed over all frames
    server_calls  calls (including rejected calls) that the server's commandstats gained for the plan's commands

Expected server calls. An operation with a reply, even an error, is exactly one call: `definite`. An operation without a
reply may or may not have reached the server, and a retried one may have reached it twice: `uncertain`. So server_calls
must lie in definite..definite + uncertain. MULTI and EXEC are compared with the transactions sent in the same way.

Cluster. server_calls sums all nodes. A node that answers MOVED, ASK, TRYAGAIN or CLUSTERDOWN counts one rejected call,
and redis-py then asks another node within the same operation. Connections count these redirections, so `definite`
includes them, except those that became the operation's own error: that error counts already. A replica also counts the
commands that it repeats after its primary, and its MULTI and EXEC. `coordinator/servers/commandstats.py` leaves these
out, so that only the calls of clients remain: reads, and everything that the replica refused.

Sentinel. Only the primary is read. Sentinels call PING, INFO, PUBLISH and SUBSCRIBE there, and the plan's scripts call
commands too. For these commands a surplus is attributed to the Sentinels and scripts, so the audit does not find one.

Own calls. The coordinator reads counters, samples and descriptions of the servers (`coordinator/servers/`), and a plan
may issue INFO or CONFIG GET too. Every call of the coordinator is counted by its row, and left out here; one without an
answer is uncertain.

The server's counts are compared only if every node is still the same process in the same role, and if no agent could
still write when the counters were read after the run. Otherwise `note` gives the reason.

Several differences may be the same operations: those in flight when a worker process is killed were issued and reached
the server, but were not counted. So only the largest surplus and the largest shortfall count:

    surpluses    issued - counted; the server's counts above their range
    shortfalls   counted - issued; the server's counts below their range
    unaccounted  the largest surplus + the largest shortfall

In a run without retries and failures, unaccounted is 0 only if all three counts are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from common.commands import Template
from common.metrics.intervals import merge_counts
from common.plan.planned_commands import plan_templates
from coordinator.analysis.totals.aggregate import Aggregate, scenarios_by_target
from coordinator.analysis.totals.tallies import AgentTally
from coordinator.analysis.unassigned_shares import unassigned_shares
from coordinator.journal.records import CountersRead, NodeCounters, Reading


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The audit of one run, see the module.

    issued: for a lost agent, only what its frames report. server_calls: None if the server's counters cannot be
    compared; `note` gives the reason. transactions: MULTI/EXEC pairs sent; 0 for a plan without transactions.
    uncarried: operations that were due in a share without an agent, and that no agent reported.
    """

    issued: int
    counted: int
    server_calls: int | None
    unaccounted: int
    definite: int
    uncertain: int
    transactions: int
    note: str | None = None
    uncarried: int = 0


def audit(run: Aggregate) -> Ledger:
    """Compare the counts of everything known so far. With several scenarios, the sum over targets: a target's counters
    do not distinguish scenarios."""
    ledgers = list(target_ledgers(run).values())
    if len(ledgers) == 1:
        return ledgers[0]
    notes = dict.fromkeys(ledger.note for ledger in ledgers if ledger.note)
    calls = [ledger.server_calls for ledger in ledgers if ledger.server_calls is not None]
    return Ledger(
        issued=sum(ledger.issued for ledger in ledgers),
        counted=sum(ledger.counted for ledger in ledgers),
        server_calls=sum(calls) if len(calls) == len(ledgers) else None,
        unaccounted=sum(ledger.unaccounted for ledger in ledgers),
        definite=sum(ledger.definite for ledger in ledgers),
        uncertain=sum(ledger.uncertain for ledger in ledgers),
        transactions=sum(ledger.transactions for ledger in ledgers),
        note="; ".join(notes) or None,
        uncarried=sum(ledger.uncarried for ledger in ledgers),
    )


def target_ledgers(run: Aggregate) -> dict[str, Ledger]:
    """The audit of each target, by name; "" for the plan's own."""
    return {target: _audit(scenarios) for target, scenarios in scenarios_by_target(run).items()}


def scenario_ledger(run: Aggregate, scenario: Aggregate) -> Ledger:
    """The audit of one scenario of a run. The target's calls are only known for a scenario that is alone on it."""
    others = next((each for each in scenarios_by_target(run).values() if scenario in each), [scenario])
    if len(others) == 1:
        return _audit(others)
    names = ", ".join(each.name for each in others)
    return _audit([scenario], why_not=f"the target's counters are those of {names} together")


def _audit(scenarios: Sequence[Aggregate], why_not: str = "") -> Ledger:
    """The audit of scenarios with the same target. why_not: why the server's counts cannot be compared; "" if they
    can."""
    agents = [agent for each in scenarios for agent in each.agents.values()]
    issued = sum(_reported(agent, "issued") for agent in agents)
    counted = sum(agent.counted for agent in agents)
    transactions = sum(_reported(agent, "transactions") for agent in agents)
    replies = [_replies(each) for each in scenarios]
    definite, failures = sum(replied for replied, _ in replies), sum(failed for _, failed in replies)
    retried = sum(map(_retried, scenarios))
    gained, maybe, note = (None, Counter[str](), why_not) if why_not else _calls_gained(scenarios[0])
    server_calls = None
    surpluses, shortfalls = [issued - counted], [counted - issued]
    if gained is not None:
        rows = set[str]().union(*(_plan_rows(each, gained) for each in scenarios))
        server_calls = sum(_calls_of(row, gained) for row in rows)
        shared = set[str]().union(*(_sentinel_commands(each) | _script_commands(each) for each in scenarios))
        others = sum(_calls_of(row, gained) for row in rows if row.partition("|")[0] in shared)
        others += sum(_calls_of(row, maybe) for row in rows)
        expected = [(server_calls, definite, definite + failures + retried + others)]
        for name in ("multi", "exec") if transactions else ():
            expected.append((_calls_of(name, gained), transactions - failures, transactions + retried))
        surpluses += [calls - highest for calls, _, highest in expected]
        shortfalls += [lowest - calls for calls, lowest, _ in expected]
    return Ledger(
        issued=issued,
        counted=counted,
        server_calls=server_calls,
        unaccounted=max(0, *surpluses) + max(0, *shortfalls),
        definite=definite,
        uncertain=failures + retried,
        transactions=transactions,
        note=note,
        uncarried=sum(share.operations.total() for each in scenarios for share in unassigned_shares(each)),
    )


def _reported(agent: AgentTally, what: Literal["issued", "transactions"]) -> int:
    """Return a count from the agent's final report. If the agent was lost, return the count of its frames; if it lost a
    worker process, the larger of both."""
    from_frames: int = getattr(agent, what)
    final = agent.end.final if agent.end else None
    if final is None:
        return from_frames
    from_workers: int = getattr(final, what)
    return max(from_workers, from_frames) if final.processes_lost else from_workers


def _replies(aggregate: Aggregate) -> tuple[int, int]:
    """Return (replies to operations, operations without a reply)."""
    commands = [command for pool in aggregate.totals.pools.values() for command in pool.commands.values()]
    errors = merge_counts(command.errors for command in commands)
    redirects = merge_counts(pool.connections.redirects for pool in aggregate.totals.pools.values())
    followed = sum(max(count - errors.get(kind, 0), 0) for kind, count in redirects.items())
    definite = sum(command.ok for command in commands) + sum(errors.values()) + followed
    return definite, sum(sum(command.failures.values()) for command in commands)


def _retried(aggregate: Aggregate) -> int:
    """Return how many calls may have been repeated: a retry sends all commands of a round trip again, and a reconnect
    subscribes to all channels again."""
    workload = aggregate.opened.plan.workload if aggregate.opened else None
    round_trip = max(workload.pipeline, workload.transaction, 1) if workload else 1
    pools = aggregate.totals.pools.values()
    resubscribed = sum(pool.deliveries.resubscribed for pool in pools)
    return round_trip * sum(pool.connections.retries for pool in pools) + resubscribed


def _plan_rows(aggregate: Aggregate, gained: Mapping[str, int]) -> set[str]:
    """Return the rows of commandstats that count the plan's commands. Servers with rows for subcommands (`client|info`)
    count the connections' own calls (`client|setinfo`) in other rows."""
    if aggregate.opened is None:
        return set()
    rows = {commandstats_row(template, gained) for template in plan_templates(aggregate.opened.plan.workload)}
    return {row for row in rows if "|" not in row or row.partition("|")[0] not in rows}


def commandstats_row(template: Template, gained: Iterable[str]) -> str:
    """Return the row of commandstats that counts a template. gained: all rows of the server."""
    name = template.name.lower()
    subcommand = template.arguments[1] if len(template.arguments) > 1 else None
    if isinstance(subcommand, bytes) and any(row.startswith(f"{name}|") for row in gained):
        return f"{name}|{subcommand.decode(errors='replace').lower()}"
    return name


def _calls_gained(aggregate: Aggregate) -> tuple[dict[str, int] | None, Counter[str], str | None]:
    """Return (calls that each command gained, calls of the coordinator among them that may have been made, None), or
    (None, nothing, why that is not known). Calls that the coordinator made are left out."""
    gained: Counter[str] = Counter()
    maybe: Counter[str] = Counter()
    found = _gained_by_node(aggregate.readings)
    if isinstance(found, str):
        return None, maybe, found
    for name, (gains, own_of_readings) in found.items():
        own, maybe_own = aggregate.servers.own_calls(name)
        gained.update(_without(gains, own + own_of_readings))
        maybe.update(maybe_own)
    return dict(gained), maybe, None


def _without(gains: dict[str, int], own: Mapping[str, int]) -> dict[str, int]:
    left = dict(gains)
    for row, calls in own.items():
        # Before Redis 7, commandstats has no rows for subcommands.
        found = row if row in left else row.partition("|")[0]
        if found in left:
            left[found] = max(0, left[found] - calls)
    return left


def _gained_by_node(readings: Mapping[Reading, CountersRead]) -> dict[str, tuple[dict[str, int], Counter[str]]] | str:
    """Return (calls that each command gained, calls of the two readings among them) by node, or why that is not
    known."""
    before, after = readings.get(Reading.BEFORE), readings.get(Reading.AFTER)
    for when, reading in ((Reading.BEFORE, before), (Reading.AFTER, after)):
        if reading is None:
            return f"the server's counters were not read {when.value} the run"
        if reading.error:
            return f"the server's counters could not be read {when.value} the run: {reading.error}"
    assert before is not None
    assert after is not None
    if after.writers:
        return f"the server's counters were read while {', '.join(after.writers)} might still write"
    then, now = _nodes(before), _nodes(after)
    if change := _node_change(then, now):
        return change
    gained = {}
    for name, node in now.items():
        earlier = then[name].calls
        gains = {command: calls - earlier.get(command, 0) for command, calls in node.calls.items()}
        if any(calls < 0 for calls in gains.values()) or earlier.keys() - node.calls.keys():
            return f"the counters of {_server_name(name)} were reset during the run (CONFIG RESETSTAT)"
        # The second reading counts the last query of the first one, and its own queries before the last one.
        gained[name] = gains, Counter(node.own) + Counter({"info": 1} if then[name].own else {})
    return gained


def _nodes(reading: CountersRead) -> dict[str, NodeCounters]:
    """Return the nodes by name. A reading of an earlier release has one server, without a name."""
    if not reading.nodes:
        return {"": NodeCounters(name="", role="", run_id=reading.server_run_id, calls=reading.calls)}
    return {node.name: node for node in reading.nodes}


def _node_change(then: Mapping[str, NodeCounters], now: Mapping[str, NodeCounters]) -> str:
    """Return which node joined, left, was restarted or changed its role, as a clause; "" if no node did."""
    for name in (*then, *now):
        if name not in now or name not in then:
            what = "left" if name in then else "joined"
            return f"{_server_name(name)} {what} during the run, so its counters cannot be compared"
        if then[name].run_id != now[name].run_id:
            return f"{_server_name(name)} was restarted or replaced during the run, so its counters began at 0 again"
        if then[name].role != now[name].role:
            return (
                f"{_server_name(name)} was failed over during the run, from {then[name].role} to {now[name].role}: its "
                "counters do not separate calls of clients from repeated ones"
            )
    return ""


def _server_name(name: str) -> str:
    return f"the server {name}" if name else "the server"


_SCRIPTED = re.compile(r"""\b(?:redis|server)\.p?call\s*\(\s*["'](\w+)""")


def _script_commands(aggregate: Aggregate) -> set[str]:
    """Return the commands that the plan's scripts and functions call by name, in lower case."""
    if aggregate.opened is None:
        return set()
    workload = aggregate.opened.plan.workload
    parts = (part for template in plan_templates(workload) for part in template.arguments)
    literals = (part.decode(errors="replace") for part in parts if isinstance(part, bytes))
    texts = [*(script.lua for script in workload.scripts), *workload.setup, *literals]
    return {name.lower() for text in texts for name in _SCRIPTED.findall(text)}


def _sentinel_commands(aggregate: Aggregate) -> set[str]:
    """Return the commands that Sentinels call at the target, in lower case."""
    watched = aggregate.opened is not None and aggregate.opened.target.topology == "sentinel"
    return {"ping", "info", "publish", "subscribe"} if watched else set()


def _calls_of(name: str, gained: Mapping[str, int]) -> int:
    """Return the calls of a command, including its subcommands, which commandstats lists as `config|get`."""
    return sum(calls for row, calls in gained.items() if row == name or row.startswith(name + "|"))

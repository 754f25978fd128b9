"""Connections that were wanted and never opened: how many, why, and the remedy. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from common.metrics.intervals import CLOSED_BY_SERVER, LOCAL_PORTS, MAXCLIENTS, OPEN_FILES, PENDING, RESET, SYSTEM_FILES
from common.plan.schema import Driver
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.journal.records import RunOpened

_SHORTAGES = {
    MAXCLIENTS: "raise maxclients on the server{limit}",
    OPEN_FILES: "raise `ulimit -n` {where}",
    SYSTEM_FILES: "raise the sysctl fs.file-max {where}",
    LOCAL_PORTS: "widen the sysctl net.ipv4.ip_local_port_range {where}, or use more hosts",
}
"""Remedy for each limit that keeps connections from opening."""
_NAMED = 5
"""Agents to name in a sentence, because a fleet may have hundreds."""


def missing_connections(run: Aggregate) -> Iterator[str]:
    """Yield a sentence if fewer connections opened than were wanted, so that the results are in doubt.

    The wire driver needs all of its connections, so every cause counts. The other drivers open a connection when a call
    needs one, and a connection that fails is a failed operation: a server that is down for a while is a result, not a
    reason for doubt. For these drivers, only connections that a limit kept from opening count (`_SHORTAGES`).
    """
    if run.opened is None or not (missing := _missing(run, run.opened)):
        return
    wanted = run.peak_wanted or run.peak_open + missing.total()
    causes = ", ".join(f"{cause} {count:,}" for cause, count in missing.most_common())
    remedies = [remedy for cause, _ in missing.most_common() if (remedy := _remedy(run, run.opened, cause))]
    advice = "; ".join(dict.fromkeys(remedies))
    yield (
        f"{missing.total():,} of {wanted:,} wanted connections never opened ({causes}): at most {run.peak_open:,} "
        f"carried the load. {advice[:1].upper()}{advice[1:]}."
    )


def _missing(run: Aggregate, opened: RunOpened) -> Counter[str]:
    wire = {group.name for group in opened.plan.pools if group.driver is Driver.WIRE}
    missing: Counter[str] = Counter()
    for name, pool in run.totals.pools.items():
        never = pool.connections.never_opened
        if name not in wire:
            missing.update({cause: count for cause, count in never.items() if _shortage(opened, cause) in _SHORTAGES})
        elif never.keys() - {PENDING}:
            missing.update(never)
    return missing


def _shortage(opened: RunOpened, cause: str) -> str:
    """Return the limit behind a cause. With TLS, a server with too many clients closes the connection before the
    handshake, and cannot send an error."""
    limit = opened.target.max_clients
    has_too_many = limit is not None and opened.connection_ceiling > limit * opened.target.nodes
    return MAXCLIENTS if has_too_many and cause in (CLOSED_BY_SERVER, RESET) else cause


def _remedy(run: Aggregate, opened: RunOpened, cause: str) -> str:
    shortage = _shortage(opened, cause)
    if shortage not in _SHORTAGES:
        return "" if cause == PENDING else f"look for the cause ({cause}) in the server's log"
    names = [agent.facts.agent_id for agent in run.agents.values() if cause in agent.never_opened]
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    where = f"on the host of agent {shown}" if len(names) == 1 else f"on the hosts of agents {shown}"
    limit = opened.target.max_clients
    return _SHORTAGES[shortage].format(where=where, limit="" if limit is None else f" (now {limit:,})")

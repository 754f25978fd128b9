"""What each agent of a run did, for the summary. Pure."""

from __future__ import annotations

from common.metrics.intervals import GeneratorDelays
from common.units import NS_PER_S
from coordinator.analysis.generator import busy_times, delays_by_agent
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import AgentTally, BusyTime
from coordinator.journal.records import AgentOutcome, ShareTakenOver
from coordinator.report.summary_types import AgentSummary

_NO_END = "the journal does not have its end"
_US = 1e3


def agent_summaries(aggregate: Aggregate) -> tuple[AgentSummary, ...]:
    """Return the summary of each agent."""
    busy, delays = busy_times(aggregate.stages), delays_by_agent(aggregate.stages)
    began = {record.agent.agent_id: record for record in aggregate.takeovers}
    replaced = {record.replaces: record for record in aggregate.takeovers}
    return tuple(
        _agent(
            agent,
            busy.get(agent_id, BusyTime()).watched_ns,
            delays.get(agent_id),
            began.get(agent_id),
            replaced.get(agent_id),
        )
        for agent_id, agent in aggregate.agents.items()
    )


def _agent(
    agent: AgentTally,
    watched_ns: int,
    delays: GeneratorDelays | None,
    began: ShareTakenOver | None,
    replaced: ShareTakenOver | None,
) -> AgentSummary:
    """watched_ns: how long `delays` was measured. began: the takeover by which the agent got its share, if another
    agent had the share before. replaced: the takeover of its share by another agent."""
    end = agent.end
    allowed_ns = delays.allowed_ns if delays else 0
    final = end.final if end else None
    return AgentSummary(
        id=agent.facts.agent_id,
        host=agent.facts.host,
        processes=agent.facts.processes,
        state=end.state if end else AgentOutcome.OPEN,
        reason=end.reason if end else _NO_END,
        operations=agent.counted,
        clock_offset_us=end.clock_offset_us if end else None,
        clock_rtt_us=end.clock_rtt_us if end else None,
        start_skew_us=final.start_skew_ns / _US if final else None,
        cpu_percent_max=end.cpu_percent_max if end else None,
        cpu_percent_busiest=end.cpu_percent_busiest if end else None,
        host_cpu_percent_mean=end.host_cpu_percent_mean if end else None,
        quota_cores=allowed_ns / watched_ns if allowed_ns and watched_ns else None,
        quota_percent_mean=100 * delays.quota_used_ns / allowed_ns if delays and allowed_ns else None,
        began_at_s=began.from_ns / NS_PER_S if began else 0.0,
        replaced_by=replaced.agent.agent_id if replaced else "",
        replaced_at_s=replaced.from_ns / NS_PER_S if replaced else None,
    )

"""Whether the generator, and not the server, was the limit of a load. Pure.

A worker process runs Python on one core. One that uses nearly all of it cannot send more, and what it measures holds
its own delay. An event loop that is never done says the same, also where others leave its process less than a core.
Below that, operations of an open loop that are sent late tell it, but only together with a process that was busy: late
sends alone may as well come of a server that was slow to answer.

A process may also be held up without being busy: a CPU quota throttles it, or it does not run at all for some time. If
this is 1% of the time, p99 shows nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.metrics.histogram import Histogram
from common.metrics.intervals import LATE_SEND_NS, HoldUps, Merge, merge_hold_ups
from common.plan.schema import Driver
from common.units import NS_PER_S, counted
from coordinator.analysis.aggregate import Aggregate
from coordinator.analysis.leg_results import StageResult
from coordinator.analysis.tallies import Busy, StageTally

BUSY_SHARE = 0.9
"""Of a core, or of a loop's time: what is left is not enough to do much more."""

PRESSED_SHARE = 0.75
"""Of a core: from here on, what is sent late waits for its own process."""

HELD_UP_SHARE = 0.01
"""Share of a quota's periods, or of the time: from this share on, p99 shows what held the generator up."""

STALL_MAX_NS = NS_PER_S
"""A stall this long is reported in a run of any length."""

_LONG_ENOUGH_NS = NS_PER_S // 2


def all_watched(run: Aggregate) -> bool:
    """Whether every agent that did anything said what CPU time that took."""
    watched = {agent_id for stage in run.stages for agent_id, busy in stage.busy.items() if busy.watched_ns}
    return bool(watched) and watched >= {agent_id for agent_id, agent in run.agents.items() if agent.counted}


def busy_of(stages: Iterable[StageTally]) -> dict[str, Busy]:
    """How busy each agent was over all of these stages, by agent id."""
    by_agent: dict[str, Busy] = {}
    for stage in stages:
        for agent_id, busy in stage.busy.items():
            by_agent.setdefault(agent_id, Busy()).add(busy.watched_ns, busy.cpu_ns, busy.loop_ns)
    return by_agent


def busiest_of(stages: Iterable[StageTally]) -> Busy:
    """Of that agent whose busiest process used most of a core."""
    return max(busy_of(stages).values(), key=lambda busy: busy.core_share, default=Busy())


def hold_ups_of(stages: Iterable[StageTally]) -> dict[str, HoldUps]:
    """What held up each agent over all of these stages, by agent id; not for agents whose release does not report
    it."""
    by_agent: dict[str, list[HoldUps | None]] = {}
    for stage in stages:
        for agent_id, hold_ups in stage.hold_ups.items():
            by_agent.setdefault(agent_id, []).append(hold_ups)
    merged = {agent_id: merge_hold_ups(parts, Merge.NEIGHBOURS) for agent_id, parts in by_agent.items()}
    return {agent_id: hold_ups for agent_id, hold_ups in merged.items() if hold_ups is not None}


def throttled_share(hold_ups: HoldUps) -> float:
    """Share of the quota's periods in which the agent was throttled."""
    return hold_ups.throttled_periods / hold_ups.quota_periods if hold_ups.quota_periods else 0.0


def limit_findings(run: Aggregate, stages: tuple[StageResult, ...]) -> Iterator[str]:
    """A sentence for each measured stage in which the generator was the limit, and for what held it up there."""
    measured = [stage for stage in stages if stage.leg.measured]
    for stage in measured:
        where = f" in {stage.leg.name}" if len(measured) > 1 else ""
        throttled, stalled = _throttled(stage), _stalled(stage)
        if throttled is not None:
            yield _throttled_text(stage, throttled, where)
        if stalled is not None:
            yield _stalled_text(stage, stalled, where)
        if throttled is None:
            yield from _of_stage(run, stage, where, is_explained=stalled is not None)
    yield from _by_heartbeats(run)


def hold_up_cause(stages: Iterable[StageResult]) -> str | None:
    """What held the generator up in these stages; None if nothing did."""
    for stage in stages:
        if (agent_id := _throttled(stage)) is not None:
            return f"the CPU quota of agent {agent_id} throttled it"
        if (agent_id := _stalled(stage)) is not None:
            return f"a worker process of agent {agent_id} did not run for {_stall_s(stage, agent_id):.1f} s"
    return None


def _throttled(stage: StageResult) -> str | None:
    """The agent that was throttled most by its quota; None if none was for long enough."""
    shares = {agent_id: throttled_share(hold_ups) for agent_id, hold_ups in stage.tally.hold_ups.items()}
    worst = max(shares, key=lambda agent_id: shares[agent_id], default=None)
    return worst if worst is not None and shares[worst] >= HELD_UP_SHARE else None


def _throttled_text(stage: StageResult, agent_id: str, where: str) -> str:
    found, watched_ns = stage.tally.hold_ups[agent_id], stage.tally.busy[agent_id].watched_ns
    cores = round(found.allowed_ns / watched_ns, 2) if watched_ns else 0.0
    quota = f" of {cores:g} {'core' if cores == 1 else 'cores'}" if cores else ""
    is_late, late = _late(stage)
    return (
        f"Agent {agent_id} was throttled by its CPU quota{quota} in {found.throttled_periods:,} of "
        f"{found.quota_periods:,} periods{where}{f', and {late}' if is_late else ''}: the generator, not the server, "
        "was the limit. Raise the quota (docker run --cpus, limits.cpu in Kubernetes, CPUQuota= of systemd), lower the "
        "load, or use more machines."
    )


def _stalled(stage: StageResult) -> str | None:
    """The agent with the longest stall; None if that is too short to report. Short stalls under a throttling quota do
    not count: throttling itself makes them."""
    held = {agent_id: found for agent_id, found in stage.tally.hold_ups.items() if found.stall_max_ns}
    worst = max(held, key=lambda agent_id: held[agent_id].stall_max_ns, default=None)
    if worst is None or held[worst].stall_max_ns >= STALL_MAX_NS:
        return worst
    watched_ns = stage.tally.busy[worst].watched_ns
    is_long = held[worst].stalled_ns >= HELD_UP_SHARE * watched_ns
    return worst if is_long and not held[worst].throttled_periods else None


def _stalled_text(stage: StageResult, agent_id: str, where: str) -> str:
    is_late, late = _late(stage)
    began_s = stage.tally.hold_ups[agent_id].stall_at_ns / NS_PER_S
    return (
        f"A worker process of agent {agent_id} did not run for {_stall_s(stage, agent_id):.1f} s, from {began_s:.1f} s "
        f"on{where}{f', and {late}' if is_late else ''}: it was stopped, or its machine was suspended, overloaded or "
        "out of memory. The generator, not the server, delayed the operations that were due then."
    )


def _stall_s(stage: StageResult, agent_id: str) -> float:
    return stage.tally.hold_ups[agent_id].stall_max_ns / NS_PER_S


def _late(stage: StageResult) -> tuple[bool, str]:
    """(whether the send lag at p99 is late, how many operations were late)."""
    pools = stage.tally.totals.pools.values()
    send_lag = Histogram.merge(pool.send_lag for pool in pools)
    late_sends = sum(pool.late_sends for pool in pools)
    were = "was" if late_sends == 1 else "were"
    late = f"{late_sends:,} of {counted(send_lag.count, 'operation')} {were} sent more than 1 ms late"
    return send_lag.quantile(0.99) > LATE_SEND_NS, late


def _of_stage(run: Aggregate, stage: StageResult, where: str, *, is_explained: bool) -> Iterator[str]:
    """is_explained: another finding already says why operations were sent late."""
    long_enough = {name: busy for name, busy in stage.tally.busy.items() if busy.watched_ns >= _LONG_ENOUGH_NS}
    if not long_enough:
        return
    agent_id, busy = max(long_enough.items(), key=lambda one: max(one[1].core_share, one[1].loop_share))
    is_late, late = _late(stage)
    is_late = is_late and not is_explained
    loop_lag_ns = stage.tally.totals.generator.loop_lag.quantile(0.99)
    process = f"The busiest worker process ({agent_id}) used {busy.core_share:.0%} of a core{where}"
    if busy.core_share >= BUSY_SHARE:
        found = process
    elif busy.loop_share >= BUSY_SHARE:
        found = f"The busiest event loop ({agent_id}) had something to do for {busy.loop_share:.0%} of the time{where}"
    elif is_late and loop_lag_ns > LATE_SEND_NS:
        found = f"Event loops were busy for {loop_lag_ns / 1e6:.1f} ms at a stretch (p99){where}"
    elif is_late and busy.core_share >= PRESSED_SHARE:
        found = process
    else:
        return
    and_late = f", and {late}" if is_late else ""
    yield f"{found}{and_late}: the generator, not the server, was the limit. {_advice(run)}"


def _advice(run: Aggregate) -> str:
    pools = run.opened.plan.pools if run.opened else ()
    other = "" if all(pool.driver is Driver.WIRE for pool in pools) else ", or another driver"
    return f"Use more worker processes (each needs a pool of its own), fewer connections{other}."


def _by_heartbeats(run: Aggregate) -> Iterator[str]:
    """Of agents whose release does not watch itself: what they saw of their processes, second by second."""
    watched = {name for name, busy in busy_of(run.stages).items() if busy.watched_ns}
    ends = [agent.end for name, agent in run.agents.items() if agent.end and name not in watched]
    busiest = max(ends, key=lambda end: end.cpu_percent_busiest, default=None)
    if busiest and busiest.cpu_percent_busiest >= 100 * BUSY_SHARE:
        yield (
            f"The busiest worker process ({busiest.agent_id}) used {busiest.cpu_percent_busiest:.0f}% of a core in one "
            f"second: the generator, not the server, may have been the limit. {_advice(run)}"
        )

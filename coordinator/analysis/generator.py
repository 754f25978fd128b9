"""Whether the generator, and not the server, limited the load. Pure.

- Busy. A worker process runs Python on one core. If it uses nearly all of the core, it cannot send more, and its
  measurements include its own delay. An event loop that never waits is at its limit too, even if other
  programs take a part of its core.
- Late. Below that, operations of an open loop that are sent late are evidence, but only if the process was busy as
  well: late sends alone may be the result of a slow server.
- Delayed. A CPU quota can throttle a process that is not busy, and a process can be stopped or suspended. Delays that
  make up 1% of the time determine p99.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.metrics.histogram import Histogram
from common.metrics.intervals import LATE_SEND_NS, GeneratorDelays, Merge, merge_delays
from common.plan.schema import Driver
from common.units import NS_PER_S, counted
from coordinator.analysis.leg_results import StageResult
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import BusyTime, StageTally

BUSY_SHARE = 0.9
"""Share of a core, or of a loop's time: the rest is not enough to do much more."""

NEARLY_BUSY_SHARE = 0.75
"""If a process uses at least this share of a core, late operations are attributed to the process."""

DELAYED_SHARE = 0.01
"""Share of a quota's periods, or of the time: from this share on, delays of the generator determine p99."""

STALL_MAX_NS = NS_PER_S
"""A stall this long is reported in a run of any length."""

_LONG_ENOUGH_NS = NS_PER_S // 2


def all_report_cpu(run: Aggregate) -> bool:
    """Return whether every agent with operations reported its CPU time."""
    watched = {agent_id for stage in run.stages for agent_id, busy in stage.busy.items() if busy.watched_ns}
    return bool(watched) and watched >= {agent_id for agent_id, agent in run.agents.items() if agent.counted}


def busy_times(stages: Iterable[StageTally]) -> dict[str, BusyTime]:
    """Return the busy time of each agent over these stages, by agent id."""
    by_agent: dict[str, BusyTime] = {}
    for stage in stages:
        for agent_id, busy in stage.busy.items():
            by_agent.setdefault(agent_id, BusyTime()).add(busy.watched_ns, busy.cpu_ns, busy.loop_ns)
    return by_agent


def busiest_agent(stages: Iterable[StageTally]) -> BusyTime:
    """Return the busy time of the agent whose busiest process used the largest share of a core."""
    return max(busy_times(stages).values(), key=lambda busy: busy.core_share, default=BusyTime())


def delays_by_agent(stages: Iterable[StageTally]) -> dict[str, GeneratorDelays]:
    """Return throttling and stalls of each agent over these stages, by agent id; without agents whose release does not
    report them."""
    by_agent: dict[str, list[GeneratorDelays | None]] = {}
    for stage in stages:
        for agent_id, delays in stage.delays.items():
            by_agent.setdefault(agent_id, []).append(delays)
    merged = {agent_id: merge_delays(parts, Merge.CONSECUTIVE) for agent_id, parts in by_agent.items()}
    return {agent_id: delays for agent_id, delays in merged.items() if delays is not None}


def throttled_share(delays: GeneratorDelays) -> float:
    """Return the share of the quota's periods in which the agent was throttled."""
    return delays.throttled_periods / delays.quota_periods if delays.quota_periods else 0.0


def generator_limits(run: Aggregate, stages: tuple[StageResult, ...]) -> Iterator[str]:
    """Yield a sentence for each measured stage in which the generator was the limit, or was delayed."""
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


def generator_delay(stages: Iterable[StageResult]) -> str | None:
    """Return what delayed the generator in these stages; None if nothing did."""
    for stage in stages:
        if (agent_id := _throttled(stage)) is not None:
            return f"the CPU quota of agent {agent_id} throttled it"
        if (agent_id := _stalled(stage)) is not None:
            return f"a worker process of agent {agent_id} did not run for {_stall_s(stage, agent_id):.1f} s"
    return None


def _throttled(stage: StageResult) -> str | None:
    """Return the agent that its quota throttled most; None if no agent was throttled for long enough."""
    shares = {agent_id: throttled_share(delays) for agent_id, delays in stage.tally.delays.items()}
    worst = max(shares, key=lambda agent_id: shares[agent_id], default=None)
    return worst if worst is not None and shares[worst] >= DELAYED_SHARE else None


def _throttled_text(stage: StageResult, agent_id: str, where: str) -> str:
    found, watched_ns = stage.tally.delays[agent_id], stage.tally.busy[agent_id].watched_ns
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
    """Return the agent with the longest stall; None if that stall is too short to report. Short stalls do not count if
    a quota throttled the agent, because throttling causes stalls."""
    stalls = {agent_id: found for agent_id, found in stage.tally.delays.items() if found.stall_max_ns}
    worst = max(stalls, key=lambda agent_id: stalls[agent_id].stall_max_ns, default=None)
    if worst is None or stalls[worst].stall_max_ns >= STALL_MAX_NS:
        return worst
    watched_ns = stage.tally.busy[worst].watched_ns
    is_long = stalls[worst].stalled_ns >= DELAYED_SHARE * watched_ns
    return worst if is_long and not stalls[worst].throttled_periods else None


def _stalled_text(stage: StageResult, agent_id: str, where: str) -> str:
    is_late, late = _late(stage)
    began_s = stage.tally.delays[agent_id].stall_at_ns / NS_PER_S
    return (
        f"A worker process of agent {agent_id} did not run for {_stall_s(stage, agent_id):.1f} s, from {began_s:.1f} s "
        f"on{where}{f', and {late}' if is_late else ''}: it was stopped, or its machine was suspended, overloaded or "
        "out of memory. The generator, not the server, delayed the operations that were due then."
    )


def _stall_s(stage: StageResult, agent_id: str) -> float:
    return stage.tally.delays[agent_id].stall_max_ns / NS_PER_S


def _late(stage: StageResult) -> tuple[bool, str]:
    """Return (whether the send lag at p99 is late, a clause on how many operations were late)."""
    pools = stage.tally.totals.pools.values()
    send_lag = Histogram.merge(pool.send_lag for pool in pools)
    late_sends = sum(pool.late_sends for pool in pools)
    were = "was" if late_sends == 1 else "were"
    late = f"{late_sends:,} of {counted(send_lag.count, 'operation')} {were} sent more than 1 ms late"
    return send_lag.quantile(0.99) > LATE_SEND_NS, late


def _of_stage(run: Aggregate, stage: StageResult, where: str, *, is_explained: bool) -> Iterator[str]:
    """is_explained: another sentence gives the reason for late operations already."""
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
        found = f"The busiest event loop ({agent_id}) was busy for {busy.loop_share:.0%} of the time{where}"
    elif is_late and loop_lag_ns > LATE_SEND_NS:
        found = f"Event loops were busy for {loop_lag_ns / 1e6:.1f} ms without a pause (p99){where}"
    elif is_late and busy.core_share >= NEARLY_BUSY_SHARE:
        found = process
    else:
        return
    and_late = f", and {late}" if is_late else ""
    yield f"{found}{and_late}: the generator, not the server, was the limit. {_advice(run)}"


def _advice(run: Aggregate) -> str:
    pools = run.opened.plan.pools if run.opened else ()
    other = "" if all(pool.driver is Driver.WIRE for pool in pools) else ", or another driver"
    return f"Use more worker processes (each needs its own pool), fewer connections{other}."


def _by_heartbeats(run: Aggregate) -> Iterator[str]:
    """For agents whose release does not measure its CPU time: use the CPU shares in their heartbeats."""
    watched = {name for name, busy in busy_times(run.stages).items() if busy.watched_ns}
    ends = [agent.end for name, agent in run.agents.items() if agent.end and name not in watched]
    busiest = max(ends, key=lambda end: end.cpu_percent_busiest, default=None)
    if busiest and busiest.cpu_percent_busiest >= 100 * BUSY_SHARE:
        yield (
            f"The busiest worker process ({busiest.agent_id}) used {busiest.cpu_percent_busiest:.0f}% of a core in one "
            f"second: the generator, not the server, may have been the limit. {_advice(run)}"
        )

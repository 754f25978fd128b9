"""Whether the generator, and not the server, was the limit of a load. Pure.

A worker process runs Python on one core. One that uses nearly all of it cannot send more, and what it measures holds
its own delay. An event loop that is never done says the same, also where others leave its process less than a core.
Below that, operations of an open loop that are sent late tell it, but only together with a process that was busy: late
sends alone may as well come of a server that was slow to answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.histogram import Histogram
from common.metrics import LATE_SEND_NS
from common.plan.schema import Driver
from common.units import NS_PER_S
from coordinator.aggregate import Aggregate, Busy, StageTally
from coordinator.stages import StageResult

BUSY_SHARE = 0.9
"""Of a core, or of a loop's time: what is left is not enough to do much more."""

PRESSED_SHARE = 0.75
"""Of a core: from here on, what is sent late waits for its own process."""

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


def limit_findings(run: Aggregate, stages: tuple[StageResult, ...]) -> Iterator[str]:
    """A sentence for each measured stage in which the generator was the limit."""
    measured = [stage for stage in stages if stage.leg.measured]
    for stage in measured:
        yield from _of_stage(run, stage, f" in {stage.leg.name}" if len(measured) > 1 else "")
    yield from _by_heartbeats(run)


def _of_stage(run: Aggregate, stage: StageResult, where: str) -> Iterator[str]:
    long_enough = {name: busy for name, busy in stage.tally.busy.items() if busy.watched_ns >= _LONG_ENOUGH_NS}
    if not long_enough:
        return
    agent_id, busy = max(long_enough.items(), key=lambda one: max(one[1].core_share, one[1].loop_share))
    pools = stage.tally.totals.pools.values()
    send_lag = Histogram.merge(pool.send_lag for pool in pools)
    late = f"{sum(pool.late_sends for pool in pools):,} of {send_lag.count:,} operations were sent more than 1 ms late"
    is_late = send_lag.quantile(0.99) > LATE_SEND_NS
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

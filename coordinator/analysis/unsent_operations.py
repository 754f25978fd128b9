"""Why operations of an open loop were not sent when they were due. Pure.

An operation occupies a sender (a worker with a client instance, or a connection of the wire driver) until it ends. An
operation is not sent if no sender is free, so the cause is what the senders spent their time on. A cause is given only
if the figures show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.metrics.histogram import Histogram
from common.metrics.intervals import merge_counts
from common.plan.schema import Driver, Pools
from common.units import NS_PER_S, counted
from coordinator.analysis.generator import generator_delay, generator_limits
from coordinator.analysis.leg_results import StageResult
from coordinator.analysis.missing_connections import missing_connections
from coordinator.analysis.target_loss import target_loss
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.journal.records import Reading, RunOpened

FAILED_SHARE = 0.25
"""Share of all senders' time that they spent on failed operations."""
BUSY_SHARE = 0.5
"""Share of all senders' time that they waited for replies, or of all workers' time for a client instance."""
STALL_SHARE = 0.1
"""Share of the load's duration that one reply took, or that passed without a success."""
STALL_FACTOR = 10
"""A reply that takes this many times the median is a stall."""


def why_unsent(run: Aggregate, measured: Sequence[StageResult]) -> str:
    """Return a clause; "" if the figures show no cause. measured: the measured stages."""
    stages = [stage for stage in measured if stage.leg.is_open]
    if run.opened is None or not stages:
        return ""
    spent = _time_spent(run.opened, stages)
    causes = (_target_lost, _failed, _never_opened, _generator, _stalled, _waited, _busy)
    return next((cause for find in causes if (cause := find(run, spent))), "")


@dataclass(frozen=True, slots=True)
class _TimeSpent:
    """How senders and workers spent their time in these stages.

    senders: how many operations, or batches, can be in flight at once; kind: what limits this number. workers: threads,
    tasks or, with the wire driver, pools. batch: operations in one round trip. failed_s, replies_s: time of senders on
    operations that failed, and on those that succeeded. waited_s: time of workers waiting for a client instance.
    """

    stages: Sequence[StageResult]
    load_s: float
    senders: int
    kind: str
    workers: int
    batch: int
    failed_s: float
    replies_s: float
    waited_s: float
    service: Histogram
    errors: dict[str, int]

    @property
    def whole_s(self) -> float:
        """Time of all senders together."""
        return self.senders * self.load_s


def _time_spent(opened: RunOpened, stages: Sequence[StageResult]) -> _TimeSpent:
    pools = [pool for stage in stages for pool in stage.tally.totals.pools.values()]
    commands = [command for pool in pools for command in pool.commands.values()]
    workload, plan_pools = opened.plan.workload, opened.plan.pools
    batch = max(workload.pipeline, workload.transaction, 1)
    load_s = sum(stage.duration_s for stage in stages)
    service = Histogram.merge(command.service for command in commands)
    nodes = max(opened.target.primaries, 1) if opened.target.topology == "cluster" else 1
    kinds = {_kind(group) for group in plan_pools}
    return _TimeSpent(
        stages=stages,
        load_s=load_s,
        senders=sum(_senders(group, nodes) for group in plan_pools),
        kind=kinds.pop() if len(kinds) == 1 else "sender",
        workers=sum((group.client_pools or 1) * group.workers_per_pool for group in plan_pools),
        batch=batch,
        failed_s=sum(command.failed.value_sum for command in commands) / batch / NS_PER_S,
        replies_s=service.value_sum / batch / NS_PER_S,
        waited_s=sum(pool.checkout_wait.value_sum for pool in pools) / NS_PER_S,
        service=service,
        errors=merge_counts(counts for command in commands for counts in (command.errors, command.failures)),
    )


_KINDS = {Driver.CLIENT: "thread", Driver.ASYNCIO: "task", Driver.WIRE: "connection"}


def _senders(group: Pools, nodes: int) -> int:
    """Return how many operations can be in flight. nodes: primaries; the wire driver connects to each of them."""
    if group.driver is Driver.WIRE:
        each = group.client_instances_per_pool * group.max_connections * nodes
    else:
        each = min(group.workers_per_pool, group.client_instances_per_pool)
    return (group.client_pools or 1) * each


def _kind(group: Pools) -> str:
    scarce = group.driver is not Driver.WIRE and group.client_instances_per_pool < group.workers_per_pool
    return "client instance" if scarce else _KINDS[group.driver]


def _target_lost(run: Aggregate, _: _TimeSpent) -> str:
    name = run.scenario.target if run.scenario is not None else ""
    loss = target_loss([run], run.duration_s, run.readings.get(Reading.AFTER), name)
    return loss.sentence if loss is not None else ""


def _failed(run: Aggregate, spent: _TimeSpent) -> str:
    """A failed operation occupies its worker during all its retries and timeouts."""
    if not spent.errors:
        return ""
    ranked = sorted(spent.errors.items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} {count:,}" for name, count in ranked[:2])
    if spent.failed_s < FAILED_SHARE * spent.whole_s or spent.failed_s < spent.replies_s:
        silent = _silent_s(run, spent)
        return f"for {silent} s no operation succeeded ({named})" if silent > STALL_SHARE * spent.load_s else ""
    match ranked[0][0]:
        case "CheckoutTimeout":
            return _stalled(run, spent) or f"no client instance became free in time ({named})"
        case "TimeoutError":
            return f"the target did not reply in time ({named})"
    each_ms = 1e3 * spent.failed_s * spent.batch / sum(spent.errors.values())
    return f"failed operations kept the {spent.kind}s busy ({named}; {each_ms:,.0f} ms each on average)"


def _silent_s(run: Aggregate, spent: _TimeSpent) -> int:
    """Return how many seconds of these stages had errors and no success."""
    spans = [
        (stage.leg.begin_ns / NS_PER_S, stage.leg.begin_ns / NS_PER_S + stage.duration_s) for stage in spent.stages
    ]
    return sum(
        not second.ok
        and bool(second.errors)
        and any(begin_s <= number and number + 1 <= end_s for begin_s, end_s in spans)
        for number, second in run.seconds.items()
    )


def _never_opened(run: Aggregate, _: _TimeSpent) -> str:
    return "not all wanted connections opened" if any(missing_connections(run)) else ""


def _generator(run: Aggregate, spent: _TimeSpent) -> str:
    if delay := generator_delay(spent.stages):
        return delay
    return "the generator was the limit" if any(generator_limits(run, tuple(spent.stages))) else ""


def _stalled(_: Aggregate, spent: _TimeSpent) -> str:
    longest_ns, usual_ns = spent.service.maximum, spent.service.quantile(0.5)
    if longest_ns < max(STALL_SHARE * spent.load_s * NS_PER_S, STALL_FACTOR * usual_ns) or not longest_ns:
        return ""
    return f"the target stalled: a reply took up to {longest_ns / NS_PER_S:.1f} s"


def _waited(run: Aggregate, spent: _TimeSpent) -> str:
    whole_s = spent.workers * spent.load_s
    if run.opened is None or spent.waited_s < max(BUSY_SHARE * whole_s, spent.replies_s):
        return ""
    workers = {_KINDS[group.driver] for group in run.opened.plan.pools}
    share = min(spent.waited_s / whole_s, 1.0)
    return (
        f"{'s and '.join(sorted(workers))}s waited for a client instance {share:.0%} of the time: add client instances"
    )


def _busy(_: Aggregate, spent: _TimeSpent) -> str:
    if not spent.replies_s or spent.replies_s < BUSY_SHARE * spent.whole_s:
        return ""
    at_most_per_s = spent.senders * spent.batch / (spent.service.mean / NS_PER_S)
    senders = f"the only {spent.kind} was" if spent.senders == 1 else f"all {counted(spent.senders, spent.kind)} were"
    return (
        f"{senders} busy, waiting {spent.service.mean / 1e6:,.3g} ms for a reply on average, which allows "
        f"{at_most_per_s:,.0f}/s"
    )

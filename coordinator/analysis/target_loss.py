"""Whether a target was lost during a run and did not come back. Pure; decided once, at the end of the load.

Each target of a plan is judged by the scenarios that use it, so a lost one is seen while other scenarios go on.

A target is lost if no operation succeeds from some second until the end of the load, although some are tried. This
alone may be a hiccup right before the end, or a load with few operations. So one of these must be true as well:

- The target is gone: it does not answer the coordinator after the load, although it did before. In a cluster only one
  of many nodes may be gone, so at least `ENOUGH_FAILED` operations must have failed too.
- The loss lasted for at least `LONG_S` and a tenth of the load, and at least `ENOUGH_FAILED` operations failed in this
  time. This finds a target that hangs, or that refuses everything (READONLY, OOM, CLUSTERDOWN, LOADING), but still
  answers the coordinator. In a cluster whose nodes answer, only error replies count: other failures are those of a node
  that is down, and they may block all workers of a small load.

If nothing succeeded in the whole run, the target is lost only if it is gone; otherwise the result is invalid, see
`coordinator.analysis.verdict`. Errors of the client itself (no free client instance or connection, a wrong value) do
not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from common.metrics.intervals import merge_counts
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate, scenarios_by_target
from coordinator.analysis.totals.tallies import Second
from coordinator.journal.records import CountersRead, Reading

LONG_S = 3.0
LONG_SHARE = 0.1
ENOUGH_FAILED = 5
OWN_ERRORS = frozenset({"CheckoutTimeout", "MaxConnectionsError", "DataMismatch"})
"""Errors that the client or the plan causes, not the target."""
CUT_SHORT = "CutShort"
"""Error of operations that were waiting when the run ended: evidence only if the target is gone."""


@dataclass(frozen=True, slots=True)
class TargetLoss:
    """target: its name, "" for the plan's own. last_second: the last second with a success, -1 without any. load_s: how
    long the load lasted. failures, refusals: errors after that second by class, without a reply and with an error
    reply."""

    target: str
    last_second: int
    load_s: float
    failures: dict[str, int]
    refusals: dict[str, int]

    @property
    def sentence(self) -> str:
        """A sentence without a full stop, for `run.reason`."""
        counts = sorted((self.failures | self.refusals).items(), key=lambda item: -item[1])
        kinds = ", ".join(f"{name} {count:,}" for name, count in counts[:3])
        target = f"the target {self.target}" if self.target else "the target"
        when = f"second {self.last_second} of {ceil(self.load_s)}"
        if self.last_second < 0:
            return f"{target} did not answer a single operation: {kinds}"
        if sum(self.refusals.values()) > sum(self.failures.values()):
            return f"{target} refused every operation after {when}: {kinds}"
        return f"{target} was lost in {when} and did not come back: {kinds}"


def target_losses(run: Aggregate, load_s: float, after: CountersRead | None) -> list[TargetLoss]:
    """How each lost target was lost. after: the reading of the counters of all targets after the load."""
    losses = []
    for name, scenarios in scenarios_by_target(run).items():
        own_after = after.targets.get(name, after) if after is not None else None
        ends_ns = [each.end_ns for each in scenarios]
        last_ns = max((end_ns for end_ns in ends_ns if end_ns is not None), default=0)
        own_load_s = load_s if not run.parts or None in ends_ns else min(load_s, last_ns / NS_PER_S)
        losses.append(target_loss(scenarios, own_load_s, own_after, name))
    return [loss for loss in losses if loss is not None]


def target_loss(
    scenarios: Sequence[Aggregate], load_s: float, after: CountersRead | None, name: str = ""
) -> TargetLoss | None:
    """How the target of these scenarios was lost, or None. after: the reading of its counters after the load."""
    seconds: dict[int, list[Second]] = {}
    for scenario in scenarios:
        for number, second in scenario.seconds.items():
            seconds.setdefault(number, []).append(second)
    last = max((number for number, parts in seconds.items() if any(part.ok for part in parts)), default=-1)
    later = {number: parts for number, parts in seconds.items() if number > last}
    before, opened = scenarios[0].readings.get(Reading.BEFORE), scenarios[0].opened
    gone = after is not None and after.unreachable and not (before is not None and before.unreachable)
    is_cluster = opened is not None and opened.target.topology == "cluster"
    if gone and not is_cluster and not _failures(later.values()) and last == max(seconds, default=-1):
        # The target was lost in the last second, after a success in the same second.
        later = {last: seconds[last]} if last >= 0 else {}
    failures, refusals = _failures(later.values()), _refusals(later.values())
    if gone:
        lost = sum(failures.values()) >= (ENOUGH_FAILED if is_cluster else 1)
    else:
        within = [parts for number, parts in later.items() if number < load_s]
        tried = _refusals(within) if is_cluster else _failures(within) | _refusals(within)
        failed = sum(count for kind, count in tried.items() if kind != CUT_SHORT)
        lost = last >= 0 and failed >= ENOUGH_FAILED and load_s - last - 1 >= max(LONG_S, LONG_SHARE * load_s)
    return TargetLoss(name, last, load_s, failures, refusals) if lost else None


def _failures(seconds: Iterable[Sequence[Second]]) -> dict[str, int]:
    return _target_errors(merge_counts(part.failures for parts in seconds for part in parts))


def _refusals(seconds: Iterable[Sequence[Second]]) -> dict[str, int]:
    return _target_errors(merge_counts(part.refusals for parts in seconds for part in parts))


def _target_errors(counts: dict[str, int]) -> dict[str, int]:
    """Return the counts without errors of the client itself."""
    return {name: count for name, count in counts.items() if name not in OWN_ERRORS and count}

"""Results of each leg of a load: how long it lasted, how many operations were wanted, and how many were done. Pure.

An operation belongs to the leg in which it was due (open loop) or begun (closed loop), even if it was sent or ended
later. Operations that workers began and that never ended, or were never reported, are known only for the whole run:
they count in the last leg that was reached. So the sum over all legs equals the ledger's `issued`.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.plan.schema import Workload
from common.plan.timeline import Leg
from common.units import NS_PER_S
from coordinator.analysis.ledger import Ledger
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import StageTally


@dataclass(frozen=True, slots=True)
class StageResult:
    """Results of one leg.

    duration_s: how long it lasted, which is less than planned if the run was stopped early. issued: operations begun.
    in_time: operations begun before the end of the leg, including one batch for each thread, because a batch waits for
    its last operation. wanted: operations that were due in the leg while it lasted; a mean with Poisson arrivals, 0.0
    in a closed loop.
    """

    leg: Leg
    tally: StageTally
    duration_s: float
    issued: int
    in_time: int
    wanted: float

    @property
    def achieved_per_s(self) -> float:
        """Operations begun in time, per second of the leg."""
        return self.in_time / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def wanted_per_s(self) -> float | None:
        """Mean rate that the plan wants, over the part of the leg that was reached (over the whole leg if no part was);
        None in a closed loop. A ramp has to achieve this mean, not the rate at its end."""
        leg = self.leg
        if leg.to_per_s is None or leg.from_per_s is None:
            return None
        length_ns = round(self.duration_s * NS_PER_S)
        if leg.end_ns is not None:
            length_ns = min(length_ns or leg.end_ns - leg.begin_ns, leg.end_ns - leg.begin_ns)
        return float(leg.due(leg.begin_ns + length_ns)) * NS_PER_S / length_ns if length_ns else leg.from_per_s


def stage_results(run: Aggregate, ledger: Ledger) -> tuple[StageResult, ...]:
    """Return the results of all legs, in order."""
    workload = run.opened.plan.workload if run.opened else Workload()
    batches_in_flight = max(workload.pipeline, workload.transaction, 1) * (
        run.opened.threads_total if run.opened else 1
    )
    lengths_ns = run.timeline.lengths_ns(round(run.duration_s * NS_PER_S))
    last = max((number for number, length_ns in enumerate(lengths_ns) if length_ns), default=0)
    never_ended = ledger.issued - sum(tally.operations for tally in run.stages)
    results = []
    for number, (leg, tally, length_ns) in enumerate(zip(run.timeline.legs, run.stages, lengths_ns, strict=True)):
        issued = tally.operations + (never_ended if number == last else 0)
        results.append(
            StageResult(
                leg=leg,
                tally=tally,
                duration_s=length_ns / NS_PER_S,
                issued=issued,
                in_time=issued - max(0, tally.late - batches_in_flight),
                wanted=float(leg.due(leg.begin_ns + length_ns)),
            )
        )
    return tuple(results)

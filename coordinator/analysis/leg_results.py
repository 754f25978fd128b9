"""What became of each leg of a load: how long it lasted, what was wanted of it, and what was done. Pure.

A stage's operations are those that were due in it (open) or begun in it (closed), also if they were sent or ended
later. Those issued in a stage are the ones that came to an end. What workers began beside that never ended, or was
never reported; nobody knows of which stage it was, and the last one that was reached bears it. So the sum over all
stages is what the ledger says was issued.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.plan.schema import Workload
from common.plan.timeline import Leg
from common.units import NS_PER_S
from coordinator.analysis.aggregate import Aggregate
from coordinator.analysis.ledger import Ledger
from coordinator.analysis.tallies import StageTally


@dataclass(frozen=True, slots=True)
class StageResult:
    """One leg. duration_s: as long as it lasted, which is not what was planned where the run was cut short.
    issued: operations begun. in_time: those of them that were begun before its end, or that a thread had in hand then:
    a batch waits for its last operation, and so may cross the border. wanted: operations that were due in it until
    then, 0.0 in a closed loop; in the mean, with Poisson arrivals.
    """

    leg: Leg
    tally: StageTally
    duration_s: float
    issued: int
    in_time: int
    wanted: float

    @property
    def achieved_per_s(self) -> float:
        """The rate at which operations were begun within it."""
        return self.in_time / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def wanted_per_s(self) -> float | None:
        """Mean rate that the plan wants, over the part of the stage that was reached, or over all of the stage if none
        was; None in a closed loop. A ramp that is followed exactly achieves this rate, not the rate at its end."""
        leg = self.leg
        if leg.to_per_s is None or leg.from_per_s is None:
            return None
        length_ns = round(self.duration_s * NS_PER_S)
        if leg.end_ns is not None:
            length_ns = min(length_ns or leg.end_ns - leg.begin_ns, leg.end_ns - leg.begin_ns)
        return float(leg.due(leg.begin_ns + length_ns)) * NS_PER_S / length_ns if length_ns else leg.from_per_s


def stage_results(run: Aggregate, ledger: Ledger) -> tuple[StageResult, ...]:
    """All legs, in their order."""
    workload = run.opened.plan.workload if run.opened else Workload()
    in_hand = max(workload.pipeline, workload.transaction, 1) * (run.opened.threads_total if run.opened else 1)
    lengths_ns = run.line.lengths_ns(round(run.duration_s * NS_PER_S))
    last = max((number for number, length_ns in enumerate(lengths_ns) if length_ns), default=0)
    never_ended = ledger.issued - sum(tally.operations for tally in run.stages)
    results = []
    for number, (leg, tally, length_ns) in enumerate(zip(run.line.legs, run.stages, lengths_ns, strict=True)):
        issued = tally.operations + (never_ended if number == last else 0)
        results.append(
            StageResult(
                leg=leg,
                tally=tally,
                duration_s=length_ns / NS_PER_S,
                issued=issued,
                in_time=issued - max(0, tally.late - in_hand),
                wanted=float(leg.due(leg.begin_ns + length_ns)),
            )
        )
    return tuple(results)

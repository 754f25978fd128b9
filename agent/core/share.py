"""An agent's share of a run while it lasts: which worker process has which pools, and how far each has come. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from common.metrics.intervals import IntervalMetrics, Merge, joined_seconds, merge_intervals
from common.plan.open_files import pools_by_process, shortage_note
from common.plan.planned_commands import preload_commands
from common.plan.timeline import timeline
from common.program.line_limits import LineLimit
from common.protocol.messages import (
    Assignment,
    Final,
    Preloaded,
    PreparationStep,
    Prepared,
    Preparing,
    WorkerFinal,
    WorkerLost,
    WorkerMetrics,
)
from common.units import NS_PER_S, counted

SAY_EVERY_NS = 5 * NS_PER_S


class PreparationReports:
    """How often progress is reported: each step to the coordinator, a line now and then to the person."""

    def __init__(self, now_ns: int) -> None:
        self._reports = LineLimit("the preparation", now_ns)
        self._say_due_ns = now_ns

    def take(self, progress: Preparing, now_ns: int) -> tuple[bool, str]:
        """(whether to notify the coordinator, the line for the user or "")."""
        is_done = progress.done == progress.total
        if progress.done < progress.total and not self._reports.take(now_ns):
            return False, ""  # the next one is not far: each of many worker processes has ten a second
        if (
            progress.step is not PreparationStep.PRELOAD
            or not progress.total
            or not (now_ns >= self._say_due_ns or is_done)
        ):
            return True, ""
        self._say_due_ns = now_ns + SAY_EVERY_NS
        return True, f"{progress.step.value} {progress.done:,} of {progress.total:,}"


@dataclass(slots=True)
class _Process:
    """What is known of one worker process."""

    steps: dict[PreparationStep, Preparing] = field(default_factory=dict)
    connections_open: int = 0
    preloaded: Preloaded | None = None
    prepared: bool = False
    through: int = -1
    final: WorkerFinal | None = None
    lost: bool = False
    reason: str = ""
    reported_operations: int = 0

    @property
    def over(self) -> bool:
        return self.final is not None or self.lost


@dataclass(frozen=True, slots=True)
class Report:
    """What all processes together have to report, up to a second that is complete."""

    through: int
    intervals: tuple[IntervalMetrics, ...]


@dataclass(slots=True)
class Share:
    """Empty until `of` fills it. Process numbers are positions in `assignments`. lease_ns: how long it is carried on
    without word from its coordinator."""

    assignments: tuple[Assignment, ...] = ()
    lease_ns: int = 0
    _preload_commands: int = 0
    _processes: list[_Process] = field(default_factory=list)
    _unsent: list[IntervalMetrics] = field(default_factory=list)
    _through: int = -1
    _period: int | None = None

    @classmethod
    def of(cls, assignment: Assignment, processes: int) -> Share:
        """Deal the pools over so many processes in turn; fewer processes when there are fewer pools."""
        dealt = pools_by_process(assignment.pools, processes)
        assignments = tuple(msgspec.structs.replace(assignment, pools=hand) for hand in dealt)
        plan, total = assignment.plan, assignment.threads_total
        threads = assignment.threads if assignment.preloads else []
        commands = sum(preload_commands(plan, thread, total) for thread in threads)
        return cls(assignments, plan.fleet.lease_s.ns, commands, [_Process() for _ in assignments])

    def __contains__(self, process: int) -> bool:
        return process < len(self._processes)

    def described(self, files_limit: int | None = None) -> Iterator[str]:
        """Lines for the user. files_limit: how many files a worker process may open, None for no limit."""
        pools = sum(len(part.pools) for part in self.assignments)
        yield f"preparing {counted(pools, 'client pool')} in {counted(len(self.assignments), 'worker process')}"
        for part in self.assignments[:1]:
            if found := shortage_note(part.plan, part.pools, files_limit):
                yield f"note: {found}"

    @property
    def drain_ns(self) -> int:
        """How long operations in flight may take to come to an end."""
        return self.assignments[0].plan.fleet.drain_s.ns if self.assignments else 0

    def overdue_ns(self, t0_ns: int, now_ns: int, overtime_ns: int) -> int | None:
        """When processes that are started now, or at `t0_ns` if that lies ahead, and still run must be taken for stuck;
        None where the plan sets no end in time."""
        end_ns = timeline(self.assignments[0].plan.load).end_ns if self.assignments else None
        if end_ns is None:
            return None
        return max(t0_ns + end_ns, now_ns) + self.drain_ns + overtime_ns

    @property
    def alive(self) -> int:
        """Processes that have not ended."""
        return sum(not process.over for process in self._processes)

    @property
    def connections_open(self) -> int:
        """TCP connections that were open when the processes were ready."""
        return sum(process.connections_open for process in self._processes)

    @property
    def all_prepared(self) -> bool:
        """Every process is ready to start."""
        return all(process.prepared for process in self._processes)

    @property
    def all_over(self) -> bool:
        """No process has anything more to do or to say."""
        return all(process.over for process in self._processes)

    def preparing(self, process: int, message: Preparing) -> None:
        """A process has come so far."""
        self._processes[process].steps[message.step] = message

    def progress(self) -> Preparing:
        """Progress of all processes together: of the preload until all of it is done, then of what comes after it."""
        preload, connections = (
            self._told(PreparationStep.PRELOAD, self._preload_commands),
            self._told(PreparationStep.CONNECTIONS),
        )
        return preload if preload.done < preload.total or not connections.total else connections

    def _told(self, step: PreparationStep, total: int | None = None) -> Preparing:
        told = [process.steps[step] for process in self._processes if step in process.steps]
        total = sum(part.total for part in told) if total is None else total
        return Preparing(step=step, done=sum(part.done for part in told), total=total)

    @property
    def has_preloaded(self) -> bool:
        """Whether any process has begun to."""
        return any(PreparationStep.PRELOAD in process.steps for process in self._processes)

    @property
    def preloaded(self) -> Preloaded | None:
        """What all processes together have preloaded; None where nothing was to be."""
        return Preloaded.merge(process.preloaded for process in self._processes)

    def as_prepared(self) -> Prepared:
        """The message that all processes together are ready."""
        return Prepared(processes=self.alive, connections_open=self.connections_open, preloaded=self.preloaded)

    def prepared(self, process: int, message: Prepared) -> None:
        """A process is ready."""
        self._processes[process].prepared = True
        self._processes[process].connections_open = message.connections_open
        self._processes[process].preloaded = message.preloaded

    def failed(self, process: int, reason: str) -> None:
        """A process says why it is about to end."""
        self._processes[process].reason = reason

    def reported(self, process: int, message: WorkerMetrics) -> None:
        """A process reports what was added."""
        state = self._processes[process]
        state.through = max(state.through, message.through)
        state.reported_operations += sum(part.operations for part in message.intervals)
        self._unsent.extend(message.intervals)

    def finished(self, process: int, message: WorkerFinal) -> None:
        """A process has reported everything."""
        self._processes[process].final = message

    def exited(self, process: int, exit_code: int | None) -> WorkerLost | None:
        """A process ended; None when it had finished before, or is known to be lost."""
        if process not in self or self._processes[process].over:
            return None
        return self._lose(process, exit_code)

    def give_up(self) -> list[WorkerLost]:
        """Processes that are not over are lost."""
        return [self._lose(number, None) for number, process in enumerate(self._processes) if not process.over]

    def _lose(self, process: int, exit_code: int | None) -> WorkerLost:
        state = self._processes[process]
        state.lost = True
        how = "was killed as it did not end" if exit_code is None else f"ended with exit code {exit_code}"
        reason = f"worker process {process} {how}" + (f": {state.reason}" if state.reason else "")
        return WorkerLost(process=process, exit_code=exit_code, reason=reason)

    def take_report(self, period: int | None = None) -> Report | None:
        """What may be sent now: seconds that every process has completed, and all late additions to them. period: the
        number of the present reporting period: there is a report when the next period begins, and when all is over;
        None: as soon as a second is complete."""
        if period is not None and not self.all_over and (self._period is None or period == self._period):
            self._period = period
            return None
        running = [process.through for process in self._processes if not process.over]
        known = [process.through for process in self._processes] + [part.last for part in self._unsent]
        through = min(running) if running else max(known, default=-1)
        through = max(through, self._through)  # a process that ended early must not hold the others back
        ready = [part for part in self._unsent if part.last <= through]
        if not ready and through == self._through:
            return None
        self._unsent = [part for part in self._unsent if part.last > through]
        self._through, self._period = through, period
        seconds = _merge_same_seconds(ready)
        return Report(through, tuple(seconds) if period is None else joined_seconds(seconds))

    def final(self, next_seq: int, reason: str) -> Final:
        """What all processes together did; those lost count with what they had reported."""
        finals = [process.final for process in self._processes if process.final is not None]
        lost = [process for process in self._processes if process.lost]
        reported_by_lost = sum(process.reported_operations for process in lost)
        return Final(
            next_seq=next_seq,
            issued=sum(final.issued for final in finals) + reported_by_lost,
            counted=sum(process.reported_operations for process in self._processes),
            transactions=sum(final.transactions for final in finals),
            start_skew_ns=max((final.start_skew_ns for final in finals), key=abs, default=0),
            ran_ns=max((final.ran_ns for final in finals), default=0),
            drained=all(final.drained for final in finals),
            processes_lost=len(lost),
            reason=reason,
        )


def _merge_same_seconds(parts: Iterable[IntervalMetrics]) -> list[IntervalMetrics]:
    seconds: dict[tuple[int, int, int], list[IntervalMetrics]] = {}
    for part in parts:
        seconds.setdefault((part.first, part.last, part.stage), []).append(part)
    return [merge_intervals(group, Merge.PARALLEL) for _, group in sorted(seconds.items())]

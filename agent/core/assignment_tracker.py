"""Tracks an agent's assignment: the pools of each worker process, and what each process has reported. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.metrics.intervals import IntervalMetrics, Merge, merge_intervals
from common.metrics.splitting import joined_seconds
from common.plan.open_files import shortage_note
from common.plan.planned_commands import preload_commands
from common.program.line_limits import LineLimit
from common.protocol.assignments import processes_of
from common.protocol.messages import (
    Assignment,
    Final,
    Preloaded,
    PreparationStep,
    Prepared,
    Preparing,
    ScenarioFinal,
    WorkerFinal,
    WorkerLost,
    WorkerMetrics,
)
from common.units import NS_PER_S, counted

SAY_EVERY_NS = 5 * NS_PER_S


class PreparationReports:
    """Limits progress reports: some a second for the coordinator, and a line every few seconds for the user."""

    def __init__(self, now_ns: int) -> None:
        self._reports = LineLimit("the preparation", now_ns)
        self._say_due_ns = now_ns

    def take(self, progress: Preparing, now_ns: int) -> tuple[bool, str]:
        """(whether to notify the coordinator, the line for the user or "")."""
        is_done = progress.done == progress.total
        if progress.done < progress.total and not self._reports.take(now_ns):
            return False, ""  # the next report comes soon: each worker process sends ten a second
        is_preload = progress.step is PreparationStep.PRELOAD and progress.total > 0
        if not is_preload or not (now_ns >= self._say_due_ns or is_done):
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
    """Metrics of all processes up to a complete second."""

    through: int
    intervals: tuple[IntervalMetrics, ...]


@dataclass(slots=True)
class AssignmentTracker:
    """An assignment while it lasts; empty until `of` fills it. assignments: one for each worker process, by its number.
    lease_ns: how long the load continues without the coordinator."""

    assignments: tuple[Assignment, ...] = ()
    lease_ns: int = 0
    _preload_commands: int = 0
    _processes: list[_Process] = field(default_factory=list)
    _unsent: list[IntervalMetrics] = field(default_factory=list)
    _through: int = -1
    _period: int | None = None

    @classmethod
    def of(cls, given: Sequence[Assignment], processes: int) -> AssignmentTracker:
        """Deal the pools over so many processes in turn; fewer processes when there are fewer pools."""
        assignments = processes_of(given, processes)
        commands = sum(
            preload_commands(each.plan, thread, each.threads_total)
            for each in given
            for thread in (each.threads if each.preloads else [])
        )
        return cls(assignments, given[0].plan.fleet.lease_s.ns, commands, [_Process() for _ in assignments])

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
        """How long operations in flight may take."""
        return self.assignments[0].plan.fleet.drain_s.ns if self.assignments else 0

    def overdue_ns(self, t0_ns: int, now_ns: int, overtime_ns: int) -> int | None:
        """When processes that are started now, or at `t0_ns` if that lies ahead, and still run must be taken for stuck;
        None where the plan sets no end in time."""
        ends_ns = [assignment.timeline.end_ns for assignment in self.assignments]
        known_ns = [end_ns for end_ns in ends_ns if end_ns is not None]
        if not known_ns or len(known_ns) < len(ends_ns):
            return None
        return max(t0_ns + max(known_ns), now_ns) + self.drain_ns + overtime_ns

    @property
    def alive(self) -> int:
        """How many processes have not ended."""
        return sum(not process.over for process in self._processes)

    @property
    def connections_open(self) -> int:
        """How many TCP connections were open when the processes were ready."""
        return sum(process.connections_open for process in self._processes)

    @property
    def all_prepared(self) -> bool:
        """Whether every process is ready to start."""
        return all(process.prepared for process in self._processes)

    @property
    def all_over(self) -> bool:
        """Whether every process has reported everything, or is lost."""
        return all(process.over for process in self._processes)

    def preparing(self, process: int, message: Preparing) -> None:
        """A process reports its progress."""
        self._processes[process].steps[message.step] = message

    def progress(self) -> Preparing:
        """Progress of all processes: of the preload until it is complete, then of opening connections."""
        preload = self._progress_of(PreparationStep.PRELOAD, self._preload_commands)
        connections = self._progress_of(PreparationStep.CONNECTIONS)
        return preload if preload.done < preload.total or not connections.total else connections

    def _progress_of(self, step: PreparationStep, total: int | None = None) -> Preparing:
        reports = [process.steps[step] for process in self._processes if step in process.steps]
        total = sum(report.total for report in reports) if total is None else total
        return Preparing(step=step, done=sum(report.done for report in reports), total=total)

    @property
    def has_preloaded(self) -> bool:
        """Whether any process has begun to preload."""
        return any(PreparationStep.PRELOAD in process.steps for process in self._processes)

    @property
    def preloaded(self) -> Preloaded | None:
        """The keys that all processes have preloaded; None without a preload."""
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
        """A process reports why it is about to end."""
        self._processes[process].reason = reason

    def reported(self, process: int, message: WorkerMetrics) -> None:
        """A process reports new metrics."""
        state = self._processes[process]
        state.through = max(state.through, message.through)
        state.reported_operations += sum(part.operations for part in message.intervals)
        self._unsent.extend(message.intervals)

    def finished(self, process: int, message: WorkerFinal) -> None:
        """A process has reported everything."""
        self._processes[process].final = message

    def exited(self, process: int, exit_code: int | None) -> WorkerLost | None:
        """A process ended. Returns None if it had finished, or was lost before."""
        if process not in self or self._processes[process].over:
            return None
        return self._lose(process, exit_code)

    def give_up(self) -> list[WorkerLost]:
        """Count processes that have not finished as lost."""
        return [self._lose(number, None) for number, process in enumerate(self._processes) if not process.over]

    def _lose(self, process: int, exit_code: int | None) -> WorkerLost:
        state = self._processes[process]
        state.lost = True
        how = "was killed as it did not end" if exit_code is None else f"ended with exit code {exit_code}"
        assignment = self.assignments[process]
        of = f" of scenario {assignment.scenario}" if assignment.scenarios > 1 else ""
        reason = f"worker process {process}{of} {how}" + (f": {state.reason}" if state.reason else "")
        return WorkerLost(process=process, exit_code=exit_code, reason=reason)

    def take_report(self, period: int | None = None) -> Report | None:
        """Take the metrics to send now: seconds that every process has completed, and late additions to them.

        period: number of the current reporting period. A report is due when the next period begins, and when all
        processes are over. None: a report is due when a second is complete.
        """
        if period is not None and not self.all_over and (self._period is None or period == self._period):
            self._period = period
            return None
        running = [process.through for process in self._processes if not process.over]
        known = [process.through for process in self._processes] + [part.last for part in self._unsent]
        through = min(running) if running else max(known, default=-1)
        through = max(through, self._through)  # a process that ended early must not delay the others
        ready = [part for part in self._unsent if part.last <= through]
        if not ready and through == self._through:
            return None
        self._unsent = [part for part in self._unsent if part.last > through]
        self._through, self._period = through, period
        seconds = _merge_same_seconds(ready)
        return Report(through, tuple(seconds) if period is None else joined_seconds(seconds))

    def final(self, next_seq: int, reason: str) -> Final:
        """The totals of all processes; lost ones count with what they had reported."""
        by_scenario: dict[int, list[_Process]] = {}
        for assignment, process in zip(self.assignments, self._processes, strict=True):
            if assignment.scenarios > 1:
                by_scenario.setdefault(assignment.pools[0].scenario, []).append(process)
        return Final(
            next_seq=next_seq,
            reason=reason,
            scenarios=tuple(
                ScenarioFinal(scenario=scenario, **_totals(processes))
                for scenario, processes in sorted(by_scenario.items())
            ),
            **_totals(self._processes),
        )


def _totals(processes: Sequence[_Process]) -> dict[str, Any]:
    """The fields that `Final` and `ScenarioFinal` have in common."""
    finals = [process.final for process in processes if process.final is not None]
    lost = [process for process in processes if process.lost]
    return {
        "issued": sum(final.issued for final in finals) + sum(process.reported_operations for process in lost),
        "counted": sum(process.reported_operations for process in processes),
        "transactions": sum(final.transactions for final in finals),
        "start_skew_ns": max((final.start_skew_ns for final in finals), key=abs, default=0),
        "ran_ns": max((final.ran_ns for final in finals), default=0),
        "drained": all(final.drained for final in finals),
        "processes_lost": len(lost),
    }


def _merge_same_seconds(parts: Iterable[IntervalMetrics]) -> list[IntervalMetrics]:
    seconds: dict[tuple[int, int, int], list[IntervalMetrics]] = {}
    for part in parts:
        seconds.setdefault((part.first, part.last, part.stage), []).append(part)
    return [merge_intervals(group, Merge.PARALLEL) for _, group in sorted(seconds.items())]

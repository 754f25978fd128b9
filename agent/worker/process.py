"""A worker process: takes orders from the agent through a pipe, and reports through the same pipe.

    agent -> worker: WorkerPrepare, then WorkerStart, then perhaps WorkerStop; WorkerRenew all the time
    worker -> agent: Preparing..., then Prepared or Failed; WorkerMetrics each second; WorkerFinal, then it exits

A WorkerStop is always answered with WorkerFinal. When the pipe closes, the agent is dead: the process exits at once.
When the agent no longer renews the lease (`agent.worker.pipe`), the load drains as after a WorkerStop, and the process
keeps its results until the agent reads them or dies.

The main thread only collects and reports; worker threads issue the load.
"""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from agent.worker.metrics.collector import Collector
from agent.worker.pacing.pacer import Span
from agent.worker.pipe import AgentGone, Pipe
from agent.worker.run import WorkerRun, describe
from agent.worker.workload.preload import preload, preload_tasks
from common.clock import monotonic_ns
from common.errors import FleetError, StampedeError, TargetError
from common.machine import raise_open_files_limit
from common.protocol.messages import (
    Assignment,
    Failed,
    FailureKind,
    PreparationStep,
    Prepared,
    Preparing,
    WorkerFinal,
    WorkerMetrics,
    WorkerPrepare,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S

_SLACK_NS = 50_000_000
"""A second is collected this long after its end, when nearly all rows of the second are recorded."""

_NAP_S = 0.05
_SWITCH_S = 0.0002
"""How long a computing thread keeps the interpreter lock while others wait. Worker threads release the lock at each
socket call. With the default, they would then wait for the main thread for up to 5 ms."""
_PAUSE_FACTOR = 9
"""The pause after reading the counters, as a multiple of the time that the reading took."""
_KEPT_BYTES = 4 << 20
_CUT_GRACE_NS = 1 * NS_PER_S


class _Stopped(Exception):
    """The agent has stopped the run."""


class _Fenced(Exception):
    """The lease ended before the load began."""


class _Crashed(Exception):
    """An unexpected error ended a worker. The text is one line about the error."""


def run_worker(connection: Any) -> None:
    """The main function of a worker process. connection: a multiprocess Connection to the agent.

    Raises SystemExit(1) if the agent is gone, and after an unexpected error.
    """
    # A Ctrl-C in the terminal signals the whole process group, but the agent drains its worker processes first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = Pipe(connection)
    _keep_freed_memory()
    sys.setswitchinterval(_SWITCH_S)
    try:
        _serve(pipe)
    except AgentGone:
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last resort: one line instead of a traceback
        reason = str(error) if isinstance(error, _Crashed) else describe(error)
        with suppress(AgentGone):
            pipe.send(Failed(kind=FailureKind.AGENT, reason=reason))
        sys.exit(1)
    finally:
        pipe.close()


def _serve(pipe: Pipe) -> None:
    order = pipe.receive(None)
    if not isinstance(order, WorkerPrepare):
        pipe.send(_NOTHING_DONE)
        return
    raise_open_files_limit()
    try:
        run = WorkerRun(order.assignment, order.run_id)
        try:
            _prepare(pipe, run, order.assignment)
            _run_load(pipe, run, order.assignment)
        finally:
            run.close()
    except StampedeError as error:
        kind = FailureKind.TARGET if isinstance(error, TargetError) else FailureKind.AGENT
        of = f"scenario {order.assignment.scenario}: " if order.assignment.scenarios > 1 else ""
        pipe.send(Failed(kind=kind, reason=f"{of}{error}"))
    except _Stopped:
        pipe.send(_NOTHING_DONE)
    except _Fenced:
        pipe.send(msgspec.structs.replace(_NOTHING_DONE, fenced=True))


_NOTHING_DONE = WorkerFinal(issued=0, counted=0, transactions=0, start_skew_ns=0, drained=True)


def _keep_freed_memory() -> None:
    # glibc returns blocks of 128 KiB and more to the system when they are freed, and the page faults of the next arrays
    # cost more than the work on them. After this, glibc keeps freed blocks up to this size.
    bytes(_KEPT_BYTES)


def _prepare(pipe: Pipe, run: WorkerRun, assignment: Assignment) -> None:
    sent: Preparing | None = None

    def on_progress(step: PreparationStep, done: int, total: int) -> None:
        nonlocal sent
        progress = Preparing(step=step, done=done, total=total)
        if progress != sent:
            pipe.send(progress)
            sent = progress
        if isinstance(pipe.receive(0), WorkerStop):
            raise _Stopped
        if pipe.lease_is_over:
            # Preloading is load too.
            raise FleetError("it stopped preparing, because its agent did not renew its lease")

    # Before connections are opened, because they would be idle meanwhile.
    preloaded = preload(
        preload_tasks(assignment), assignment.plan.target, partial(on_progress, PreparationStep.PRELOAD)
    )
    connections_open = run.open(partial(on_progress, PreparationStep.CONNECTIONS))
    # All present objects live until the end. Freezing them keeps full collections, which pause all threads, short.
    gc.collect()
    gc.freeze()
    pipe.send(Prepared(processes=1, connections_open=connections_open, preloaded=preloaded))


def _run_load(pipe: Pipe, run: WorkerRun, assignment: Assignment) -> None:
    order = pipe.receive(None)
    if not isinstance(order, WorkerStart):
        raise _Stopped
    if pipe.receive(0) is not None:  # renewals may be queued behind the start, and so may a stop
        raise _Stopped
    if pipe.lease_is_over:
        raise _Fenced
    span, collector = run.start(order.t0_ns, order.takeover)
    try:
        taken_over_ns = order.takeover.from_ns if order.takeover else 0
        first_second = taken_over_ns // NS_PER_S
        drained, fenced = _supervise_load(pipe, run, span, collector, assignment, first_second)
        if run.crash:
            raise _Crashed(run.crash)
    except BaseException:
        span.end_at(monotonic_ns())
        run.cut()
        raise
    _finish(pipe, run, span, collector, drained=drained, fenced=fenced)


def _supervise_load(
    pipe: Pipe, run: WorkerRun, span: Span, collector: Collector, assignment: Assignment, second: int
) -> tuple[bool, bool]:
    """Report each second until all workers have ended and subscribers have read their last messages. Returns (whether
    all workers ended in time, whether the load ended because the lease did).

    second: the first to report. Seconds before the start of a late scenario are reported empty, so that the agent does
    not wait for them.
    """
    drain_ns = assignment.plan.fleet.drain_s.ns
    # A connect cannot be interrupted; it has its own timeout.
    grace_ns = assignment.plan.target.connect_timeout_s.ns + _CUT_GRACE_NS
    look_ns = 0
    fenced = False
    while (run.is_alive or run.is_listening) and not run.crash:
        due_ns = span.t0_ns + (second + 1) * NS_PER_S + _SLACK_NS
        now_ns = monotonic_ns()
        if now_ns >= look_ns:
            collector.look()
            # With many busy threads, this thread waits long for the interpreter lock. Leave it time for other work.
            look_ns = monotonic_ns() + _PAUSE_FACTOR * (monotonic_ns() - now_ns)
        is_clear = pipe.is_clear  # while the agent does not read, at most one report is queued
        if now_ns >= due_ns and is_clear:
            through = (now_ns - span.t0_ns - _SLACK_NS) // NS_PER_S - 1
            pipe.send(WorkerMetrics(through=through, intervals=collector.collect(through)))
            collector.reported()  # the time for collecting is not a stall: it does not delay the load
            second = through + 1
        if not run.is_alive:
            run.finish_listening(now_ns)
        if now_ns >= span.end_ns + drain_ns:
            run.cut()
        if now_ns >= span.end_ns + drain_ns + grace_ns:
            return False, fenced
        nap_s = min(_NAP_S, max(0, due_ns - now_ns) / NS_PER_S) if is_clear else _NAP_S
        order = pipe.receive(nap_s)
        collector.woke(round(nap_s * NS_PER_S))
        if isinstance(order, WorkerStop):
            span.end_at(monotonic_ns())
            if not order.drain:
                drain_ns = 0
        elif pipe.lease_is_over and (now_ns := monotonic_ns()) < span.end_ns:
            span.end_at(now_ns)
            fenced = True
    return True, fenced


def _finish(pipe: Pipe, run: WorkerRun, span: Span, collector: Collector, *, drained: bool, fenced: bool) -> None:
    ended_ns = max(span.t0_ns, min(span.end_ns, run.ended_ns))
    at_least = (ended_ns - span.t0_ns - 1) // NS_PER_S
    through, intervals = collector.collect_rest(at_least, ended_ns)
    # Before WorkerFinal: after that message, no connection of ours may be open on the server.
    run.close()
    pipe.send(WorkerMetrics(through=through, intervals=intervals))
    pipe.send(
        WorkerFinal(
            issued=collector.issued,
            counted=collector.counted,
            transactions=collector.transactions,
            start_skew_ns=collector.start_skew_ns,
            ran_ns=ended_ns - span.t0_ns,
            drained=drained,
            fenced=fenced,
        )
    )

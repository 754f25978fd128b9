"""A worker process: does what the agent says through a pipe, and reports through the same.

    agent -> worker: WorkerPrepare, then WorkerStart, then perhaps WorkerStop
    worker -> agent: Preparing..., then Prepared or Failed; WorkerMetrics each second; WorkerFinal, and it exits

A WorkerStop is answered with WorkerFinal at any time. When the pipe ends, the agent is dead: the process ends at once.
The main thread only collects and reports; the load is the worker threads' work.
"""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from agent.worker.collector import Collector
from agent.worker.filling import parts_of, preload
from agent.worker.pacer import Span
from agent.worker.run import WorkerRun, describe
from common.clock import monotonic_ns
from common.codec import decode_worker_order, pack
from common.errors import StampedeError, TargetError
from common.machine import raise_open_files_limit
from common.messages import (
    Assignment,
    Failed,
    FailureKind,
    Prepared,
    Preparing,
    Step,
    WorkerFinal,
    WorkerMessage,
    WorkerMetrics,
    WorkerOrder,
    WorkerPrepare,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S

_SLACK_NS = 50_000_000
"""A second is collected so long after its end, when nearly all that completed in it has been recorded."""

_NAP_S = 0.05
_SWITCH_S = 0.0002
"""How long a thread that computes keeps others waiting that could go on. What the main thread adds up is not to hold up
the load, which gives the interpreter's lock away at each call of a socket and would have to wait 5 ms for it."""
_REST = 9
"""After a look no other one for so many times as long as it took."""
_KEPT_BYTES = 4 << 20
_CUT_GRACE_NS = 1 * NS_PER_S


class _AgentGone(Exception):
    """The other end of the pipe is closed."""


class _Stopped(Exception):
    """The agent wants no run any more."""


class _Crashed(Exception):
    """A worker thread ended in a way that it never should; the text says how, in one line."""


class _Pipe:
    """The pipe to the agent, in messages."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def send(self, message: WorkerMessage) -> None:
        """Raises _AgentGone."""
        try:
            self._connection.send_bytes(pack(message))
        except OSError as error:
            raise _AgentGone from error

    def receive(self, timeout_s: float | None) -> WorkerOrder | None:
        """The next order; None when there is none in time. Raises _AgentGone."""
        try:
            if not self._connection.poll(timeout_s):
                return None
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _AgentGone from error
        return decode_worker_order(data)


def run_worker(connection: Any) -> None:
    """Entry of a worker process. connection: a multiprocess Connection to the agent.

    Raises SystemExit(1) when the agent is gone or something went wrong that never should.
    """
    # The agent drains its workers; a Ctrl-C of the terminal reaches the whole group, and must not forestall it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = _Pipe(connection)
    _keep_freed_memory()
    sys.setswitchinterval(_SWITCH_S)
    try:
        _serve(pipe)
    except _AgentGone:
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last stop of the process: said in one line, not as a traceback
        reason = str(error) if isinstance(error, _Crashed) else describe(error)
        with suppress(_AgentGone):
            pipe.send(Failed(kind=FailureKind.AGENT, reason=reason))
        sys.exit(1)


def _serve(pipe: _Pipe) -> None:
    order = pipe.receive(None)
    if not isinstance(order, WorkerPrepare):
        pipe.send(_NOTHING_DONE)
        return
    raise_open_files_limit()
    try:
        run = WorkerRun(order.assignment, order.run_id)
        try:
            _prepare(pipe, run, order.assignment)
            _carry_out(pipe, run, order.assignment)
        finally:
            run.close()
    except TargetError as error:
        pipe.send(Failed(kind=FailureKind.TARGET, reason=str(error)))
    except StampedeError as error:
        pipe.send(Failed(kind=FailureKind.AGENT, reason=str(error)))
    except _Stopped:
        pipe.send(_NOTHING_DONE)


_NOTHING_DONE = WorkerFinal(issued=0, counted=0, transactions=0, start_skew_ns=0, drained=True)


def _keep_freed_memory() -> None:
    # glibc gives arrays of 128 KiB and more back to the system as soon as they are freed, and the page faults of the
    # next ones cost more than what is done with them. It keeps those up to the size of the largest that was ever freed.
    bytes(_KEPT_BYTES)


def _prepare(pipe: _Pipe, run: WorkerRun, assignment: Assignment) -> None:
    told: Preparing | None = None

    def on_progress(step: Step, done: int, total: int) -> None:
        nonlocal told
        progress = Preparing(step=step, done=done, total=total)
        if progress != told:
            pipe.send(progress)
            told = progress
        if isinstance(pipe.receive(0), WorkerStop):
            raise _Stopped

    # Before connections are opened that would lie idle meanwhile.
    preloaded = preload(parts_of(assignment), assignment.plan.target, partial(on_progress, Step.PRELOAD))
    connections_open = run.open(partial(on_progress, Step.CONNECTIONS))
    # What is alive now stays so to the end: without it a full collection, a pause for every thread, has little to do.
    gc.collect()
    gc.freeze()
    pipe.send(Prepared(processes=1, connections_open=connections_open, preloaded=preloaded))


def _carry_out(pipe: _Pipe, run: WorkerRun, assignment: Assignment) -> None:
    order = pipe.receive(None)
    if not isinstance(order, WorkerStart):
        raise _Stopped
    span, collector = run.start(order.t0_ns)
    try:
        drained = _watch(pipe, run, span, collector, assignment)
        if run.crash:
            raise _Crashed(run.crash)
    except BaseException:
        span.end_at(monotonic_ns())
        run.cut()
        raise
    _finish(pipe, run, span, collector, drained)


def _watch(pipe: _Pipe, run: WorkerRun, span: Span, collector: Collector, assignment: Assignment) -> bool:
    """Report each second until all threads have ended, and all that was under way to subscribers has come. Returns
    whether they did so in time."""
    drain_ns = assignment.plan.fleet.drain_s.ns
    # Only a connect under way cannot be cut short: it has a timeout of its own.
    grace_ns = assignment.plan.target.connect_timeout_s.ns + _CUT_GRACE_NS
    second = 0
    look_ns = 0
    while (run.is_alive or run.is_listening) and not run.crash:
        due_ns = span.t0_ns + (second + 1) * NS_PER_S + _SLACK_NS
        now_ns = monotonic_ns()
        if now_ns >= look_ns:
            collector.look()
            # Among many busy threads this one waits long for the interpreter's lock, which is not to take all its time.
            look_ns = monotonic_ns() + _REST * (monotonic_ns() - now_ns)
        if now_ns >= due_ns:
            through = (now_ns - span.t0_ns - _SLACK_NS) // NS_PER_S - 1
            pipe.send(WorkerMetrics(through=through, intervals=collector.collect(through)))
            collector.talked()  # waiting for the agent to read is not a stall: it does not hold up the load
            second = through + 1
        if not run.is_alive:
            run.finish_listening(now_ns)
        if now_ns >= span.end_ns + drain_ns:
            run.cut()
        if now_ns >= span.end_ns + drain_ns + grace_ns:
            return False
        nap_s = min(_NAP_S, max(0, due_ns - now_ns) / NS_PER_S)
        order = pipe.receive(nap_s)
        collector.woke(round(nap_s * NS_PER_S))
        if isinstance(order, WorkerStop):
            span.end_at(monotonic_ns())
            if not order.drain:
                drain_ns = 0
    return True


def _finish(pipe: _Pipe, run: WorkerRun, span: Span, collector: Collector, drained: bool) -> None:
    ended_ns = max(span.t0_ns, min(span.end_ns, run.ended_ns))
    at_least = (ended_ns - span.t0_ns - 1) // NS_PER_S
    through, intervals = collector.collect_rest(at_least, ended_ns)
    # Before the last word: whoever hears it may count the server's connections, and should find none of ours.
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
        )
    )

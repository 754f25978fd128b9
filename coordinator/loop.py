"""The coordinator's loop: turns messages, signals and ticks into events of the run, and performs the run's actions.

Queries to the target (reading counters, watching servers, deleting keys) run in their own threads, so that a server
that hangs delays neither heartbeats nor Ctrl-C.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress

import msgspec

from common.clock import monotonic_ns, utc_of
from common.errors import ProtocolError, StampedeError
from common.program.line_limits import LineLimit
from common.program.signals import Signals
from common.protocol import codec
from common.protocol.listener import Listener
from common.protocol.messages import (
    AgentState,
    Attach,
    Bye,
    CoordinatorMessage,
    Envelope,
    Heartbeat,
    MetricsFrame,
    Stop,
    TakeOver,
)
from common.protocol.transport import BROKEN_OFF, SocketPoller
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.unfinished_run import unfinished_reason
from coordinator.core.actions import (
    Action,
    CalledOff,
    Cleaned,
    Counted,
    DeleteKeys,
    End,
    FromAgent,
    Interrupted,
    Introduce,
    Leave,
    Note,
    Progress,
    ReadServer,
    RunEvent,
    Send,
    StopDeleting,
    Tick,
    Write,
)
from coordinator.core.member import Member
from coordinator.core.registry import LARGE_FLEET, JournaledAgent
from coordinator.core.run import DISMISS_NS, AfterLoad, Run
from coordinator.journal.journal_file import Journal
from coordinator.journal.records import (
    AnyRecord,
    CoordinatorFailed,
    CountersRead,
    FrameAccepted,
    Outcome,
    Reading,
    RunStarted,
)
from coordinator.live.snapshot import LiveAgent, build_snapshot
from coordinator.live.view import LiveView
from coordinator.local_agents import LocalAgents
from coordinator.servers.cleanup import CleanUpThread
from coordinator.servers.sampler import ServerSampler

TICK_S = 0.1
TICK_NS = NS_PER_S // 10
SHOW_EVERY_NS = NS_PER_S // 4
SHOW_LARGE_EVERY_NS = NS_PER_S
"""The live view of a large fleet is updated less often, because each update visits all agents."""
CHECK_JOURNAL_EVERY_NS = NS_PER_S

_LONGEST_REASON = 300
_STOPPED_STATES = frozenset({AgentState.DRAINING, AgentState.DONE, AgentState.IDLE})
"""States of an agent that begins no more operations."""

ReadCounts = Callable[[Reading], CountersRead]
OpenJournal = Callable[[AnyRecord | None], Journal]
"""Opens the journal. Takes the first record of a new run; None for a resumed run."""
Clean = Callable[[], CleanUpThread]
Explain = Callable[[Exception], tuple[int, str]]


class Coordinator:
    """One run, from its first agent to its end. The caller closes everything that is passed in, and the journal."""

    def __init__(
        self,
        run: Run,
        aggregate: Aggregate,
        *,
        listener: Listener,
        signals: Signals,
        local_agents: LocalAgents,
        view: LiveView,
        open_journal: OpenJournal,
        read_counts: ReadCounts,
        clean: Clean,
        explain: Explain,
        samplers: Sequence[ServerSampler] = (),
    ) -> None:
        """explain: returns the exit code and the message of an error; saves the traceback of an unexpected error.
        samplers: one for each target; `read_counts` makes them describe the servers before and after the load."""
        self._run, self._aggregate = run, aggregate
        self._listener = listener
        self._signals, self._local_agents, self._view = signals, local_agents, view
        self._open_journal, self._read_counts, self._clean = open_journal, read_counts, clean
        self._explain, self._samplers = explain, samplers
        self._journal: Journal | None = None
        self._end: End | None = None
        self._has_left = False
        self._reading: tuple[Reading, Future[CountersRead]] | None = None
        self._cleaning: CleanUpThread | None = None
        self._interrupts = 0
        self._shown_ns = self._journal_checked_ns = self._ticked_ns = 0
        self._is_journal_gone = False
        self._is_view_broken = False
        self._refused: Counter[str] = Counter()
        self._malformed = 0
        self._line_limit = LineLimit("agents", monotonic_ns())
        self._packed: tuple[MetricsFrame, bytes] | None = None
        """The current frame, and its bytes as the agent packed them."""

    def serve(self) -> End:
        """Serve the run until it ends. Returns how it ended.

        Raises StampedeError, or an unexpected error, only if the run never began. After the start, an error ends the
        run with an `End`, so that there is a report.
        """
        poller = SocketPoller()
        for source in (self._listener, self._signals.fileno()):
            poller.watch(source)
        if self._run.state.t0_ns is not None:
            self._journal = self._open_journal(None)  # resumed
            if self._aggregate.closed is None:
                self._start_samplers(self._run.state.t0_ns)
        try:
            while not self._has_left:
                poller.wait(TICK_S)
                for event in self._events():
                    self._handle(event)
                if monotonic_ns() - self._ticked_ns >= TICK_NS:
                    self._tick()
            if self._journal is not None:
                self._journal.sync()
            assert self._end is not None
            return self._end
        except Exception as error:
            if self._aggregate.started is not None:
                return self._end_after_failure(error, poller)
            code = error.exit_code if isinstance(error, StampedeError) else StampedeError.exit_code
            self._cancel(poller, code)
            raise

    def _tick(self) -> None:
        """Do the work that visits every agent. In a large fleet it would be too slow for each message."""
        self._ticked_ns = monotonic_ns()
        for event in self._local_agents.exited():
            self._handle(event)
        self._handle(Tick())
        if self._end is not None:
            return
        is_large = len(self._run.state.registry) > LARGE_FLEET
        if monotonic_ns() - self._shown_ns >= (SHOW_LARGE_EVERY_NS if is_large else SHOW_EVERY_NS):
            self._show()
        self._check_journal()

    def _end_after_failure(self, error: Exception, poller: SocketPoller) -> End:
        """Return the end of a run whose coordinator cannot continue, for example because the disk is full. The report
        covers the accepted records. Agents stop their load, and keep other results for a coordinator that resumes the
        run."""
        code, text = self._explain(error)
        if self._aggregate.closed is not None:
            return End(code, text, self._aggregate.closed.outcome)
        with suppress(StampedeError):  # the full disk may be the error itself
            self._write(CoordinatorFailed(reason=text))
        if self._aggregate.failed is None:
            self._aggregate.apply(CoordinatorFailed(reason=text))
        self._stop_load(poller, text)
        self._local_agents.detach()
        return End(code, unfinished_reason(self._aggregate), Outcome.ABORTED)

    def _stop_load(self, poller: SocketPoller, why: str) -> None:
        """Stop the load now, and not at the end of the lease, because no more results are recorded."""
        unfinished = [member for member in self._run.state.registry.taking_part() if member.final is None]
        stop = Stop(drain=True, reason=f"the coordinator failed: {why}"[:_LONGEST_REASON])
        for member in unfinished:
            self._send(member.routing_id, member.incarnation, stop)
        self._await_states(poller, unfinished, stop, _STOPPED_STATES)

    def _cancel(self, poller: SocketPoller, exit_code: int) -> None:
        """End a run before its start, and dismiss its agents: such a run cannot be resumed, so no agent should wait."""
        self._handle(CalledOff(exit_code))
        while not self._has_left:
            poller.wait(TICK_S)
            for event in self._received():
                self._handle(event)
            self._handle(Tick())

    def _send(self, routing_id: bytes, incarnation: str, message: CoordinatorMessage) -> None:
        run_id = self._run.state.setup.run_id
        self._perform(Send(routing_id, Envelope(run_id=run_id, incarnation=incarnation, message=message)))

    def _show_end(self) -> None:
        """Show the last seconds, and how many messages and peers were ignored: they do not count, but they help to find
        a problem."""
        self._show()
        counts = self._run.state.set_aside | Counter(malformed=self._malformed, cut=self._listener.count_cut())
        counts |= Counter({f"refused ({cause})": count for cause, count in self._refused.items()})
        ignored = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        if left_out := self._line_limit.summary():
            self._view.note(left_out, trouble=True)
        if ignored:
            self._view.note(f"ignored messages and peers: {ignored}")

    def _await_states(
        self, poller: SocketPoller, members: Iterable[Member], order: CoordinatorMessage, states: frozenset[AgentState]
    ) -> None:
        """Wait until every agent has followed its last order: it says goodbye, or reports one of these states. Any
        other message of an agent, or a reconnect, means that the order was lost, so it is sent again. Waits three
        seconds at most."""
        waiting = {member.incarnation for member in members if not member.is_lost}
        until_ns = monotonic_ns() + DISMISS_NS
        while waiting and monotonic_ns() < until_ns:
            poller.wait(TICK_S)
            for event in self._received():
                answer = event.envelope.message
                member = self._run.state.registry.sender(event.routing_id, event.envelope)
                if member is None or isinstance(answer, Attach | MetricsFrame):
                    continue
                # An agent that reconnects uses another connection.
                self._run.state.registry.answer_on(member, event.routing_id)
                if isinstance(answer, Bye) or (isinstance(answer, Heartbeat) and answer.state in states):
                    waiting.discard(member.incarnation)
                elif member.incarnation in waiting:
                    self._send(member.routing_id, member.incarnation, order)

    def _events(self) -> Iterator[RunEvent]:
        for _ in range(self._signals.take()):
            self._interrupts += 1
            yield Interrupted()
        self._take_samples()
        yield from self._counted()
        yield from self._cleaned()
        yield from self._received()
        yield from self._local_agents.exited()
        refused = self._listener.count_refused()
        for cause in refused.keys() - self._refused.keys():
            self._view.note(f"refused a peer: {cause}", trouble=cause != BROKEN_OFF)  # a health check does this too
        self._refused = refused.copy()
        for flood in self._listener.take_floods():
            self._note(flood, trouble=True, of_agent=True)

    def _counted(self) -> Iterator[Counted]:
        if self._reading is None:
            return
        when, reading = self._reading
        if reading.done():
            self._reading = None
            self._take_samples()  # descriptions that came with it
            yield Counted(reading.result())
        elif self._interrupts > 1:
            self._reading = None
            yield Counted(CountersRead(when=when, error="the run was stopped before the server replied"))

    def _start_samplers(self, t0_ns: int) -> None:
        for sampler in self._samplers:
            sampler.start(t0_ns, self._aggregate.servers.described(sampler.name))

    def _take_samples(self) -> None:
        if self._journal is not None:
            for record in [record for sampler in self._samplers for record in sampler.take()]:
                self._write(record)

    def _cleaned(self) -> Iterator[Cleaned]:
        if self._cleaning is None:
            return
        record = self._cleaning.result()
        self._view.phase(f"deleting keys: {self._cleaning.deleted:,} so far")
        if record is not None:
            self._cleaning = None
            yield Cleaned(record)

    def _received(self) -> Iterator[FromAgent]:
        arrived = list(self._listener.receive())
        decoded = codec.decode_from_agents([data for _, data in arrived])
        for (routing_id, _), letter in zip(arrived, decoded, strict=True):
            if isinstance(letter, ProtocolError):
                self._count_malformed(letter)
                continue
            message = letter.envelope.message
            if isinstance(message, MetricsFrame):
                self._packed = (message, letter.packed)
            yield FromAgent(routing_id, letter.envelope)

    def _count_malformed(self, error: ProtocolError) -> None:
        self._malformed += 1
        if self._malformed == 1:
            self._view.note(f"ignored an invalid message: {error}", trouble=True)

    def _handle(self, event: RunEvent) -> None:
        for action in self._run.handle(event, monotonic_ns()):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Send(routing_id, envelope):
                if routing_id:  # empty until an agent of a resumed run has reconnected
                    self._listener.send(routing_id, codec.encode(envelope))
            case Introduce(routing_id, agent_id, metrics):
                self._listener.introduce(routing_id, agent_id, metrics=metrics)
            case Write(RunStarted() as record):
                self._write(msgspec.structs.replace(record, t0_utc_ns=utc_of(record.t0_ns)))
            case Write(record):
                self._write(record)
            case ReadServer(when):
                self._reading = (when, _read_in_thread(lambda: self._counts(when)))
            case DeleteKeys():
                self._cleaning = self._clean()
            case StopDeleting():
                if self._cleaning is not None:
                    self._cleaning.stop()
            case Progress(text, done, total):
                self._view.phase(text, done, total)
            case Note(text, trouble, of_agent):
                self._note(text, trouble, of_agent)
            case End():
                is_first, self._end = self._end is None, action
                if is_first:
                    self._show_end()
            case Leave():
                self._has_left = True

    def _note(self, text: str, trouble: bool, of_agent: bool) -> None:
        if of_agent and not self._line_limit.take(monotonic_ns()):
            return
        if left_out := self._line_limit.summary():
            self._view.note(left_out, trouble=True)
        self._view.note(text, trouble)

    def _counts(self, when: Reading) -> CountersRead:
        """Return the server's counters, or why they could not be read: an error costs only the ledger, not the run."""
        try:
            return self._read_counts(when)
        except Exception as error:  # noqa: BLE001 - the ledger names it
            return CountersRead(when=when, error=self._explain(error)[1])

    def _write(self, record: AnyRecord) -> None:
        """Append to the journal first: a record that is not there must not count, and must not be acknowledged."""
        if self._journal is None:
            self._journal = self._open_journal(record)
        packed = None
        if isinstance(record, FrameAccepted) and self._packed is not None and self._packed[0] is record.frame:
            packed = self._packed[1]
        self._journal.append(record, packed)
        self._aggregate.apply(record)
        if isinstance(record, RunStarted):
            self._start_samplers(record.t0_ns)

    def _check_journal(self) -> None:
        """Report once if the journal was deleted or moved. The run goes on: the open file still accepts records."""
        if (
            self._journal is None
            or self._is_journal_gone
            or monotonic_ns() - self._journal_checked_ns < CHECK_JOURNAL_EVERY_NS
        ):
            return
        self._journal_checked_ns = monotonic_ns()
        if not self._journal.is_in_place:
            self._is_journal_gone = True
            self._view.note(
                f"{self._journal.path} was deleted or moved: the run goes on and is reported on stdout, but cannot be "
                "resumed, and its files will be missing",
                trouble=True,
            )

    def _show(self) -> None:
        t0_ns = self._run.state.t0_ns
        if t0_ns is None or self._cleaning is not None or self._is_view_broken:
            return
        self._shown_ns = now_ns = monotonic_ns()
        rows = [_live_agent(member, now_ns) for member in self._run.state.registry.taking_part()]
        try:
            stopped_ns = self._run.state.stopped_ns
            stopped_s = None if stopped_ns is None else (stopped_ns - t0_ns) / NS_PER_S
            standing_by = len(self._run.state.registry.standing_by(now_ns))
            elapsed_s = (now_ns - t0_ns) / NS_PER_S
            self._view.update(build_snapshot(self._aggregate, rows, elapsed_s, stopped_s, standing_by))
        except Exception as error:  # noqa: BLE001 - a failed live view must not end the run
            self._is_view_broken = True
            self._view.note(f"the live view ends, the run goes on: {self._explain(error)[1]}", trouble=True)


def _read_in_thread(read: Callable[[], CountersRead]) -> Future[CountersRead]:
    """Read in a daemon thread: it does not keep the process alive if the user does not want to wait."""
    reading: Future[CountersRead] = Future()

    def work() -> None:
        try:
            reading.set_result(read())
        except BaseException as error:  # noqa: BLE001 - the loop raises it, when it takes the result
            reading.set_exception(error)

    threading.Thread(target=work, name="server counts", daemon=True).start()
    return reading


def _live_agent(member: Member, now_ns: int) -> LiveAgent:
    state = (
        "replaced"
        if member.replaced_by
        else "lost"
        if member.is_lost
        else "finished"
        if member.final
        else member.reported.value
    )
    return LiveAgent(
        agent_id=member.agent_id,
        host=member.host,
        state=state,
        cpu_percent=member.figures.cpu_percent,
        heartbeat_age_s=(now_ns - member.heard_ns) / NS_PER_S,
        offset_us=None if member.offset_ns is None else member.offset_ns / 1e3,
        alive=not member.is_lost,
    )


def after_load(aggregate: Aggregate) -> list[AfterLoad]:
    """Return the records of steps after the load that a resumed run has done already. An unfinished clean-up of an
    ended run is not among them, because it is repeated."""
    cleaned = None if aggregate.closed is not None and aggregate.left_keys else aggregate.cleaned
    return [record for record in (aggregate.readings.get(Reading.AFTER), cleaned) if record is not None]


def journaled_agents(aggregate: Aggregate) -> list[JournaledAgent]:
    """Return the agents of a resumed run from its journal."""
    taken = {
        record.agent.agent_id: TakeOver(from_ns=record.from_ns, remaining=record.remaining)
        for record in aggregate.takeovers
    }
    replaced = {record.replaces: record.agent.agent_id for record in aggregate.takeovers}
    return [
        JournaledAgent(
            agent.facts,
            agent.next_seq,
            agent.end.final if agent.end is not None else None,
            takeover=taken.get(agent_id),
            replaced_by=replaced.get(agent_id, ""),
            left=agent.end.reason or "it left" if agent.end is not None and agent.has_left else "",
        )
        for agent_id, agent in aggregate.agents.items()
    ]

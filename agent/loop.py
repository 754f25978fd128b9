"""The agent's loop: passes all events to the session, and performs the actions that the session returns.

This process only speaks the protocol. Worker processes send the load, so load never delays a heartbeat.

Order of shutdown: worker processes first, because their messages need the links; then the metrics link and the control
link, which may take a second to send a goodbye; then the ZeroMQ context of both links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

from agent.connectivity import Connectivity, Obstacle, Reached, Resolved
from agent.core.actions import (
    Action,
    AgentEvent,
    ConnectMetrics,
    Examined,
    Exit,
    Identity,
    KillWorkers,
    LinkDown,
    LinkRefused,
    LinkUp,
    MetricsLinkDown,
    MetricsLinkUp,
    OrderWorkers,
    Received,
    RenewLease,
    Say,
    Send,
    Spawn,
    SpawnFailed,
    Terminated,
)
from agent.core.session import Session
from agent.fork_server import ForkServer
from agent.processes import Processes
from agent.usage import Usage
from common.clock import Suspension, monotonic_ns
from common.errors import ProtocolError
from common.program.line_limits import LineLimit
from common.program.signals import caught_signals
from common.protocol import codec
from common.protocol.endpoint import Endpoint
from common.protocol.messages import Assignment
from common.protocol.transport import NO_CONNECTION, Context, CurveClient, Dialer, LinkEvent, SocketPoller
from common.units import counted

TICK_S = 0.05

_CONTROL_EVENTS: dict[LinkEvent, AgentEvent] = {
    LinkEvent.UP: LinkUp(),
    LinkEvent.DOWN: LinkDown(),
    LinkEvent.REFUSED: LinkRefused(),
}


class Agent:
    """One `agent join`."""

    def __init__(
        self,
        endpoint: Endpoint,
        curve: CurveClient | None,
        identity: Identity,
        say: Callable[[str], None],
        fork_server: ForkServer | None = None,
    ) -> None:
        """fork_server: a started one, see `Processes`."""
        self._endpoint, self._curve, self._say, self._fork_server = endpoint, curve, say, fork_server
        self._dialed = ""
        self._session = Session(identity, monotonic_ns())
        self._usage = Usage()
        self._suspension = Suspension()
        self._exit: Exit | None = None
        self._line_limit = LineLimit("the coordinator", monotonic_ns())

    def run(self) -> Exit:
        """Serve runs until the session decides to exit. Returns the exit. Closes everything that it opened."""
        with ExitStack() as stack:
            # Entered first, closed last: see the module's docstring for the order. Signals are first, because a Ctrl-C
            # while a socket is made would leave the socket open, and the context would wait for it without end.
            self._signals = stack.enter_context(caught_signals())
            self._context = stack.enter_context(Context())
            self._links = stack.enter_context(ExitStack())
            self._control = self._links.enter_context(Dialer(self._context, "", self._curve))
            self._metrics: Dialer | None = None
            self._missing = ""
            self._connectivity = Connectivity(self._endpoint, curve=self._curve is not None)
            self._processes = stack.enter_context(Processes(self._fork_server))
            last_ns = monotonic_ns()
            while self._exit is None:
                self._wait()
                now_ns = monotonic_ns()
                lag_ms = max(0.0, (now_ns - last_ns) / 1e6 - TICK_S * 1e3)
                last_ns = now_ns
                for event in self._events():
                    self._handle(event)
                tick = self._usage.tick(now_ns, lag_ms, self._processes.pids())
                self._handle(replace(tick, suspended_ns=self._suspension.take_ns()))
            return self._exit

    def _wait(self) -> None:
        poller = SocketPoller()
        poller.watch(self._control)
        if self._metrics is not None:
            poller.watch(self._metrics)
        for fileno in (self._signals.fileno(), *self._processes.filenos()):
            poller.watch(fileno)
        poller.wait(TICK_S)

    def _events(self) -> Iterator[AgentEvent]:
        for _ in range(self._signals.take()):
            yield Terminated()
        for link_event in self._control.link_events():
            yield _CONTROL_EVENTS[link_event]
        yield from self._received(self._control)
        if self._metrics is not None:
            yield from self._metrics_link_events(self._metrics)
            yield from self._received(self._metrics)
        yield from self._processes.events()
        yield from self._examined()

    def _examined(self) -> Iterator[AgentEvent]:
        missing = self._control.missing
        match self._connectivity.look(is_up=not missing, is_connected=missing != NO_CONNECTION, now_ns=monotonic_ns()):
            case Resolved(address):
                self._dial(address.tcp)
            case Reached(address):
                self._dial(address.tcp)
                yield Examined()
            case Obstacle(text, lasting):
                yield Examined(text, lasting)

    def _dial(self, address: str) -> None:
        self._dialed = address
        for link in filter(None, (self._control, self._metrics)):
            link.dial(address)

    def _metrics_link_events(self, metrics: Dialer) -> Iterator[AgentEvent]:
        for link_event in metrics.link_events():
            if link_event is LinkEvent.UP:
                yield MetricsLinkUp()
        if metrics.missing != self._missing:
            self._missing = metrics.missing
            if self._missing:
                yield MetricsLinkDown(self._missing)

    def _received(self, link: Dialer) -> Iterator[Received]:
        for data in link.receive():
            try:
                yield Received(codec.decode_from_coordinator(data))
            except ProtocolError as error:
                self._say_limited(f"ignored an invalid message of the coordinator: {error}")

    def _handle(self, event: AgentEvent) -> None:
        for action in self._session.handle(event, monotonic_ns()):
            if self._exit is not None:
                return
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Send(envelope, metrics):
                link = self._metrics if metrics else self._control
                if link is not None:
                    link.send(codec.encode(envelope))
            case ConnectMetrics():
                if self._metrics is None:
                    self._metrics = self._links.enter_context(Dialer(self._context, self._dialed, self._curve))
            case Spawn(run_id, assignments):
                self._spawn(run_id, assignments)
            case OrderWorkers(order):
                self._processes.order(order)
            case RenewLease(until_ns):
                self._processes.renew(until_ns + self._suspension.ahead_ns())
            case KillWorkers():
                self._processes.kill()
            case Say(text):
                self._say_limited(text)
            case Exit():
                self._exit = action
                if action.text:
                    self._say(action.text)

    def _say_limited(self, text: str) -> None:
        if self._line_limit.take(monotonic_ns()):
            if summary := self._line_limit.summary():
                self._say(summary)
            self._say(text)

    def _spawn(self, run_id: str, assignments: tuple[Assignment, ...]) -> None:
        try:
            self._processes.spawn(run_id, assignments)
        except OSError as error:  # no more processes, memory or files
            self._processes.kill()
            reason = f"cannot start {counted(len(assignments), 'worker process')}: {error.strerror or error}"
            self._handle(SpawnFailed(reason))

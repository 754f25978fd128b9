"""Simulated agents, many in one process: real sockets, CURVE and the real session of an agent, but no load.

    python -m scripts.benchmark.simulated_agents ENDPOINT TOKEN_FILE FIRST COUNT

Each agent is an `agent.core.session.Session` with its own links, as in `agent.loop`. Only the worker process is
simulated: it is prepared at once, reports ten commands per second with a few hundred latencies each, and ends when the
plan ends. One loop serves all agents. After the last agent has left, the program prints its measurements as one line of
JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import sys
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from agent.core.actions import (
    AgentEvent,
    ConnectMetrics,
    Exit,
    FromWorker,
    Identity,
    KillWorkers,
    LinkDown,
    LinkRefused,
    LinkUp,
    MetricsLinkUp,
    OrderWorkers,
    Received,
    Send,
    Spawn,
    Tick,
)
from agent.core.session import Session
from common.clock import monotonic_ns
from common.machine import raise_open_files_limit
from common.metrics.histogram import Histogram
from common.metrics.intervals import CommandMetrics, ConnectionMetrics, GeneratorMetrics, IntervalMetrics, PoolMetrics
from common.plan.timeline import timeline
from common.program.version import RELEASE
from common.protocol import codec
from common.protocol.messages import (
    FrameAck,
    HeartbeatReply,
    MetricsFrame,
    Prepared,
    Start,
    Welcome,
    WorkerFinal,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.protocol.token import agent_curve
from common.protocol.transport import Context, CurveClient, Dialer, LinkEvent
from common.units import NS_PER_S

COMMANDS = ("GET", "SET", "INCR", "HGET", "HSET", "LPUSH", "RPOP", "SADD", "ZADD", "EXPIRE")
OPERATIONS = 300
"""Operations of each command per second."""
_TEMPLATES = 8
"""Number of different intervals, which agents report in rotation, because generating latencies is expensive."""
_TICK_NS = NS_PER_S // 4
_TIMER_CHECK_NS = NS_PER_S // 100
"""How often the loop looks for agents with a due timer."""
_REPORT_DELAY_NS = NS_PER_S // 20
"""How long after the end of a second its metrics are reported."""
_CONTROL_EVENTS: dict[LinkEvent, AgentEvent] = {
    LinkEvent.UP: LinkUp(),
    LinkEvent.DOWN: LinkDown(),
    LinkEvent.REFUSED: LinkRefused(),
}


@dataclass(slots=True)
class FleetMeasurements:
    """Measurements of all agents of this process. started_ns: when each agent received Start. ack_ns: from sending a
    frame until its acknowledgement. acked_at_ns: when the last frame was acknowledged. reply_ns: from sending a
    heartbeat until its reply."""

    t0_ns: int = 0
    welcomed_ns: list[int] = field(default_factory=list)
    prepared_ns: list[int] = field(default_factory=list)
    started_ns: list[int] = field(default_factory=list)
    ack_ns: list[int] = field(default_factory=list)
    acked_at_ns: int = 0
    reply_ns: list[int] = field(default_factory=list)
    frames: int = 0
    resent: int = 0
    operations: int = 0
    exits: dict[str, int] = field(default_factory=dict)


def interval_of(seed: int) -> IntervalMetrics:
    """One second of one pool: ten commands, each with about fifty filled buckets around 200 µs and a short tail."""
    random = np.random.default_rng(seed)
    commands = {}
    for number, name in enumerate(COMMANDS):
        usual = random.normal(180_000 + 8_000 * number, 3_000, OPERATIONS - 5)
        service = Histogram.from_values(np.concatenate([usual, random.uniform(4e5, 4e6, 5)]).astype(np.int64))
        commands[name] = CommandMetrics(
            ok=OPERATIONS, bytes_out=50 * OPERATIONS, bytes_in=20 * OPERATIONS, service=service
        )
    operations = OPERATIONS * len(COMMANDS)
    pool = PoolMetrics(
        commands=commands,
        checkout_wait=Histogram.from_values(np.full(operations, 400)),
        connections=ConnectionMetrics(open_peak=4, wanted=4),
    )
    cpu_ns = int(random.uniform(0.3, 0.7) * NS_PER_S)
    generator = GeneratorMetrics(
        cpu_ns=cpu_ns, watched_ns=NS_PER_S, busiest_cpu_ns=cpu_ns, core_share_max=cpu_ns / NS_PER_S
    )
    return IntervalMetrics(first=0, last=0, issued=operations, generator=generator, pools={"main": pool})


class SimulatedAgent:
    """One agent. `pump` feeds its session. `exit`: the session's last action, once the agent has left."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        curve: CurveClient,
        number: int,
        templates: list[IntervalMetrics],
        measurements: FleetMeasurements,
    ) -> None:
        identity = Identity(
            name=f"simulated-{number}",
            host=f"host-{number}",
            pid=os.getpid(),
            processes=1,
            secret=secrets.token_urlsafe(24),
            version=RELEASE,
            once=True,
        )
        self.exit: Exit | None = None
        self.due_ns = 0
        self._context, self._endpoint, self._curve = context, endpoint, curve
        self._number, self._templates, self._measurements = number, templates, measurements
        self._session = Session(identity, monotonic_ns())
        self._links = ExitStack()
        self._control = self._links.enter_context(Dialer(context, endpoint, curve))
        self._metrics: Dialer | None = None
        self._reports: deque[tuple[int, WorkerMetrics | WorkerFinal | Prepared]] = deque()
        self._end_ns: int | None = None
        self._t0_ns = 0
        self._sent_ns: dict[int, int] = {}
        self._acknowledged = 0
        self.has_new_link = True

    def filenos(self) -> list[int]:
        """The file descriptors to poll."""
        links = [self._control] + ([self._metrics] if self._metrics is not None else [])
        return [source.fileno() for link in links for source in (link.socket, link.monitor.socket)]

    def pump(self, now_ns: int) -> None:
        """Handle all messages and reports that have arrived, and a tick if one is due."""
        for link_event in self._control.link_events():
            self._handle(_CONTROL_EVENTS[link_event])
        self._receive(self._control)
        if self._metrics is not None:
            if LinkEvent.UP in list(self._metrics.link_events()):
                self._handle(MetricsLinkUp())
            self._receive(self._metrics)
        while self._reports and self._reports[0][0] <= now_ns:
            self._handle(FromWorker(0, self._reports.popleft()[1]))
        if now_ns >= self.due_ns:
            self.due_ns = now_ns + _TICK_NS
            self._handle(Tick(cpu_percent=50.0, cpu_percent_busiest=50.0, host_cpu_percent=40.0))

    def next_ns(self) -> int:
        """When to call `pump` next if no message arrives."""
        return min(self.due_ns, self._reports[0][0]) if self._reports else self.due_ns

    def close(self) -> None:
        """Close the links."""
        self._links.close()

    def _receive(self, link: Dialer) -> None:
        for data in link.receive():
            envelope = codec.decode_from_coordinator(data)
            match envelope.message:
                case Start():
                    self._measurements.started_ns.append(monotonic_ns())
                    self._measurements.t0_ns = envelope.message.t0_ns
                case FrameAck():
                    self._acked(envelope.message.next_seq)
                case HeartbeatReply():
                    self._measurements.reply_ns.append(monotonic_ns() - envelope.message.sent_ns)
                case Welcome() if self._metrics is None:
                    self._measurements.welcomed_ns.append(monotonic_ns())
            self._handle(Received(envelope))

    def _acked(self, next_seq: int) -> None:
        now_ns = monotonic_ns()
        for seq in range(self._acknowledged, next_seq):
            self._measurements.ack_ns.append(now_ns - self._sent_ns.pop(seq, now_ns))
            self._measurements.acked_at_ns = now_ns
        self._acknowledged = max(self._acknowledged, next_seq)

    def _handle(self, event: AgentEvent) -> None:
        for action in self._session.handle(event, monotonic_ns()):
            match action:
                case Send(envelope, metrics):
                    link = self._metrics if metrics else self._control
                    if isinstance(envelope.message, MetricsFrame):
                        self._count(envelope.message)
                    if link is not None:
                        link.send(codec.encode(envelope))
                case ConnectMetrics() if self._metrics is None:
                    self._metrics = self._links.enter_context(Dialer(self._context, self._endpoint, self._curve))
                    self.has_new_link = True
                case Spawn(_, assignments):
                    self._end_ns = timeline(assignments[0].plan.load).end_ns
                    self._measurements.prepared_ns.append(monotonic_ns())
                    self._reports.append((0, Prepared(processes=1, connections_open=4)))
                case OrderWorkers(WorkerStart() as start):
                    self._start_load(start.t0_ns)
                case OrderWorkers(WorkerStop()):
                    self._stop_load()
                case KillWorkers():
                    self._reports.clear()
                case Exit():
                    self.exit = action
                    self._measurements.exits[str(action.code)] = self._measurements.exits.get(str(action.code), 0) + 1
                    return

    def _start_load(self, t0_ns: int) -> None:
        """Schedule all reports of the run."""
        self._t0_ns = t0_ns
        seconds = (self._end_ns or 0) // NS_PER_S
        for second in range(seconds):
            template = self._templates[(self._number + second) % len(self._templates)]
            interval = msgspec.structs.replace(template, first=second, last=second)
            at_ns = t0_ns + (second + 1) * NS_PER_S + _REPORT_DELAY_NS
            self._reports.append((at_ns, WorkerMetrics(through=second, intervals=(interval,))))
        self._reports.append((t0_ns + seconds * NS_PER_S + 2 * _REPORT_DELAY_NS, self._final(seconds)))

    def _stop_load(self) -> None:
        """Drop all reports that are not due yet."""
        now_ns = monotonic_ns()
        self._reports = deque(report for report in self._reports if report[0] <= now_ns)
        self._reports.append((now_ns, self._final(max(0, now_ns - self._t0_ns - _REPORT_DELAY_NS) // NS_PER_S)))

    def _final(self, seconds: int) -> WorkerFinal:
        done = seconds * self._templates[0].issued
        return WorkerFinal(
            issued=done, counted=done, transactions=0, start_skew_ns=0, ran_ns=seconds * NS_PER_S, drained=True
        )

    def _count(self, frame: MetricsFrame) -> None:
        if frame.seq in self._sent_ns or frame.seq < self._acknowledged:
            self._measurements.resent += 1
            return
        self._sent_ns[frame.seq] = monotonic_ns()
        self._measurements.frames += 1
        self._measurements.operations += sum(interval.operations for interval in frame.intervals)


def run_agents(endpoint: str, curve: CurveClient, first: int, count: int) -> FleetMeasurements:
    """Run `count` agents, numbered from `first`, until all have left."""
    measurements = FleetMeasurements()
    templates = [interval_of(seed) for seed in range(_TEMPLATES)]
    with Context() as context, ExitStack() as stack:
        agents = [
            SimulatedAgent(context, endpoint, curve, number, templates, measurements)
            for number in range(first, first + count)
        ]
        for agent in agents:
            stack.callback(agent.close)
        poller = select.epoll()
        stack.callback(poller.close)
        by_fileno: dict[int, SimulatedAgent] = {}
        check_ns = 0
        while agents:
            ready = {by_fileno[fileno] for fileno, _ in poller.poll(_TIMER_CHECK_NS / NS_PER_S)}
            now_ns = monotonic_ns()
            if now_ns >= check_ns:
                ready |= {agent for agent in agents if agent.next_ns() <= now_ns}
                check_ns = now_ns + _TIMER_CHECK_NS
            for agent in ready:
                agent.pump(now_ns)
                if agent.has_new_link:
                    agent.has_new_link = False
                    for fileno in agent.filenos():
                        if fileno not in by_fileno:
                            by_fileno[fileno] = agent
                            poller.register(fileno, select.EPOLLIN)
            for agent in [agent for agent in ready if agent.exit is not None]:
                agents.remove(agent)
                for fileno in agent.filenos():
                    poller.unregister(fileno)
                    del by_fileno[fileno]
                agent.close()
    return measurements


def main(arguments: list[str]) -> int:
    """Run the program; see the module's docstring for the arguments."""
    endpoint, token_file, first, count = arguments
    raise_open_files_limit()
    print(json.dumps(asdict(run_agents(endpoint, agent_curve(Path(token_file)), int(first), int(count)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

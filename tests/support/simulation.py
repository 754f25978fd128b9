"""A simulated fleet in one thread: real sessions and a real run, connected by unreliable links.

A queue of events on a simulated clock drives the fleet. One seed draws all random numbers, so each scenario is
reproducible. The clocks of the hosts are hours apart. Worker processes, the loops of agent and coordinator, and the
reconnects of ZeroMQ are simulated coarsely.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from agent.core import actions as events
from agent.core.session import Session
from agent.worker.pacing.pacer import NEVER_NS, quota_of
from common.errors import EXIT_INTERRUPTED
from common.metrics.intervals import DeliveryMetrics, IntervalMetrics
from common.plan.planned_commands import preload_commands
from common.plan.schema import CleanUp, Load, OnAgentLoss, Preload
from common.plan.schema import Scenario as PlanScenario
from common.protocol.messages import (
    AgentState,
    Assignment,
    Dismiss,
    Envelope,
    Failed,
    FailureKind,
    HeartbeatReply,
    Preloaded,
    PreparationStep,
    Prepare,
    Prepared,
    Preparing,
    Stop,
    WorkerFinal,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S, Count, Seconds
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.core import actions as steps
from coordinator.core.run import Run
from coordinator.core.transitions import Phase
from coordinator.journal.records import AnyRecord, CleanedUp, CountersRead, Reading, StopDecided
from coordinator.loop import after_load, journaled_agents
from tests.support.protocol import fleet_plan, interval, setup_for
from tests.support.stages import stage

HOUR_NS = 3600 * NS_PER_S
LATENCY_S = 0.05
TICK_S = 0.1
END_OF_TIME_S = 400.0
PRELOADED_KEYS = 1_000


class Kind(enum.Enum):
    """Faults."""

    CONTROL_DOWN = "the control link of an agent is down for a while"
    METRICS_DOWN = "the metrics link of an agent is down for a while"
    LINKS_DOWN = "both links of an agent are down for a while"
    BLACKHOLE = "both links of an agent drop all messages for a while"
    HELD_BACK = "both links of an agent delay all messages for a while"
    AGENT_KILLED = "an agent is killed"
    AGENT_RESTARTED = "an agent is killed, and started again under the same name after a while"
    AGENT_TERMINATED = "an agent gets SIGTERM"
    AGENT_STOPPED = "an agent's own process is stopped for a while, its worker processes are not"
    WORKER_KILLED = "a worker process dies"
    WORKER_STUCK = "a worker process never ends"
    INTERRUPTED = "Ctrl-C on the coordinator"
    HELD_UP = "the coordinator's process is stopped for a while"
    KILLED = "the coordinator is killed, and resumed after a while, or another is started if its run had not started"
    FULL = "the coordinator can no longer write its journal; then as if it was killed"
    REPLACED = "the coordinator is killed, and another run is started after a while"
    COLLECTED = "the first run, if it has ended without some results, is resumed to collect them"


DEATHS = (Kind.AGENT_KILLED, Kind.AGENT_RESTARTED, Kind.WORKER_KILLED, Kind.WORKER_STUCK)
"""Faults that lose operations before they are reported."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. agent: its number, modulo the living agents. seconds: the duration."""

    kind: Kind
    at_s: float
    agent: int = 0
    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet and its faults. expected: agents that the run waits for; further agents stand by. at_least: agents that
    suffice after the wait. requests: operations per pool instead of a duration. dead: no operation succeeds. preloads:
    workers preload first. cleans: keys are deleted at the end. loss, repeats: shares of messages that are lost or
    delivered twice. slow: frames cover several seconds, as in a large fleet. second: the plan has a second scenario
    with the same load, which starts later."""

    seed: int = 0
    agents: int = 2
    expected: int = 2
    at_least: int | None = None
    on_agent_loss: OnAgentLoss = OnAgentLoss.CONTINUE
    processes: int = 2
    pools: int | None = None
    duration_s: float | None = 4.0
    staged: bool = False
    requests: int | None = None
    dead: bool = False
    preloads: bool = False
    cleans: bool = False
    lease_s: float = 6.0
    once: bool = False
    loss: float = 0.0
    repeats: float = 0.0
    slow: bool = False
    second: bool = False
    faults: tuple[Fault, ...] = ()


@dataclass(slots=True)
class Wire:
    """One link of one agent, like TCP: ordered while it is up, and messages under way are lost with it."""

    up: bool = False
    wanted: bool = False
    connection: int = 0
    down_until_ns: int = 0
    swallow_until_ns: int = 0
    keep_until_ns: int = 0
    last_ns: dict[str, int] = field(default_factory=lambda: {"to": 0, "from": 0})


class World:
    """The whole simulation. Its times are true nanoseconds; a host's own clock is `offset_ns` ahead.

    starts: of each worker process, how far off the common start it began, and the round trip in which the clock was
    compared, both in ns. preloads: how often each worker thread of a run began to fill its part of the key space.
    deletions: when the keys of a run began to be deleted. unfenced: worker processes that went on loading although
    their agent's lease had ended, and by how many ns. done: operations of each run that the target has done. deleted:
    how many these were when the keys of the run began to be deleted. at_work: agents that its coordinator knew and that
    loaded the target when the counters were read after the run. twice: pools of a run that a worker process began to
    load while another agent still did.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.draw = random.Random(scenario.seed)
        self.now_ns = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.journals: dict[str, list[AnyRecord]] = {}
        self.ends: dict[str, steps.End] = {}
        self.interrupted: set[str] = set()
        self.coordinator_offset_ns = self.draw.randint(0, 9) * HOUR_NS
        self.agents: list[SimulatedAgent] = []
        self.coordinator: SimulatedCoordinator | None = None
        self.coordinators_to_come = 0
        self.starts: list[tuple[int, int]] = []
        self.preloads: dict[str, Counter[int]] = {}
        self.deletions: dict[str, list[int]] = {}
        self.unfenced: list[int] = []
        self.done: Counter[str] = Counter()
        self.deleted: dict[str, int] = {}
        self.at_work: dict[str, list[str]] = {}
        self.twice: list[tuple[str, int]] = []
        self._open_coordinator()
        for number in range(scenario.agents):
            self.after(self.draw.uniform(0, 2), lambda number=number: self.start_agent(number))  # type: ignore[misc]
        for fault in scenario.faults:
            self.after(fault.at_s, lambda fault=fault: self.inflict(fault))  # type: ignore[misc]

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now_ns + round(seconds * NS_PER_S), what)

    def at(self, at_ns: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(at_ns, self.now_ns), next(self._order), what))

    def play_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Play for some seconds, or until a condition is true."""
        end_ns = self.now_ns + round(seconds * NS_PER_S)
        while self._queue and self._queue[0][0] <= end_ns and not until():
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()
        if not until():
            self.now_ns = end_ns

    def play(self) -> None:
        """Play until the fleet rests, or the end of time."""
        while self._queue and self.now_ns < END_OF_TIME_S * NS_PER_S:
            self.now_ns, _, what = heapq.heappop(self._queue)
            what()
            if self.rests:
                return

    @property
    def rests(self) -> bool:
        """Whether no run is active or about to start, and no agent has results left."""
        if self.coordinators_to_come or self.coordinator is not None or len(self.agents) < self.scenario.agents:
            return False
        return all(
            not agent.alive or (agent.session.state is AgentState.IDLE and not agent.session.kept)
            for agent in self.agents
        )

    # -- participants

    @property
    def loading(self) -> list[SimulatedAgent]:
        """Agents whose worker processes may write to the target now."""
        return [agent for agent in self.agents if any(worker.is_loading for worker in agent.workers.values())]

    def _open_coordinator(self, resume: str | None = None) -> None:
        run_id = resume or f"run-{len(self.journals) + 1}"
        self.coordinator = SimulatedCoordinator(self, run_id, resumed=resume is not None)
        for agent in self.agents:
            agent.reconnect()

    def start_agent(self, number: int) -> None:
        agent = SimulatedAgent(self, number)
        self.agents.append(agent)
        agent.reconnect()

    def close_coordinator(self) -> None:
        """Remove the coordinator and drop all its connections."""
        self.coordinator = None
        for agent in self.agents:
            for name in agent.wires:
                agent.drop(name)

    # -- faults

    def inflict(self, fault: Fault) -> None:
        """Inflict a fault now."""
        living = [agent for agent in self.agents if agent.alive]
        agent = living[fault.agent % len(living)] if living else None
        coordinator = self.coordinator
        until_ns = self.now_ns + round(fault.seconds * NS_PER_S)
        match fault.kind:
            case Kind.CONTROL_DOWN | Kind.METRICS_DOWN | Kind.LINKS_DOWN if agent:
                names = {Kind.CONTROL_DOWN: ("control",), Kind.METRICS_DOWN: ("metrics",)}
                for name in names.get(fault.kind, ("control", "metrics")):
                    agent.wires[name].down_until_ns = until_ns
                    agent.drop(name)
            case Kind.BLACKHOLE if agent:
                for wire in agent.wires.values():
                    wire.swallow_until_ns = until_ns
            case Kind.HELD_BACK if agent:
                for wire in agent.wires.values():
                    wire.keep_until_ns = until_ns
            case Kind.AGENT_KILLED if agent:
                agent.die()
            case Kind.AGENT_RESTARTED if agent:
                agent.die()
                number = agent.number
                self.after(fault.seconds, lambda: self.start_agent(number))
            case Kind.AGENT_TERMINATED if agent:
                agent.happens(events.Terminated())
            case Kind.AGENT_STOPPED if agent:
                agent.stop_until(until_ns)
            case Kind.WORKER_KILLED if agent:
                agent.kill_a_worker()
            case Kind.WORKER_STUCK if agent:
                agent.stick_a_worker()
            case Kind.INTERRUPTED if coordinator:
                coordinator.happens(steps.Interrupted())
            case Kind.HELD_UP if coordinator:
                coordinator.held_up_until_ns = until_ns
            case Kind.KILLED | Kind.REPLACED if coordinator:
                # Not between two events, but between the actions of one of the next events.
                coordinator.actions_to_live = self.draw.randint(0, 6)
                self._follow(coordinator, fault)
            case Kind.FULL if coordinator:
                coordinator.is_full = True
                self._follow(coordinator, fault)
            case Kind.COLLECTED if coordinator is None and not self.coordinators_to_come:
                first = fold(self.journals["run-1"])
                if first.started is not None and not first.is_complete:
                    self._open_coordinator("run-1")

    def _follow(self, coordinator: SimulatedCoordinator, fault: Fault) -> None:
        """Start another coordinator after one that ended early."""
        self.coordinators_to_come += 1

        def follow() -> None:
            self.coordinators_to_come -= 1
            if self.coordinator is not None:
                if self.coordinator is not coordinator or coordinator.end is not None:
                    return
                self.close_coordinator()
            written = fold(self.journals[coordinator.run_id])
            if fault.kind is not Kind.REPLACED and written.started is not None and written.closed is None:
                if not was_interrupted(self.journals[coordinator.run_id]):
                    self.interrupted.discard(coordinator.run_id)  # it was killed before it could record the interrupt
                self._open_coordinator(coordinator.run_id)
            elif written.closed is None:
                self._open_coordinator()

        self.after(fault.seconds, follow)


def requests_of(scenario: Scenario) -> int | None:
    """The requests of the whole fleet."""
    pools = scenario.pools or scenario.expected * scenario.processes
    return None if scenario.requests is None else scenario.requests * pools


def was_interrupted(records: list[AnyRecord]) -> bool:
    """Whether the run was interrupted, and not only its clean-up."""
    return any(isinstance(record, StopDecided) and record.exit_code == EXIT_INTERRUPTED for record in records)


class SimulatedCoordinator:
    """The loop around a run."""

    def __init__(self, world: World, run_id: str, *, resumed: bool) -> None:
        self._world, self.run_id = world, run_id
        scenario = world.scenario
        plan = fleet_plan(
            duration_s=scenario.duration_s,
            requests=requests_of(scenario),
            pools=scenario.pools,
            lease_s=scenario.lease_s,
            wait_s=20.0,
            prepare_s=20.0,
            drain_s=2.0,
        )
        if scenario.staged and scenario.duration_s is not None:
            quarter_s = scenario.duration_s / 4
            load = Load(stages=(stage(quarter_s, 5), stage(2 * quarter_s)), warmup_s=Seconds(quarter_s))
            plan = msgspec.structs.replace(plan, load=load)
        plan = msgspec.structs.replace(
            plan,
            workload=msgspec.structs.replace(
                plan.workload,
                preload=(Preload(key_maximum=Count(PRELOADED_KEYS), times=2),) if scenario.preloads else (),
                clean_up=CleanUp.KEYS if scenario.cleans else CleanUp.NONE,
            ),
            fleet=msgspec.structs.replace(
                plan.fleet,
                expect_agents=Count(scenario.expected),
                on_agent_loss=scenario.on_agent_loss,
                at_least=None if scenario.at_least is None else Count(scenario.at_least),
            ),
        )
        if scenario.second:
            first = PlanScenario(name="first", pools=plan.pools, workload=plan.workload, load=plan.load)
            workload = msgspec.structs.replace(plan.workload, preload=())
            second = msgspec.structs.replace(first, name="second", start_s=Seconds(1.5), workload=workload)
            plan = msgspec.structs.replace(plan, scenarios=(first, second))
        setup = setup_for(plan, scenario.expected, run_id)
        if scenario.slow:
            setup = replace(setup, agents_each_second=1)
        self.records = world.journals.setdefault(run_id, [])
        self.aggregate: Aggregate = fold(self.records)
        self.run = Run(setup, self.clock_ns, self.aggregate)
        if resumed:
            started = self.aggregate.started
            assert started is not None
            after = after_load(self.aggregate)
            self.run = Run.resumed(
                setup,
                started.t0_ns,
                journaled_agents(self.aggregate),
                self.clock_ns,
                after=after,
                written=self.aggregate,
                ended=self.aggregate.closed is not None,
            )
        self.end: steps.End | None = None
        self.held_up_until_ns = 0
        self.actions_to_live: int | None = None
        self.is_full = self.is_broken = False
        self._inbox: list[steps.RunEvent] = []
        self._is_awake = False
        self._tick()

    @property
    def clock_ns(self) -> int:
        return self._world.now_ns + self._world.coordinator_offset_ns

    @property
    def is_there(self) -> bool:
        return self._world.coordinator is self

    def happens(self, event: steps.RunEvent) -> None:
        """Queue an event for the loop."""
        self._inbox.append(event)
        if not self._is_awake:
            self._is_awake = True
            self._world.at(self.held_up_until_ns, self._loop)

    def _tick(self) -> None:
        if self.is_there or self._world.now_ns == 0 or self._world.coordinator is None:
            self._world.at(self.held_up_until_ns, self._loop)
        if self.is_there or self.end is None:
            self._world.after(TICK_S, self._tick)

    def _loop(self) -> None:
        self._is_awake = False
        if not self.is_there or self.is_broken:
            return
        if self._world.now_ns < self.held_up_until_ns:
            self._world.at(self.held_up_until_ns, self._loop)
            return
        inbox, self._inbox = self._inbox[:64], self._inbox[64:]
        for event in [*inbox, steps.Tick()]:
            # In these phases, an interrupt does not end the run.
            cleans = self.run.state.phase in (Phase.CLEANING, Phase.COLLECTING)
            if isinstance(event, steps.Interrupted) and self.end is None and not cleans:
                self._world.interrupted.add(self.run_id)
            for action in self.run.handle(event, self.clock_ns):
                if not self._perform(action):
                    return

    def _perform(self, action: steps.Action) -> bool:
        """Perform an action. Returns whether the coordinator is still alive."""
        if self.actions_to_live is not None:
            self.actions_to_live -= 1
            if self.actions_to_live < 0:
                self._world.close_coordinator()
                return False
        match action:
            case steps.Send():
                self._send(action)
            case steps.Write() if self.is_full:
                self._break_off()
                return False
            case steps.Write(record):
                self.aggregate.apply(record)
                self.records.append(record)
            case steps.ReadServer(when):
                self._world.after(self._world.draw.uniform(0, 1), lambda: self._read_server(when))
            case steps.DeleteKeys():
                self._world.deletions.setdefault(self.run_id, []).append(self._world.now_ns)
                self._world.deleted[self.run_id] = self._world.done[self.run_id]
                self._deletes_until(self._world.draw.uniform(0, 8), "")
            case steps.StopDeleting():
                self._deletes_until(0.1, "interrupted")
            case steps.End():
                self.end = self._world.ends[self.run_id] = action
            case steps.Leave():
                self._leave()
                return False
        return True

    def _break_off(self) -> None:
        """Stop the agents, and wait for their answers at most as long as the real loop."""
        self.is_broken = True
        members = list(self.run.state.registry)
        if self.aggregate.closed is not None:
            members = []
        elif self.aggregate.started is not None:
            members = [member for member in members if member.takes_part and member.final is None]
        order = Stop(drain=True, reason="no space left") if self.aggregate.started is not None else Dismiss(exit_code=2)
        for member in members:
            envelope = Envelope(run_id=self.run_id, incarnation=member.incarnation, message=order)
            self._send(steps.Send(member.routing_id, envelope))
        self._world.after(self._world.draw.uniform(0.1, 3.0), self._leave)

    def _read_server(self, when: Reading) -> None:
        if when is Reading.AFTER:
            known = [agent for agent in self._world.loading if self.run.state.registry.find(agent.incarnation)]
            self._world.at_work[self.run_id] = [agent.incarnation for agent in known]
        calls = {"get": self._world.done[self.run_id]}
        self.happens(steps.Counted(CountersRead(when=when, server_run_id="server", calls=calls)))

    def _deletes_until(self, seconds: float, error: str) -> None:
        done = steps.Cleaned(CleanedUp(deleted=1, left=None if error else 0, took_ns=1, error=error))
        self._world.after(seconds, lambda: self.happens(done))

    def _leave(self) -> None:
        if self.is_there:
            self._world.close_coordinator()

    def _send(self, send: steps.Send) -> None:
        for agent in self._world.agents:
            for name in agent.wires:
                if agent.alive and agent.routing_id(name) == send.routing_id:
                    agent.carry(name, "to", lambda agent=agent: agent.happens(events.Received(send.envelope)))  # type: ignore[misc]

    def receives(self, routing_id: bytes, envelope: Envelope) -> None:
        """Receive a message."""
        self.happens(steps.FromAgent(routing_id, envelope))


class SimulatedAgent:
    """The loop around a session, with its worker processes."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self.number = world, number
        self.offset_ns = world.draw.randint(-5, 5) * HOUR_NS + 7 * HOUR_NS
        identity = events.Identity(
            name=f"web{number}",
            host=f"host{number}",
            pid=number,
            processes=world.scenario.processes,
            secret=f"secret-{len(world.agents)}",
            version="0.1",
            once=world.scenario.once,
        )
        self.incarnation = identity.incarnation
        self.session = Session(identity, self.clock_ns)
        self.alive = True
        self.exit: events.Exit | None = None
        self.wires = {"control": Wire(wanted=True), "metrics": Wire()}
        self.workers: dict[int, SimulatedWorker] = {}
        self.reported: Counter[str] = Counter()
        self.by_stage: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        self.most_held = 0
        self.leased_ns = 0
        self.stopped_until_ns = 0
        self._inbox: list[tuple[events.AgentEvent, SimulatedWorker | None]] = []
        self._tick()

    @property
    def clock_ns(self) -> int:
        return self._world.now_ns + self.offset_ns

    def _tick(self) -> None:
        if self.alive:
            if self._world.now_ns >= self.stopped_until_ns:
                self._handle(events.Tick())
            self._world.after(TICK_S, self._tick)

    def stop_until(self, until_ns: int) -> None:
        """Stop the process until this time."""
        self.stopped_until_ns = max(self.stopped_until_ns, until_ns)
        self._world.at(self.stopped_until_ns, self._wake)

    def _wake(self) -> None:
        if self._world.now_ns < self.stopped_until_ns:
            return
        waiting, self._inbox = self._inbox, []
        for event, worker in waiting:
            if worker is None or self.workers.get(worker.number) is worker:
                self._handle(event)

    def happens(self, event: events.AgentEvent, worker: SimulatedWorker | None = None) -> None:
        """Handle an event at once, or after the stop. worker: the sender, for an event from a pipe."""
        if self._world.now_ns < self.stopped_until_ns:
            self._inbox.append((event, worker))
        else:
            self._handle(event)

    def _handle(self, event: events.AgentEvent) -> None:
        """Let the session handle an event, and perform its actions."""
        if not self.alive:
            return
        if isinstance(event, events.Received):
            match event.envelope.message:
                case HeartbeatReply(sent_ns=sent_ns) if event.envelope.run_id == self.session.run_id:
                    self.leased_ns = max(self.leased_ns, sent_ns - self.offset_ns)
                case Prepare():
                    self.leased_ns = self._world.now_ns
        for action in self.session.handle(event, self.clock_ns):
            if self.alive:
                self._perform(action)
        self.most_held = max(self.most_held, len(self.session.outbox))

    def _perform(self, action: events.Action) -> None:
        match action:
            case events.Send(envelope, metrics):
                self._send("metrics" if metrics else "control", envelope)
            case events.ConnectMetrics():
                self.wires["metrics"].wanted = True
                self.reconnect()
            case events.Spawn(_, assignments):
                self.kill_workers()
                self.workers = {n: SimulatedWorker(self._world, self, n, part) for n, part in enumerate(assignments)}
            case events.OrderWorkers(order):
                for worker in list(self.workers.values()):
                    worker.ordered(order)  # type: ignore[arg-type]
            case events.RenewLease(until_ns):
                for worker in self.workers.values():
                    worker.renewed(until_ns - self.offset_ns)
            case events.KillWorkers():
                self.kill_workers()
            case events.Exit():
                self.exit = action
                self.die()

    def _send(self, name: str, envelope: Envelope) -> None:
        coordinator = self._world.coordinator
        if coordinator is not None and self.wires[name].up:
            routing_id = self.routing_id(name)
            self.carry(name, "from", lambda: coordinator.receives(routing_id, envelope))

    # -- wires

    def routing_id(self, name: str) -> bytes:
        """The routing id of the current connection."""
        return f"{self.incarnation}/{name}/{self.wires[name].connection}".encode()

    def carry(self, name: str, way: str, deliver: Callable[[], None]) -> None:
        """Deliver a message over a link, unless it is lost."""
        world, wire = self._world, self.wires[name]
        if not wire.up or world.now_ns < wire.swallow_until_ns or world.draw.random() < world.scenario.loss:
            return
        coordinator, connection = world.coordinator, wire.connection
        sent_ns = max(world.now_ns, wire.keep_until_ns)
        wire.last_ns[way] = max(wire.last_ns[way], sent_ns + round(world.draw.uniform(0, LATENCY_S) * NS_PER_S))

        def arrive() -> None:
            if wire.connection == connection and world.coordinator is coordinator:
                deliver()

        for _ in range(2 if world.draw.random() < world.scenario.repeats else 1):
            world.at(wire.last_ns[way], arrive)

    def drop(self, name: str) -> None:
        """Break a connection, and reconnect later."""
        wire = self.wires[name]
        if wire.up:
            wire.up = False
            wire.connection += 1
            self.happens(events.LinkDown() if name == "control" else events.MetricsLinkDown("no TCP connection"))
        self.reconnect()

    def reconnect(self) -> None:
        """Try repeatedly to open the wanted connections."""
        for name in self.wires:
            self._world.after(self._world.draw.uniform(0.05, 1.0), lambda name=name: self._connect(name))  # type: ignore[misc]

    def _connect(self, name: str) -> None:
        wire = self.wires[name]
        if wire.up or not wire.wanted or not self.alive or self._world.coordinator is None:
            return
        if self._world.now_ns < (from_ns := max(wire.down_until_ns, self.stopped_until_ns)):
            self._world.at(from_ns, self.reconnect)
            return
        wire.up = True
        wire.connection += 1
        self.happens(events.LinkUp() if name == "control" else events.MetricsLinkUp())

    # -- processes

    def kill_workers(self) -> None:
        for worker in self.workers.values():
            worker.alive = False
        self.workers.clear()

    def die(self) -> None:
        self.alive = False
        self.kill_workers()
        for wire in self.wires.values():
            wire.up = False
            wire.connection += 1

    def kill_a_worker(self) -> None:
        for worker in self.workers.values():
            if worker.alive:
                worker.exits(-9)
                return

    def stick_a_worker(self) -> None:
        for worker in self.workers.values():
            worker.is_stuck = True
            return

    def hears(self, worker: SimulatedWorker, message: object) -> None:
        """Receive a report from a pipe."""
        if self.alive and self.workers.get(worker.number) is worker:
            if isinstance(message, WorkerMetrics):
                for part in message.intervals:
                    self.reported[self.session.run_id] += part.operations
                    self.by_stage[self.session.run_id, part.stage].update(figures(part))
            self.happens(events.FromWorker(worker.number, message), worker)  # type: ignore[arg-type]


def figures(part: IntervalMetrics) -> dict[str, int]:
    """Figures that must reach the journal unchanged."""
    messages = [pool.deliveries for pool in part.pools.values()]
    return {
        "issued": part.issued,
        "operations": part.operations,
        "unsent": part.unsent,
        "expected": sum(each.expected for each in messages),
        "delivered": sum(each.delivered for each in messages),
        "foreign": sum(each.foreign for each in messages),
    }


class SimulatedWorker:
    """A worker process with a few operations per second, some of them late, some after the end."""

    def __init__(self, world: World, agent: SimulatedAgent, number: int, assignment: Assignment) -> None:
        self._world, self._agent, self.number = world, agent, number
        self._assignment = assignment
        self._run_id = agent.session.run_id
        self.alive = True
        self.is_stuck = False
        self._t0_ns = 0
        self._second = 0
        self._done = 0
        self._left = self._quota()
        self._first_second = 0
        self._ends_ns = NEVER_NS
        self._over = False
        self._lease_ends_ns = 0
        self._is_started = self._is_ending = self._is_fenced = False
        self._preloaded: Preloaded | None = None
        world.after(
            world.draw.uniform(0.01, 1.0),
            self._preload if world.scenario.preloads and assignment.preloads else self._prepared,
        )

    def _preload(self, done: int = 0) -> None:
        """Preload in ten steps, which may take longer than agents may be silent."""
        if not self.alive or self.is_stuck:
            return
        if self._world.now_ns >= self._lease_ends_ns:
            self._say(Failed(kind=FailureKind.AGENT, reason="it was not renewed"))
            self.exits(0)
            return
        plan, threads = self._assignment.plan, self._assignment.threads
        total = sum(preload_commands(plan, thread, self._assignment.threads_total) for thread in threads)
        if total and not done:
            self._world.preloads.setdefault(self._agent.session.run_id, Counter()).update(threads)
        self._say(Preparing(step=PreparationStep.PRELOAD, done=done, total=total))
        if done < total:
            following = min(total, done + max(1, total // 10))
            self._world.after(self._world.draw.uniform(0.05, 0.8), lambda: self._preload(following))
            return
        self._preloaded = (
            Preloaded(keys=total // 2, commands=total, bytes_out=total, took_ns=NS_PER_S) if total else None
        )
        self._prepared()

    def _prepared(self) -> None:
        if self.is_stuck:
            self._say(Failed(kind=FailureKind.TARGET, reason="the target does not answer"))
            self.exits(1)
            return
        self._say(Preparing(step=PreparationStep.CONNECTIONS, done=1, total=1))
        self._say(Prepared(processes=1, connections_open=1, preloaded=self._preloaded))

    def _quota(self) -> int | None:
        requests, total = self._assignment.plan.load.requests, self._assignment.threads_total
        if requests is None:
            return None
        return sum(quota_of(requests, thread, total) or 0 for thread in self._assignment.threads)

    def _begin(self) -> None:
        """Begin the load. No other agent may be loading with the same pools."""
        pools = {share.number for share in self._assignment.pools}
        for agent in self._world.loading:
            if agent is self._agent or not self.is_loading:
                continue
            for worker in agent.workers.values():
                if worker.is_loading and worker._run_id == self._run_id:
                    both = pools & {share.number for share in worker._assignment.pools}
                    self._world.twice += [(self._run_id, number) for number in both]

    def _say(self, message: object) -> None:
        if self.alive:
            self._agent.hears(self, message)

    @property
    def is_loading(self) -> bool:
        """Whether the worker may write to the target."""
        return self.alive and self._is_started and not self._over and not self.is_stuck

    def exits(self, code: int) -> None:
        """End the process. The agent reads the end of its pipe."""
        if self.alive:
            self.alive = False
            if self._agent.workers.get(self.number) is self:
                self._agent.happens(events.WorkerExited(self.number, code), self)

    def renewed(self, until_ns: int) -> None:
        self._lease_ends_ns = until_ns
        self._world.at(until_ns, self._fence)

    def _fence(self) -> None:
        loads = self._is_started and not self._is_ending and not self.is_stuck
        if loads and self._world.now_ns >= self._lease_ends_ns:
            self._is_ending = self._is_fenced = True
            self._world.after(self._world.draw.uniform(0, 1.0), self._finish)

    def ordered(self, order: WorkerStart | WorkerStop) -> None:
        if isinstance(order, WorkerStart) and self._world.now_ns >= self._lease_ends_ns:
            # Like a real worker process: the lease has expired, so it begins nothing.
            self._t0_ns = order.t0_ns - self._agent.offset_ns
            self._left, self._is_fenced, self._is_ending = 0, True, True
            self._world.after(0.01, self._finish)
        elif isinstance(order, WorkerStart):
            self._t0_ns = order.t0_ns - self._agent.offset_ns
            self._is_started = True
            coordinator, clock = self._world.coordinator, self._agent.session._link.clock.best
            if coordinator is not None and coordinator.run.state.t0_ns is not None and clock is not None:
                error_ns = self._t0_ns - (coordinator.run.state.t0_ns - self._world.coordinator_offset_ns)
                self._world.starts.append((error_ns, clock.rtt_ns))
            begin_ns = self._t0_ns
            if (takeover := order.takeover) is not None:
                begin_ns += takeover.from_ns
                self._first_second = self._second = takeover.from_ns // NS_PER_S
                left = dict(takeover.remaining or ())
                self._left = sum(left[share.number] for share in self._assignment.pools) if left else None
            self._world.at(begin_ns, self._begin)
            self._world.at(begin_ns + NS_PER_S, self._report)
            end_ns = self._assignment.timeline.end_ns
            self._ends_ns = NEVER_NS if end_ns is None else self._t0_ns + end_ns
            if end_ns is not None:
                self._world.at(self._t0_ns + end_ns, self._finish)
            self._fence()
        elif not self.is_stuck:
            self._is_ending = True
            self._world.after(self._world.draw.uniform(0, 1.0) if order.drain else 0.0, self._finish)

    def _intervals(self, through: int) -> tuple[IntervalMetrics, ...]:
        draw = self._world.draw
        seconds = [second for second in range(self._second, through + 1) if draw.random() < 0.9]
        if self._second > self._first_second and draw.random() < 0.3:
            seconds.insert(0, draw.randint(self._first_second, self._second - 1))
        parts = []
        for second in seconds:
            count = draw.randint(0, 3)
            if self._left is not None:
                count = min(count, self._left)
                self._left -= 0 if self._world.scenario.dead else count
            self._done += count
            self._world.done[self._run_id] += count
            leg = self._assignment.first_leg + draw.randrange(len(self._assignment.timeline.legs))
            done, failed = (0, count) if self._world.scenario.dead else (count, 0)
            part = interval(second, done, failed=failed, stage=leg)
            messages = DeliveryMetrics(expected=count, delivered=draw.randint(0, count), foreign=draw.randint(0, 1))
            main = msgspec.structs.replace(part.pools["main"], deliveries=messages)
            parts.append(msgspec.structs.replace(part, unsent=draw.randint(0, 1), pools={"main": main}))
        self._second = max(self._second, through + 1)
        return tuple(parts)

    def _report(self) -> None:
        if not self.alive or self._over:
            return
        if self.is_stuck and self._world.now_ns >= min(self._lease_ends_ns, self._ends_ns):
            return  # it never ends, but begins no further operation
        unheard_ns = self._world.now_ns - self._agent.leased_ns
        lease_ns = round(self._world.scenario.lease_s * NS_PER_S)
        if unheard_ns > lease_ns and not self._is_ending and not self.is_stuck:
            self._world.unfenced.append(unheard_ns - lease_ns)
        through = max(self._second, (self._world.now_ns - self._t0_ns) // NS_PER_S - 1)
        self._say(WorkerMetrics(through=through, intervals=self._intervals(through)))
        if self._left == 0:
            self._finish()
        self._world.after(1.0, self._report)

    def _finish(self) -> None:
        if not self.alive or self._over or self.is_stuck:
            return
        self._over = True
        through = max(self._second - 1, (self._world.now_ns - self._t0_ns) // NS_PER_S, self._first_second)
        self._say(WorkerMetrics(through=through, intervals=self._intervals(through)))
        ran_ns = max(0, self._world.now_ns - self._t0_ns)
        self._say(
            WorkerFinal(
                issued=self._done,
                counted=self._done,
                transactions=0,
                start_skew_ns=1,
                ran_ns=ran_ns,
                drained=True,
                fenced=self._is_fenced,
            )
        )
        self._world.after(0.01, lambda: self.exits(0))

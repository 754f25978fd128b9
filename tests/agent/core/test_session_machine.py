"""After any sequence of events, an agent comes to rest, its load is fenced, and its results are complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.core.actions import (
    Action,
    AgentEvent,
    Exit,
    KillWorkers,
    LinkDown,
    LinkRefused,
    LinkUp,
    MetricsLinkUp,
    OrderWorkers,
    RenewLease,
    Spawn,
    Terminated,
    Tick,
    WorkerExited,
)
from agent.core.session import GOODBYE_NS, KEEP_LEASES, OVERTIME_NS
from common.protocol.messages import (
    AgentState,
    CoordinatorMessage,
    Dismiss,
    Failed,
    FailureKind,
    Final,
    FinalAck,
    FrameAck,
    Heartbeat,
    MetricsFrame,
    PreparationStep,
    Prepare,
    Preparing,
    Start,
    Stop,
    WorkerFinal,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S
from tests.support.examples import tried
from tests.support.protocol import (
    OTHER_RUN_ID,
    RUN_ID,
    AgentBench,
    assignment,
    fleet_plan,
    interval,
    ready,
    said,
    welcome,
)

LEASE_S, DRAIN_S = 4.0, 2.0
PLANS = (
    fleet_plan(duration_s=3.0, lease_s=LEASE_S, drain_s=DRAIN_S),
    fleet_plan(duration_s=None, requests=1000, lease_s=LEASE_S, drain_s=DRAIN_S),
)
LEASE_NS = round(LEASE_S * NS_PER_S)
BOUND_S = KEEP_LEASES * LEASE_S + LEASE_S + DRAIN_S + (OVERTIME_NS + GOODBYE_NS) / NS_PER_S + 5
"""After this silence, an agent must have come to rest, even with stuck worker processes."""


@dataclass(slots=True)
class PlayedWorker:
    """A worker process as its agent knows it. It ends its load by itself when its lease has run out, unless stuck."""

    is_prepared: bool = False
    is_started: bool = False
    is_over: bool = False
    is_stuck: bool = False
    lease_ends_ns: int = 0
    second: int = 0
    reported: int = 0

    def loads(self, now_ns: int) -> bool:
        return self.is_started and not self.is_over and (self.is_stuck or now_ns < self.lease_ends_ns)


class AgentUnderAnyEvents(RuleBasedStateMachine):
    """A session, its worker processes, and anything that a coordinator, a link or a signal may do."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = AgentBench(processes=2)
        self.workers: dict[int, PlayedWorker] = {}
        self.heard_ns = 0
        self.reported = 0
        self.frames: dict[int, MetricsFrame] = {}
        self.left = False

    # -- what happens

    def happens(self, event: AgentEvent) -> None:
        if not self.left:
            self.perform(self.bench.do(event))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(_, assignments):
                    assert not self.loading, "worker processes of another run still load the target"
                    self.heard_ns = self.bench.now_ns
                    self.workers = {number: PlayedWorker() for number in range(len(assignments))}
                    self.takes_frames()
                    self.frames, self.reported = {}, 0
                case RenewLease(until_ns):
                    assert until_ns <= self.heard_ns + LEASE_NS
                    for worker in self.workers.values():
                        worker.lease_ends_ns = until_ns
                case OrderWorkers(WorkerStart()):
                    for worker in self.workers.values():
                        worker.is_started = True
                case OrderWorkers(WorkerStop()):
                    self.end_load(lambda worker: not worker.is_stuck)
                case KillWorkers():
                    self.workers.clear()
                case Exit():
                    self.left = True
        for final in said(actions, Final):
            assert all(worker.is_over for worker in self.workers.values())
            assert final.counted == self.reported
            assert final.next_seq == self.bench.session.outbox.next_seq
            self.takes_frames()
            frames = [self.frames[seq] for seq in range(final.next_seq)]
            assert sum(part.operations for frame in frames for part in frame.intervals) == self.reported

    def end_load(self, of_which: Callable[[PlayedWorker], bool], *, fenced: bool = False) -> None:
        for number, worker in list(self.workers.items()):
            if worker.is_started and not worker.is_over and of_which(worker):
                self.finishes(number, fenced=fenced)

    @property
    def loading(self) -> bool:
        return any(worker.loads(self.bench.now_ns) for worker in self.workers.values())

    def takes_frames(self) -> None:
        for frame in self.bench.frames():
            assert self.frames.setdefault(frame.seq, frame) == frame, "a frame was sent again with another content"

    # -- the coordinator

    def hears(self, message: CoordinatorMessage, run_id: str = RUN_ID, *, ours: bool = True) -> None:
        if ours and run_id == self.bench.session.run_id:
            self.heard_ns = self.bench.now_ns
        if not self.left:
            self.perform(self.bench.hears(message, run_id, "" if ours else "another's"))

    @initialize(plan=st.sampled_from(PLANS), pools=st.integers(0, 3), at_once=st.booleans())
    def begins(self, plan: object, pools: int, at_once: bool) -> None:
        if at_once:
            self.runs(plan, pools)

    @rule(plan=st.sampled_from(PLANS), pools=st.integers(0, 3))
    def runs(self, plan: object, pools: int) -> None:
        """All goes well up to the start."""
        self.happens(LinkUp())
        self.hears(welcome())
        self.lives(0.1)
        self.hears(Prepare(assignments=(assignment(plan, pools),), plan_hash="hash"))  # type: ignore[arg-type]
        for number in list(self.workers):
            self.prepares(number)
        self.hears(Start(t0_ns=self.bench.now_ns + self.bench.offset_ns))

    @rule(
        message=st.sampled_from(
            [
                welcome(),
                Stop(drain=True, reason="stopped"),
                Stop(drain=False, reason="stopped"),
                FinalAck(),
                Dismiss(exit_code=0),
                *(
                    Prepare(assignments=(assignment(plan, pools),), plan_hash="hash")
                    for plan in PLANS
                    for pools in (0, 2)
                ),
            ]
        )
        | st.integers(-5, 5).map(lambda seconds: Start(t0_ns=(1_000 + seconds) * NS_PER_S))
        | st.integers(0, 40).map(lambda next_seq: FrameAck(next_seq=next_seq)),
        run_id=st.sampled_from([RUN_ID, RUN_ID, RUN_ID, OTHER_RUN_ID, ""]),
        ours=st.sampled_from([True, True, True, False]),
    )
    def hears_anything(self, message: CoordinatorMessage, run_id: str, ours: bool) -> None:
        self.hears(message, run_id, ours=ours)

    # -- the links, signals, time

    @rule(event=st.sampled_from([LinkUp(), LinkDown(), MetricsLinkUp(), LinkRefused(), MetricsLinkUp()]))
    def link(self, event: AgentEvent) -> None:
        self.happens(event)

    @rule(chance=st.integers(0, 9))
    def terminated(self, chance: int) -> None:
        if chance == 0:
            self.happens(Terminated())

    @rule(seconds=st.floats(0.1, 3.0))
    def lives(self, seconds: float) -> None:
        """Time passes, and the coordinator of the run answers each heartbeat."""
        self.passes(seconds, hearing=self.bench.session.run_id or RUN_ID)

    @rule(seconds=st.floats(0.1, 10.0))
    def hears_nothing(self, seconds: float) -> None:
        self.passes(seconds)

    @rule(seconds=st.floats(1.0, 10.0), suspended=st.booleans())
    def does_not_run(self, seconds: float, suspended: bool) -> None:
        """It is stopped, or its machine is suspended, whose clock then stands."""
        elapsed_ns = round(seconds * NS_PER_S)
        if suspended:
            self.heard_ns -= elapsed_ns
            for worker in self.workers.values():
                worker.lease_ends_ns -= elapsed_ns
        else:
            self.bench.now_ns += elapsed_ns
        self.fences()
        self.happens(Tick(suspended_ns=elapsed_ns if suspended else 0))

    def passes(self, seconds: float, hearing: str = "", every_s: float = 0.1) -> None:
        for _ in range(round(seconds / every_s)):
            self.bench.now_ns += round(every_s * NS_PER_S)
            self.fences()
            if self.left:
                return
            actions = self.bench.do(Tick())
            self.perform(actions)
            for heartbeat in said(actions, Heartbeat) if hearing else ():
                self.bench.answer(heartbeat, hearing)
                if hearing == self.bench.session.run_id:
                    self.heard_ns = self.bench.now_ns

    def fences(self) -> None:
        """Worker processes whose lease has run out end their load by themselves."""
        self.end_load(
            lambda worker: not worker.is_stuck and self.bench.now_ns >= worker.lease_ends_ns,
            fenced=True,
        )

    # -- worker processes

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), kind=st.sampled_from(["prepares", "progress", "reports", "reports", "finishes", "fails"]))
    def a_worker_says(self, data: st.DataObject, kind: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.workers)))
        if self.workers[number].is_over:
            return
        match kind:
            case "prepares":
                self.prepares(number)
            case "progress":
                self.worker(number, Preparing(step=PreparationStep.CONNECTIONS, done=1, total=2))
            case "reports":
                self.reports(number, data.draw(st.integers(0, 3)))
            case "finishes" if self.workers[number].is_started:
                self.finishes(number)
            case "fails":
                self.worker(number, Failed(kind=FailureKind.TARGET, reason="no answer"))
                self.exits(number, 1)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), stuck=st.booleans())
    def a_worker_dies_or_gets_stuck(self, data: st.DataObject, stuck: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.workers)))
        if stuck:
            self.workers[number].is_stuck = True
        else:
            self.exits(number, -9)

    @precondition(lambda self: any(worker.is_started for worker in self.workers.values()))
    @rule(operations=st.integers(1, 3))
    def the_load_ends(self, operations: int) -> None:
        """Everything goes well until the agent sends `Final`."""
        for number, worker in list(self.workers.items()):
            self.reports(number, operations)
            if not worker.is_over:
                self.finishes(number)
        self.takes_frames()
        self.lives(1.5)

    def worker(self, number: int, message: object) -> None:
        if not self.left:
            self.perform(self.bench.worker(number, message))

    def prepares(self, number: int) -> None:
        worker = self.workers[number]
        if not worker.is_prepared and not worker.is_over:
            worker.is_prepared = True
            self.worker(number, ready())

    def reports(self, number: int, operations: int) -> None:
        worker = self.workers[number]
        if not worker.is_started or worker.is_over:
            return
        self.reported += operations
        worker.reported += operations
        worker.second += 1
        self.worker(number, WorkerMetrics(through=worker.second, intervals=(interval(worker.second, operations),)))

    def finishes(self, number: int, *, fenced: bool = False) -> None:
        worker = self.workers[number]
        worker.is_over = True
        final = WorkerFinal(
            issued=worker.reported,
            counted=worker.reported,
            transactions=0,
            start_skew_ns=1,
            ran_ns=worker.second * NS_PER_S,
            drained=True,
            fenced=fenced,
        )
        self.worker(number, final)

    def exits(self, number: int, code: int) -> None:
        if number in self.workers:
            self.workers[number].is_over = True
            self.happens(WorkerExited(number, code))

    # -- what must hold

    @invariant()
    def an_idle_agent_has_no_worker_processes(self) -> None:
        if self.left or self.bench.state in (AgentState.IDLE, AgentState.DONE):
            assert all(worker.is_over for worker in self.workers.values())

    @invariant()
    def only_a_started_run_has_load(self) -> None:
        if self.loading and not self.left:
            assert self.bench.state in (AgentState.RUNNING, AgentState.DRAINING)

    @invariant()
    def no_load_outlasts_the_lease_without_a_coordinator(self) -> None:
        if self.bench.now_ns - self.heard_ns > LEASE_NS:
            assert not any(worker.loads(self.bench.now_ns) for worker in self.workers.values() if not worker.is_stuck)

    def teardown(self) -> None:
        """Without any message it comes to rest."""
        self.passes(BOUND_S, every_s=0.5)
        assert self.left or self.bench.state is AgentState.IDLE, self.bench.state
        assert not self.loading


TestAgentUnderAnyEvents = AgentUnderAnyEvents.TestCase
TestAgentUnderAnyEvents.settings = tried(40, steps=25)

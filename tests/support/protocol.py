"""Agents and coordinators without sockets, processes or clocks, for tests of the fleet protocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from agent.core.actions import Action as AgentAction
from agent.core.actions import (
    AgentEvent,
    Exit,
    FromWorker,
    Identity,
    LinkUp,
    MetricsLinkUp,
    OrderWorkers,
    Received,
    Send,
    Tick,
)
from agent.core.session import Session
from common.metrics.intervals import CommandMetrics, IntervalMetrics, PoolMetrics
from common.plan.schema import Command, Fleet, Load, Plan, Pools, Target, Workload
from common.protocol.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AgentMessage,
    AgentState,
    Assignment,
    Attach,
    Attached,
    CoordinatorMessage,
    Envelope,
    Final,
    FinalAck,
    Heartbeat,
    HeartbeatReply,
    Hello,
    MetricsFrame,
    PoolShare,
    Prepare,
    Prepared,
    Proof,
    Start,
    Stop,
    Welcome,
    WorkerFinal,
    WorkerMetrics,
    incarnation_of,
)
from common.units import NS_PER_S, Count, PerSecond, Seconds
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core import actions as steps
from coordinator.core.member import Member
from coordinator.core.run import Run
from coordinator.core.setup import Setup
from coordinator.journal.records import AnyRecord, CountersRead, Reading, TargetFacts

T = TypeVar("T")

RUN_ID = "run-1"
OTHER_RUN_ID = "run-2"


def fleet_plan(
    *,
    duration_s: float | None = 3.0,
    requests: int | None = None,
    rate_per_s: float | None = None,
    pools: int | None = None,
    **fleet: float,
) -> Plan:
    """A plan for tests of the protocol. Keywords are seconds (`lease_s`...) or numbers of the fleet section."""
    seconds = {name: Seconds(value) for name, value in fleet.items() if name.endswith("_s")}
    numbers = {name: int(value) for name, value in fleet.items() if not name.endswith("_s")}
    return Plan(
        target=Target(url="redis://127.0.0.1:6379"),
        pools=(Pools(client_pools=pools),),
        workload=Workload(commands=(Command(command="GET"),)),
        load=Load(
            duration_s=None if duration_s is None else Seconds(duration_s),
            requests=None if requests is None else Count(requests),
            rate_per_s=None if rate_per_s is None else PerSecond(rate_per_s),
        ),
        fleet=Fleet(**(seconds | numbers)),  # type: ignore[arg-type]
    )


def setup_for(plan: Plan, expected: int = 1, run_id: str = RUN_ID) -> Setup:
    """The setup of a run with this plan."""
    return Setup(
        plan=plan,
        run_id=run_id,
        started_at="2026-01-01T00:00:00+00:00",
        target=TargetFacts(url="redis://127.0.0.1:6379", topology="standalone", server="valkey 9"),
        expected=expected,
        endpoint="tcp://127.0.0.1:5555",
        join="agent join 127.0.0.1:5555",
    )


def dealt(pools: int) -> tuple[PoolShare, ...]:
    """Shares of `count` pools of the first group, with a thread each."""
    return tuple(PoolShare(group=0, number=number, first_thread=number) for number in range(pools))


def assignment(plan: Plan | None = None, pools: int = 1) -> Assignment:
    """An assignment with this number of pools."""
    return Assignment(plan=plan or fleet_plan(), pools=dealt(pools), threads_total=max(pools, 1))


def interval(
    second: int, operations: int = 1, *, last: int | None = None, failed: int = 0, stage: int = 0
) -> IntervalMetrics:
    """A second with `done` operations, and `failed` more that failed."""
    failures = {"ConnectionError": failed} if failed else {}
    return IntervalMetrics(
        first=second,
        last=second if last is None else last,
        stage=stage,
        issued=operations + failed,
        pools={"main": PoolMetrics(commands={"GET": CommandMetrics(ok=operations, failures=failures)})},
    )


def worker_metrics(through: int, *operations: int) -> WorkerMetrics:
    """A report of the last seconds up to `through`, with these numbers of operations."""
    first = through - len(operations) + 1
    intervals = tuple(interval(first + offset, count) for offset, count in enumerate(operations))
    return WorkerMetrics(through=through, intervals=intervals)


def worker_final(operations: int = 0, *, drained: bool = True, ran_s: float = 3.0) -> WorkerFinal:
    """A worker's final message without any problem."""
    return WorkerFinal(
        issued=operations,
        counted=operations,
        transactions=0,
        start_skew_ns=1000,
        ran_ns=round(ran_s * NS_PER_S),
        drained=drained,
    )


def of_kind(actions: Iterable[object], kind: type[T]) -> list[T]:
    """The actions of one type, in order."""
    return [action for action in actions if isinstance(action, kind)]


class AgentBench:
    """A session with a manual clock. `offset_ns`: the coordinator's clock minus the agent's."""

    def __init__(self, *, processes: int = 2, offset_ns: int = 0, **identity: object) -> None:
        self.now_ns = 1_000 * NS_PER_S
        self.offset_ns = offset_ns
        self.plan = fleet_plan()
        self.identity = Identity(
            name="web1",
            host="host-1",
            pid=4711,
            processes=processes,
            secret="secret-1",
            version="0.1",
            endpoint="tcp://127.0.0.1:5555",
            **identity,  # type: ignore[arg-type]
        )
        self.session = Session(self.identity, self.now_ns)
        self._frames: list[MetricsFrame] = []

    @property
    def state(self) -> AgentState:
        return self.session.state

    def do(self, event: AgentEvent) -> list[AgentAction]:
        """Handle an event. Returns the session's actions, without frames, which `frames` returns."""
        actions = self.session.handle(event, self.now_ns)
        frames = said(actions, MetricsFrame)
        self._frames += frames
        return [action for action in actions if not (isinstance(action, Send) and action.envelope.message in frames)]

    def hears(self, message: CoordinatorMessage, run_id: str = RUN_ID, incarnation: str = "") -> list[AgentAction]:
        """Handle a message of the coordinator of `run_id`."""
        incarnation = incarnation or self.identity.incarnation
        return self.do(Received(Envelope(run_id=run_id, incarnation=incarnation, message=message)))

    def passes(self, seconds: float, *, hearing: str | None = None, every_s: float = 0.05) -> list[AgentAction]:
        """Let time pass in ticks. hearing: the coordinator of the run answers every heartbeat."""
        actions = []
        for _ in range(round(seconds / every_s)):
            self.now_ns += round(every_s * NS_PER_S)
            for action in self.do(Tick()):
                actions.append(action)
                if hearing and isinstance(action, Send) and isinstance(action.envelope.message, Heartbeat):
                    self.answer(action.envelope.message, hearing)
        return actions

    def answer(self, heartbeat: Heartbeat, run_id: str = RUN_ID) -> None:
        there_ns = self.now_ns + self.offset_ns
        self.hears(HeartbeatReply(sent_ns=heartbeat.sent_ns, received_ns=there_ns, replied_ns=there_ns), run_id)

    def welcomed(self, run_id: str = RUN_ID, *, attached: bool = True) -> list[AgentAction]:
        """Join, compare the clock with the coordinator's, and attach the metrics link."""
        actions = [*self.do(LinkUp()), *self.hears(welcome(), run_id)]
        if attached:
            actions += [*self.do(MetricsLinkUp()), *self.hears(Attached(), run_id)]
        return [*actions, *self.passes(0.1, hearing=run_id)]

    def preparing(self, pools: int = 2, plan: Plan | None = None) -> list[AgentAction]:
        """Join and receive a share."""
        self.welcomed()
        return self.hears(Prepare(assignments=(assignment(plan or self.plan, pools),), plan_hash="hash"))

    def prepared(self, pools: int = 2, plan: Plan | None = None) -> list[AgentAction]:
        self.preparing(pools, plan)
        used = min(pools, self.identity.processes)
        return [action for number in range(used) for action in self.worker(number, ready())]

    def running(self, pools: int = 2, plan: Plan | None = None) -> list[AgentAction]:
        """Start, with T0 0.6 s ahead."""
        self.prepared(pools, plan)
        return self.hears(Start(t0_ns=self.now_ns + self.offset_ns + 600_000_000))

    def draining(self, pools: int = 2) -> list[AgentAction]:
        self.running(pools)
        return self.hears(Stop(drain=True, reason="interrupted"))

    def done(self, operations: int = 5) -> list[AgentAction]:
        """Let both workers report one second and end. The frames are sent, none is acknowledged."""
        self.running()
        for number in range(2):
            self.worker(number, worker_metrics(0, operations))
        actions = [action for number in range(2) for action in self.worker(number, worker_final(operations))]
        self.frames()
        return actions

    def worker(self, process: int, message: object) -> list[AgentAction]:
        return self.do(FromWorker(process, message))  # type: ignore[arg-type]

    def frames(self) -> list[MetricsFrame]:
        """The frames sent since the last call."""
        frames, self._frames = self._frames, []
        return frames


def welcome() -> Welcome:
    return Welcome(protocol=PROTOCOL_MAX, agent_id="web1")


def ready(connections: int = 1) -> Prepared:
    return Prepared(processes=1, connections_open=connections)


def said(actions: Iterable[object], kind: type[T]) -> list[T]:
    """The messages of one type among the Send actions of an agent or a coordinator."""
    sends = [action for action in actions if isinstance(action, Send | steps.Send)]
    return [send.envelope.message for send in sends if isinstance(send.envelope.message, kind)]


def orders(actions: Iterable[AgentAction]) -> list[object]:
    """The orders to the workers."""
    return [action.order for action in of_kind(actions, OrderWorkers)]


def exits(actions: Iterable[AgentAction]) -> list[int]:
    return [action.code for action in of_kind(actions, Exit)]


class RunBench:
    """A run with a manual clock, and agents whose messages the test sends."""

    def __init__(
        self, plan: Plan | None = None, expected: int = 1, run: Run | None = None, written: Aggregate | None = None
    ) -> None:
        """written: the folded journal; None: no journal is kept. `records`: what the run has written since."""
        self.now_ns = 5_000 * NS_PER_S
        self.setup = setup_for(plan or fleet_plan(), expected)
        self.written = written or (Aggregate() if run is None else None)
        self.records: list[AnyRecord] = []
        self.run = run or Run(self.setup, self.now_ns, self.written)
        self.states: dict[str, AgentState] = {}

    def do(self, event: steps.RunEvent) -> list[steps.Action]:
        actions = self.run.handle(event, self.now_ns)
        for action in actions:
            if isinstance(action, steps.Write):
                self.records.append(action.record)
                if self.written is not None:
                    self.written.apply(action.record)
        return actions

    def member(self, name: str) -> Member:
        member = self.run.state.registry.find(incarnation_of(name))
        assert member is not None
        return member

    def says(
        self, name: str, message: AgentMessage, *, run_id: str = RUN_ID, routing_id: bytes | None = None
    ) -> list[steps.Action]:
        """Handle a message of the agent whose secret is its name, by default on its own connection."""
        return self.do(self.event(name, message, run_id=run_id, routing_id=routing_id))

    def event(
        self, name: str, message: AgentMessage, *, run_id: str = RUN_ID, routing_id: bytes | None = None
    ) -> steps.FromAgent:
        """The event of such a message."""
        if isinstance(message, Proof) and not message.secret:
            message = msgspec.structs.replace(message, secret=name)
        envelope = Envelope(run_id=run_id, incarnation=incarnation_of(name), message=message)
        if routing_id is None:
            routing_id = metrics_id(name) if isinstance(message, Attach | MetricsFrame) else name.encode()
        return steps.FromAgent(routing_id, envelope)

    def hello(self, name: str, **fields: object) -> list[steps.Action]:
        """Let an agent send its hello and its first heartbeats, and attach its metrics connection."""
        self.states[name] = fields.get("state", AgentState.IDLE)  # type: ignore[assignment]
        said = self.says(name, hello(name, **fields))
        return [*said, *self.says(name, Attach()), *self.beat(name)]

    def beat(self, name: str, state: AgentState | None = None, run_id: str = RUN_ID) -> list[steps.Action]:
        """Send a heartbeat. state: of this and of later heartbeats."""
        if state is not None:
            self.states[name] = state
        return self.says(name, heartbeat(self.states[name], self.now_ns), run_id=run_id)

    def passes(self, seconds: float, *beating: str) -> list[steps.Action]:
        """Let time pass in ticks. The named agents send a heartbeat each second."""
        actions = []
        for step in range(1, round(seconds * 10) + 1):
            self.now_ns += NS_PER_S // 10
            if step % 10 == 0:
                actions += [action for name in beating for action in self.beat(name)]
            actions += self.do(steps.Tick())
        return actions

    def preparing(self, *names: str) -> list[steps.Action]:
        """Let agents join until the fleet is complete."""
        return [action for name in names for action in self.hello(name)]

    def counting(self, *names: str) -> list[steps.Action]:
        """Let agents be prepared, so that the counters are to be read."""
        self.preparing(*names)
        actions = []
        for name in names:
            self.beat(name, AgentState.PREPARED)
            actions += self.says(name, ready())
        return actions

    def running(self, *names: str) -> list[steps.Action]:
        """Let the run start."""
        self.counting(*names)
        actions = self.do(counted(Reading.BEFORE))
        for name in names:
            self.beat(name, AgentState.RUNNING)
        return actions

    def frame(self, name: str, seq: int, *, second: int | None = None, operations: int = 1) -> list[steps.Action]:
        at = seq if second is None else second
        return self.says(name, MetricsFrame(seq=seq, through=at, intervals=(interval(at, operations),)))


def metrics_id(name: str) -> bytes:
    """The routing id of an agent's metrics connection."""
    return f"{name}/metrics".encode()


def counted(when: Reading) -> steps.Counted:
    return steps.Counted(CountersRead(when=when, server_run_id="server", calls={"get": 1}))


def hello(name: str = "web1", **fields: object) -> Hello:
    given: dict[str, object] = {
        "protocol_min": PROTOCOL_MIN,
        "protocol_max": PROTOCOL_MAX,
        "name": name,
        "host": f"{name}.example",
        "pid": 4711,
        "processes": 2,
        "version": "0.1",
        "state": AgentState.IDLE,
    }
    return Hello(**(given | fields))  # type: ignore[arg-type]


def heartbeat(state: AgentState, sent_ns: int = 0, *, offset_ns: int | None = 10) -> Heartbeat:
    return Heartbeat(
        sent_ns=sent_ns,
        state=state,
        offset_ns=offset_ns,
        rtt_ns=None if offset_ns is None else 100,
        cpu_percent=10.0,
        cpu_percent_busiest=5.0,
        lag_ms=0.1,
        frames_held=0,
        processes_alive=1,
    )


def final(frames: int = 0, **fields: object) -> Final:
    given: dict[str, object] = {
        "next_seq": frames,
        "issued": frames,
        "counted": frames,
        "transactions": 0,
        "start_skew_ns": 100,
        "ran_ns": 3 * NS_PER_S,
        "drained": True,
        "processes_lost": 0,
        "reason": "",
    }
    return Final(**(given | fields))  # type: ignore[arg-type]


def acknowledged(actions: Iterable[object]) -> bool:
    """Whether a final was acknowledged."""
    return bool(said(actions, FinalAck))

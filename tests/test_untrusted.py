"""No message of a peer makes a state machine raise, and its actions can be sent, written and shown."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action as AgentAction
from agent.core.actions import Exit, FromWorker, Received, Say, Send, Spawn, Tick
from agent.core.assignment_checks import Capacity
from common.errors import ProtocolError
from common.protocol import codec
from common.protocol.messages import (
    PROTOCOL_MAX,
    AgentMessage,
    Assignment,
    CoordinatorMessage,
    Envelope,
    Hello,
    MetricsFrame,
    Prepare,
    Start,
    WorkerMessage,
    incarnation_of,
)
from coordinator.core import actions as steps
from coordinator.core.transitions import Phase
from coordinator.journal.records import AnyRecord
from tests.support.examples import examples
from tests.support.mutations import Mutator, enveloped
from tests.support.protocol import RUN_ID, AgentBench, RunBench, dealt, final, metrics_id

TEXTS = ("main", "GET", RUN_ID, "web1")


def messages(draw: random.Random, kinds: Any, decode: Any, incarnation: str, count: int) -> list[Envelope]:
    """Messages that the codec accepts; some were mutated before."""
    mutator, found = Mutator(draw, TEXTS), []
    for _ in range(count):
        plain = mutator.message(kinds)
        if draw.random() < 0.3:
            plain = mutator.mutated(plain)
        run_id = draw.choice((RUN_ID, RUN_ID, RUN_ID, "", "run-2"))
        try:
            found.append(decode(enveloped(plain, run_id, incarnation, PROTOCOL_MAX)))
        except ProtocolError:
            continue
    return found


def run_in(phase: Phase) -> RunBench:
    """A run in this phase, with two agents."""
    bench = RunBench(expected=2)
    names = ("web1", "web2")
    if phase is Phase.GATHERING:
        bench.hello("web1")
    elif phase is Phase.PREPARING:
        bench.preparing(*names)
    elif phase is Phase.COUNTING:
        bench.counting(*names)
    else:
        bench.running(*names)
        bench.passes(1.0, *names)
    if phase is Phase.DRAINING:
        bench.do(steps.Interrupted())
    if phase is Phase.SETTLING:
        for name in names:
            bench.says(name, final())
    assert bench.run.state.phase is phase
    return bench


PHASES = (Phase.GATHERING, Phase.PREPARING, Phase.COUNTING, Phase.RUNNING, Phase.DRAINING, Phase.SETTLING)
STATES = ("welcomed", "preparing", "prepared", "running", "draining", "done")


@settings(max_examples=examples(40))
@given(st.sampled_from(PHASES), st.integers(0, 2**64))
def test_a_coordinator_handles_any_message_of_an_agent(phase: Phase, seed: int) -> None:
    draw = random.Random(seed)
    bench = run_in(phase)
    members = len(bench.run.state.registry)
    for envelope in messages(draw, AgentMessage, codec.decode_from_agent, incarnation_of("web1"), 12):
        connection = draw.choice((b"web1", metrics_id("web1"), b"another"))
        for action in bench.do(steps.FromAgent(connection, envelope)):
            assert_performable(action)
        bench.now_ns += draw.choice((0, 10**8))
        for action in bench.do(steps.Tick()):
            assert_performable(action)
    assert len(bench.run.state.registry) <= members + 1


def assert_performable(action: steps.Action) -> None:
    match action:
        case steps.Send(_, envelope):
            assert codec.decode_from_coordinator(codec.encode(envelope)) == envelope
        case steps.Write(record):
            assert codec.unpack(codec.pack(record), AnyRecord) == record  # type: ignore[arg-type]
        case steps.Note(text) | steps.Progress(text) | steps.End(_, text):
            assert text.isprintable()
            assert len(text) < 5000


@settings(max_examples=examples(40))
@given(st.sampled_from(STATES), st.integers(0, 2**64))
def test_an_agent_handles_any_message_of_a_coordinator(state: str, seed: int) -> None:
    draw = random.Random(seed)
    bench = AgentBench(capacity=Capacity(threads=1000, open_files=10_000, memory_bytes=1 << 30))
    getattr(bench, state)()
    for envelope in messages(draw, CoordinatorMessage, codec.decode_from_coordinator, bench.identity.incarnation, 12):
        for action in bench.do(Received(envelope)):
            assert_doable(action)
        bench.now_ns += draw.choice((0, 10**8))
        for action in bench.do(Tick()):
            assert_doable(action)
        bench.frames()


def assert_doable(action: AgentAction) -> None:
    assert_sayable(action)
    match action:
        case Send(envelope):
            assert codec.decode_from_agent(codec.encode(envelope)) == envelope
        case Spawn(_, assignments):
            assert sum(len(assignment.threads) for assignment in assignments) <= 1000


def assert_sayable(action: AgentAction) -> None:
    match action:
        case Say(text) | Exit(_, text):
            assert text.isprintable()
            assert len(text) < 5000


@settings(max_examples=examples(15))
@given(st.integers(0, 2**64))
def test_an_agent_handles_any_report_of_a_worker_process(seed: int) -> None:
    draw = random.Random(seed)
    bench = AgentBench()
    bench.running()
    mutator = Mutator(draw, TEXTS)
    for _ in range(12):
        try:
            message = codec.decode_from_worker(codec.pack(mutator.message(WorkerMessage)))
        except ProtocolError:
            continue
        for action in bench.do(FromWorker(draw.randrange(3), message)):
            assert_sayable(action)
        bench.do(Tick())


@settings(max_examples=examples(15))
@given(st.integers(0, 2**64))
def test_a_journal_of_any_accepted_frames_can_be_folded(seed: int) -> None:
    draw = random.Random(seed)
    bench = RunBench()
    bench.running("web1")
    bench.passes(2.0, "web1")
    mutator = Mutator(draw, TEXTS)
    for seq in range(10):
        plain = mutator.message(MetricsFrame) | {"seq": seq}
        try:
            envelope = codec.decode_from_agent(enveloped(plain, RUN_ID, incarnation_of("web1"), PROTOCOL_MAX))
        except ProtocolError:
            continue
        bench.do(steps.FromAgent(metrics_id("web1"), envelope))
    assert bench.written is not None
    assert bench.written.totals.issued >= 0
    assert max(bench.written.seconds, default=0) < 100


def test_the_drawn_messages_reach_every_handler() -> None:
    draw = random.Random(1)
    of_agents = messages(draw, AgentMessage, codec.decode_from_agent, "web1", 400)
    of_coordinators = messages(draw, CoordinatorMessage, codec.decode_from_coordinator, "web1", 5000)
    drawn = {type(envelope.message) for envelope in (*of_agents, *of_coordinators)}
    assert drawn == set(AgentMessage.__args__) | set(CoordinatorMessage.__args__)
    assert any(isinstance(envelope.message, Hello) and envelope.run_id == RUN_ID for envelope in of_agents)


def test_an_agent_serves_the_next_coordinator_after_an_impossible_assignment() -> None:
    bench = AgentBench()
    bench.welcomed()
    plan = msgspec.structs.replace(bench.plan, pools=())
    share = Assignment(plan=plan, pools=dealt(1), threads_total=1)
    bench.hears(Prepare(assignments=(share,), plan_hash=""))
    bench.prepared()
    bench.hears(Start(t0_ns=bench.now_ns + 10**8))
    assert bench.state.value == "running"

"""Attacks by peers that have the token, on the real programs during a real run.

The coordinator has one honest agent under load, and attackers. Some attackers take part in the run; others join as
further agents, and join again under new names once they are refused. They send messages of any kind in any state, with
any values, mutated, damaged, repeated, and bombs. At the end, the honest agent's totals must equal the server's counts,
and the coordinator's memory must be as before. A hostile coordinator attacks an agent in the same way; the agent must
then serve a real coordinator. The same seed draws the same messages, but their timing depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import zmq

from common.clock import monotonic_ns
from common.errors import ProtocolError
from common.protocol import codec
from common.protocol.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_MAX,
    AgentMessage,
    AgentState,
    Assignment,
    Attach,
    Bye,
    CoordinatorMessage,
    Dismiss,
    Envelope,
    Failed,
    HeartbeatReply,
    Hello,
    MetricsFrame,
    PoolShare,
    Prepare,
    Prepared,
    Preparing,
    Refused,
    Start,
    Stop,
    Welcome,
    WorkerLost,
    incarnation_of,
)
from common.protocol.token import agent_curve, coordinator_curve
from common.serde import to_builtins
from common.units import NS_PER_S
from tests.support.commands import CommandLine, Running
from tests.support.mutations import Mutator, enveloped
from tests.support.protocol import final, fleet_plan, heartbeat, hello, ready
from tests.support.runs import Fleet, Outcome, calls, tracebacks, wait_until
from tests.support.servers import Server, start_server

TEXTS = ("main", "GET", "SET", "attacker", "honest")
HARMLESS = Hello | Attach | Preparing | Prepared | WorkerLost | MetricsFrame
"""Messages that do not end a participant's part of the run: its frames are repeats."""
MOST_GROWTH_BYTES = 64 << 20
_AT_ONCE = 25
"""Messages between two exchanges with the coordinator, so that none is dropped as a flood."""


@dataclass(slots=True)
class Numbers:
    """The result of an attack. rss: readings of the memory in bytes, in order."""

    sent: int = 0
    rss: list[int] = field(default_factory=list)
    seconds: float = 0.0
    operations: int = 0
    server_calls: int = 0
    attackers: int = 0

    def measured(self, process: psutil.Process) -> None:
        """Add a reading of a process's memory."""
        self.rss.append(process.memory_info().rss)

    @property
    def growth_bytes(self) -> int:
        """The growth of the memory from the first to the last reading."""
        return self.rss[-1] - self.rss[0]

    def summary_line(self, side: str) -> str:
        """One line."""
        before, most, after = (size / 2**20 for size in (self.rss[0], max(self.rss), self.rss[-1]))
        text = f"{side}: {self.sent:,} messages in {self.seconds:.0f} s; RSS {before:.1f} MiB before, "
        text += f"{most:.1f} MiB at most, {after:.1f} MiB after"
        if self.server_calls:
            text += f"; {self.attackers:,} attackers; honest agent {self.operations:,} operations, "
            text += f"server {self.server_calls:,} calls"
        return text


class Attacker:
    """A hostile agent with a secret of its own and both connections."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, token: Path, name: str) -> None:
        self.secret = secrets.token_hex(8)
        self.incarnation = incarnation_of(self.secret)
        self.name, self.run_id = name, ""
        self.is_refused = self.has_share = self.is_started = False
        self._seen: list[bytes] = []
        self._answered_ns = 0
        curve = agent_curve(token)
        self._sockets = [context.socket(zmq.DEALER) for _ in range(2)]
        for socket in self._sockets:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDTIMEO, 1000)
            socket.curve_serverkey, socket.curve_publickey = curve.server, curve.keys.public
            socket.curve_secretkey = curve.keys.secret
            socket.connect(endpoint)

    @property
    def _state(self) -> AgentState:
        return AgentState.RUNNING if self.is_started else AgentState.PREPARED if self.has_share else AgentState.IDLE

    def say(self, message: AgentMessage, *, metrics: bool = False) -> None:
        """Send a message like an honest agent."""
        self.send(codec.encode(Envelope(run_id=self.run_id, incarnation=self.incarnation, message=message)), metrics)

    def send(self, data: bytes, metrics: bool) -> None:
        """Send any bytes, and keep them for repetition."""
        if len(data) < 5000:
            self._seen = [*self._seen[-50:], data]
        with contextlib.suppress(zmq.Again):
            self._sockets[metrics].send(data)

    def introduce(self) -> None:
        """Send the hello and attach the metrics connection. Repeated, because an attack may have changed the state."""
        self.say(hello(self.name, secret=self.secret, processes=1, state=self._state))
        self.say(Attach(secret=self.secret), metrics=True)

    def exchange(self, timeout_ms: int = 2000) -> bool:
        """Send a heartbeat and read all messages. Returns whether the heartbeat was answered."""
        self.say(heartbeat(self._state, monotonic_ns() % 2**60))
        give_up_ns = monotonic_ns() + timeout_ms * 1_000_000
        while monotonic_ns() < give_up_ns and not self.is_refused:
            if self._sockets[0].poll(50) and self._take(self._sockets[0].recv()):
                return True
        return False

    def _take(self, data: bytes) -> bool:
        """Handle a message. Returns whether it answers a heartbeat."""
        envelope = codec.decode_from_coordinator(data)
        self.run_id = envelope.run_id or self.run_id
        match envelope.message:
            case HeartbeatReply():
                return True
            case Prepare():
                self.has_share = True
                self.say(ready())
            case Start():
                self.is_started = True
            case Refused() | Stop():
                self.is_refused = True
        return False

    def attack(self, draw: random.Random, mutator: Mutator) -> None:
        """Send one message of any kind. A participant mostly sends messages that do not end its part."""
        self.send(self._drawn(draw, mutator), draw.random() < 0.4)

    def _drawn(self, draw: random.Random, mutator: Mutator) -> bytes:
        how = draw.random()
        if how < 0.002:
            return mutator.bomb()
        if how < 0.1 and self._seen:
            return draw.choice(self._seen)
        plain = mutator.message(HARMLESS if self.has_share and draw.random() < 0.9999 else AgentMessage)
        if plain.get("type") in ("Hello", "Attach") and draw.random() < 0.5:
            plain["secret"] = self.secret
            plain["connection"] = 0  # a later number would make the coordinator ignore this connection
        if plain.get("type") == "MetricsFrame" and self.has_share:
            plain["seq"] = draw.choice((5, 2**40))  # never the next number
        if how < 0.4:
            plain = mutator.mutated(plain)
        run_id = draw.choice((self.run_id, self.run_id, "", "another"))
        protocol = PROTOCOL_MAX if draw.random() < 0.98 else draw.choice((0, 3, 99, 2**64 - 1))
        data = enveloped(plain, run_id, self.incarnation, protocol)
        return mutator.damaged(data) if how > 0.85 else data

    def close(self) -> None:
        """Close both connections."""
        for socket in self._sockets:
            socket.close()


def attack_coordinator(fleet: Fleet, server: Server, messages: int, seed: int) -> tuple[Numbers, Outcome]:
    """Attack a real coordinator during a run of one honest agent. Raises AssertionError for each problem."""
    draw, numbers = random.Random(seed), Numbers()
    mutator = Mutator(draw, TEXTS)
    fleet.agent("honest")
    coordinator = fleet.coordinator(
        "--url", server.url, "--expect-agents", "3", "--duration", "1h", "--rate", "300", "--client-pools", "3",
        "--command", "SET", "--command", "GET", "--drain", "2s", "--lease", "5s", "--tolerate-lost", "2",
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        attackers: list[Attacker] = []

        def another() -> None:
            attackers.append(Attacker(context, fleet.endpoint, fleet.token, f"attacker-{numbers.attackers}"))
            stack.callback(attackers[-1].close)
            numbers.attackers += 1
            attackers[-1].introduce()

        for _ in range(2):
            another()
        wait_until(lambda: len([one for one in attackers if one.exchange() and one.is_started]) == 2, "the start", 60)
        fleet.until_loading()
        process = psutil.Process(coordinator.process.pid)
        began_ns = monotonic_ns()
        numbers.measured(process)
        while numbers.sent < messages:
            for one in attackers[-8:]:
                for _ in range(_AT_ONCE):
                    one.attack(draw, mutator)
                    numbers.sent += 1
                one.introduce()
                one.exchange(200)
            assert coordinator.process.poll() is None, coordinator.stderr
            if draw.random() < 0.2:
                numbers.measured(process)
                for old in attackers[2:-6]:
                    old.close()
                attackers = [*attackers[:2], *attackers[2:][-6:]]
                another()
        numbers.seconds = (monotonic_ns() - began_ns) / NS_PER_S
        numbers.measured(process)
        for one in attackers[:2]:
            one.introduce()
            one.say(final(ran_ns=0))  # otherwise the run would wait for the end of the lease
            one.exchange(200)
            one.say(Bye(reason="done"))
            one.exchange(200)
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator, 120)
    [honest] = [agent for agent in ended.journal.agents.values() if agent.facts.agent_id == "honest"]
    said = calls(server.client())
    numbers.operations, numbers.server_calls = honest.counted, said.get("set", 0) + said.get("get", 0)
    assert honest.issued == honest.counted == numbers.server_calls > 0
    assert honest.end is not None
    assert honest.end.final is not None
    assert numbers.growth_bytes < MOST_GROWTH_BYTES, numbers.rss
    assert_presentable(coordinator)
    return numbers, ended


class FalseCoordinator:
    """A hostile coordinator, which sends agents any message."""

    def __init__(self, endpoint: str, token: Path, draw: random.Random) -> None:
        self._draw, self._mutator = draw, Mutator(draw, TEXTS)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.curve_secretkey = coordinator_curve(token).keys.secret
        self._socket.curve_server = 1
        self._socket.bind(endpoint)
        self.agent: Envelope | None = None
        self._peers: list[bytes] = []
        self._seen: list[bytes] = []
        self._asked = 0
        self._refused: set[str] = set()

    def hear(self, timeout_ms: int) -> bool:
        """Read all messages. Returns whether there were any."""
        heard = bool(self._socket.poll(timeout_ms))
        while self._socket.poll(0):
            peer, data = self._socket.recv_multipart()[:2]
            self._peers = [*(known for known in self._peers if known != peer), peer][-2:]
            with contextlib.suppress(ProtocolError):
                self.agent = codec.decode_from_agent(data)
                if isinstance(self.agent.message, Failed):
                    self._refused = {self.agent.run_id}
                if isinstance(self.agent.message, Hello):
                    self.say(Welcome(protocol=PROTOCOL_MAX, agent_id="honest"))
        return heard

    def say(self, message: CoordinatorMessage, run_id: str = "run-1") -> None:
        """Send a message like an honest coordinator."""
        assert self.agent is not None
        self._send(codec.encode(Envelope(run_id=run_id, incarnation=self.agent.incarnation, message=message)))

    def _send(self, data: bytes) -> None:
        self._seen = [*self._seen[-50:], data] if len(data) < 5000 else self._seen
        for peer in self._peers[-1:]:
            self._socket.send_multipart((peer, data))

    def attack(self) -> None:
        """Send one message of any kind except Refused, which ends an agent by design."""
        data = self._drawn()
        if b"Refused" not in data:
            self._send(data)

    def _drawn(self) -> bytes:
        draw, mutator = self._draw, self._mutator
        assert self.agent is not None
        how = draw.random()
        if how < 0.002:
            return mutator.bomb()
        if how < 0.1 and self._seen:
            return draw.choice(self._seen)
        plain = mutator.message(CoordinatorMessage)
        if plain["type"] == Refused.__name__:
            plain = to_builtins(HeartbeatReply(sent_ns=1, received_ns=2**62, replied_ns=-(2**62)))
        if how < 0.4:
            plain = mutator.mutated(plain)
        run_id = draw.choice(("run-1", "run-1", "run-2", "", "\x1b[2J../x", "r" * 200))
        data = enveloped(plain, run_id, self.agent.incarnation, PROTOCOL_MAX)
        return mutator.damaged(data) if how > 0.85 else data

    def is_heard(self) -> bool:
        """Send an impossible assignment, which is refused in every state. Returns whether the refusal came: it proves
        that the agent has read all earlier messages."""
        self._asked += 1
        asked = f"asked-{self._asked}"
        share = Assignment(
            plan=fleet_plan(), pools=(PoolShare(group=10**6, number=0, first_thread=0),), threads_total=1
        )
        self.say(Prepare(assignments=(share,), plan_hash=""), asked)
        give_up_ns = monotonic_ns() + 10 * NS_PER_S
        while monotonic_ns() < give_up_ns:
            if self.hear(50) and asked in self._refused:
                return True
        return False

    def leave(self) -> None:
        """Dismiss the agent from all runs, and close."""
        assert self.agent is not None
        for run_id in {self.agent.run_id, "run-1", "run-2", ""}:
            self.say(Dismiss(exit_code=0), run_id)
        self.hear(500)
        self._socket.close()
        self._context.term()


def attack_agent(fleet: Fleet, server: Server, messages: int, seed: int) -> Numbers:
    """Attack a real agent as its coordinator, then let it serve a real one. Raises AssertionError for each problem."""
    draw, numbers = random.Random(seed), Numbers()
    enemy = FalseCoordinator(fleet.endpoint, fleet.token, draw)
    agent = fleet.agent("honest")
    wait_until(lambda: enemy.hear(100) and enemy.agent, "the agent's hello", 30, agent)
    process = psutil.Process(agent.process.pid)
    began_ns = monotonic_ns()
    numbers.measured(process)
    while numbers.sent < messages:
        for _ in range(_AT_ONCE):
            enemy.attack()
            numbers.sent += 1
        assert enemy.is_heard(), agent.stderr
        if draw.random() < 0.05:
            numbers.measured(process)
    numbers.seconds = (monotonic_ns() - began_ns) / NS_PER_S
    numbers.measured(process)
    enemy.leave()
    ended = fleet.end(fleet.coordinator("--url", server.url, "--expect-agents", "1", "--duration", "1s"), 120)
    assert (ended.code, ended.summary["run"]["outcome"]) == (0, "completed"), ended.finished.stderr + agent.stderr
    assert numbers.growth_bytes < MOST_GROWTH_BYTES, numbers.rss
    assert_presentable(agent)
    return numbers


def assert_presentable(running: Running) -> None:
    """Check that the output is printable text of a bounded length."""
    lines = running.stderr.splitlines()
    assert all(line.isprintable() for line in lines), lines
    assert len(lines) < 5000, len(lines)


@contextlib.contextmanager
def _ground() -> Iterator[tuple[Fleet, Server]]:
    with tempfile.TemporaryDirectory() as folder, start_server() as server:
        commands = CommandLine(Path(folder))
        try:
            yield Fleet(commands), server
            assert not list(tracebacks(commands.directory))
        finally:
            commands.close()


def main() -> int:
    """Attack both programs. Returns 0; a problem raises AssertionError."""
    parser = argparse.ArgumentParser(
        "scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--messages", type=int, default=200_000, help="messages to the coordinator; the agent gets a tenth (200000)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="seed of the messages (a new one)")
    parser.add_argument(
        "--side", choices=["coordinator", "agent", "both"], default="both", help="program to attack (both)"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    if options.side != "agent":
        with _ground() as (fleet, server):
            numbers, ended = attack_coordinator(fleet, server, options.messages, options.seed)
            print(numbers.summary_line("coordinator"), flush=True)
            aside = [line for line in ended.finished.stderr.splitlines() if "ignored messages and peers" in line]
            print(*aside, f"exit code {ended.code}, outcome {ended.summary['run']['outcome']}", sep="\n", flush=True)
    if options.side != "coordinator":
        with _ground() as (fleet, server):
            print(attack_agent(fleet, server, options.messages, options.seed).summary_line("agent"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

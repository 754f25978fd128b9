"""The state of an agent's two links to the coordinator: up or down, when the coordinator was last heard, its clock; and
how the agent introduces itself. Pure: the time is an argument."""

from __future__ import annotations

from zlib import crc32

from agent.core.actions import Identity, Tick
from agent.core.outbox import Outbox
from common.clock import ClockSync, clock_sample
from common.protocol.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AgentState,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Pace,
    Welcome,
)
from common.units import NS_PER_S

HELLO_EVERY_NS = NS_PER_S
FIRST_HEARTBEATS_EVERY_NS = NS_PER_S // 20
FIRST_HEARTBEATS = 8
"""A clock estimate is wanted soon after the welcome: the first exchanges follow each other quickly."""
REFUSED_FOR_NS = 2 * NS_PER_S
"""Handshakes that fail for this long have another cause than a coordinator that starts or ends."""
REFUSED_APART_NS = 5 * NS_PER_S
"""Failed handshakes further apart than this have nothing to do with each other: ZeroMQ tries again each second."""
MOST_OFFSET_NS = 1 << 61
"""How far two monotonic clocks can be apart: each counts from the start of its host, so 73 years are plenty."""
MOST_ROUND_TRIP_NS = 60 * NS_PER_S
"""A slower reply gives no estimate of the other clock."""
UNANSWERED_NS = 5 * NS_PER_S
"""A coordinator that does not answer for this long may not know this agent any more: say hello again."""


ATTACH_EVERY_NS = NS_PER_S
PROVE_WITHIN_NS = 10 * NS_PER_S
"""How long the metrics link may take to get through for the first time, once the control link has."""


class MetricsLink:
    """The metrics link. connection: how many connections there were. attached: the coordinator has answered on this
    connection, so frames may be sent. proved: the coordinator has answered on any metrics connection since its welcome,
    so both directions work."""

    def __init__(self) -> None:
        self.attached = False
        self.proved = False
        self.connection = 0
        self._up = False
        self._cause = "no TCP connection"
        self._attach_due_ns = 0
        self._wanted_ns: int | None = None

    def welcomed(self, now_ns: int, *, is_news: bool) -> None:
        """A coordinator welcomes us. It must know this connection, and perhaps does not know it yet, or any more."""
        self.attached, self._attach_due_ns = False, now_ns
        if is_news:
            self.proved = False
            self.is_needed(now_ns)

    def is_needed(self, now_ns: int) -> None:
        """From now on the link should get through."""
        self._wanted_ns = now_ns

    def is_doubtful(self, now_ns: int) -> None:
        """Frames are not acknowledged: send `Attach`, and the frames again only after its answer."""
        self.attached, self._attach_due_ns = False, now_ns

    def came_up(self, now_ns: int) -> None:
        """The handshake succeeded; the coordinator does not know yet whose connection this is."""
        self._up, self.attached, self._attach_due_ns = True, False, now_ns
        self.connection += 1
        self._cause = "connected, but the coordinator does not answer"

    def went_down(self, cause: str) -> None:
        """The link was lost, or could not be made."""
        self._up, self.attached, self._cause = False, False, cause

    def attach_is_due(self, now_ns: int) -> bool:
        """Whether to say now whose connection this is; then again a second later, until it is answered."""
        if not self._up or self.attached or self._wanted_ns is None or now_ns < self._attach_due_ns:
            return False
        self._attach_due_ns = now_ns + ATTACH_EVERY_NS
        return True

    def was_attached(self) -> bool:
        """The coordinator has answered; whether that is news."""
        is_news = not self.attached
        self.attached = self.proved = True
        return is_news

    def unreachable(self, endpoint: str, now_ns: int) -> str:
        """Why no frame would ever arrive, if the link should have got through by now; else ""."""
        overdue = self._wanted_ns is not None and now_ns - self._wanted_ns > PROVE_WITHIN_NS
        there = f"its metrics connection to {endpoint} does not get through ({self._cause})"
        return f"{there}, although its control connection does" if overdue and not self.proved else ""


class Link:
    """The control link. `up` is what ZeroMQ says; `welcome` is the coordinator's answer to hello, None before it, and
    `coordinator` the run that it was welcome to. connection: how many there were. pace: how often the coordinator wants
    to hear what."""

    def __init__(self, now_ns: int) -> None:
        self.up = False
        self.connection = 0
        self.welcome: Welcome | None = None
        self.pace = Pace()
        self._phase_ns = 0
        self.clock = ClockSync()
        self.coordinator = ""
        self._heard_ns = now_ns
        self._hello_due_ns = now_ns
        self._heartbeat_due_ns = now_ns
        self._refused_ns: tuple[int, int] | None = None
        self.obstacle = ""
        """What is in the way of a link, as far as the last examination knows."""
        self._examinations = 0
        self._lasting = 0

    def came_up(self, now_ns: int) -> None:
        """The handshake succeeded: say hello at once, whoever was there before."""
        self.up, self.welcome, self._refused_ns, self._hello_due_ns = True, None, None, now_ns
        self.obstacle, self._examinations, self._lasting = "", 0, 0
        self.connection += 1

    def went_down(self) -> bool:
        """The link was lost; whether we were welcome on it."""
        was_welcome = self.welcome is not None
        self.up, self.welcome = False, None
        return was_welcome

    def refused(self, now_ns: int) -> None:
        """The handshake failed."""
        first_ns, last_ns = self._refused_ns or (now_ns, now_ns)
        self._refused_ns = (first_ns if now_ns - last_ns <= REFUSED_APART_NS else now_ns, now_ns)

    def examined(self, obstacle: str, *, lasting: bool) -> bool:
        """The coordinator's address was examined; whether what is in the way is news."""
        is_news = obstacle != self.obstacle
        if not obstacle and (is_news or not self._examinations):
            self._refused_ns = None  # until now it may have been a proxy without a coordinator that closed connections
        self._lasting = 0 if not lasting else 1 if is_news else self._lasting + 1
        self.obstacle = obstacle
        self._examinations += 1
        return is_news and bool(obstacle)

    @property
    def hopeless(self) -> str:
        """Why there will never be a link; "" while there may be. Once is no proof: a coordinator may just be ending."""
        if self._lasting > 1:
            return self.obstacle
        refused = self._refused_ns is not None and self._refused_ns[1] - self._refused_ns[0] > REFUSED_FOR_NS
        # A coordinator answers there, and secures its links as we do: nothing but the token is left.
        if refused and self._examinations and not self.obstacle:
            return "the coordinator refuses our token; copy its token file here (--token-file)"
        return ""

    def waited_in_vain(self, wait_ns: int | None, now_ns: int) -> str:
        """That no coordinator answered for this long, and why; "" if one did, or may still. wait_ns: None for ever."""
        if wait_ns is None or self.silent_ns(now_ns) <= wait_ns:
            return ""
        why = f": {self.obstacle}" if self.obstacle else ""
        return f"no coordinator answered for {wait_ns / NS_PER_S:.0f} s{why}"

    def heard(self, now_ns: int) -> None:
        """A message of the coordinator has come."""
        self._heard_ns = now_ns

    def silent_ns(self, now_ns: int) -> int:
        """How long nothing was heard of a coordinator, from the agent's start if there never was one."""
        return now_ns - self._heard_ns

    def welcomed(self, welcome: Welcome, run_id: str, now_ns: int) -> bool:
        """Hello was answered by the coordinator of this run; whether that is news."""
        if self.welcome == welcome and self.coordinator == run_id:
            return False
        self.welcome, self.coordinator, self.pace = welcome, run_id, welcome.pace
        self._phase_ns = crc32(welcome.agent_id.encode()) % (self.pace.frame_s * NS_PER_S)
        self.clock = ClockSync()  # another coordinator may have answered, with another clock
        self._heartbeat_due_ns = now_ns
        return True

    def replied(self, reply: HeartbeatReply, run_id: str, now_ns: int) -> None:
        """A heartbeat came back with the stamps of this run's coordinator; a late answer of one before is no sample."""
        sample = clock_sample(reply.sent_ns, reply.received_ns, reply.replied_ns, now_ns)
        # Beyond that no clock of a coordinator is, and the next heartbeat could not carry the figures.
        makes_sense = abs(sample.offset_ns) <= MOST_OFFSET_NS and sample.rtt_ns <= MOST_ROUND_TRIP_NS
        if run_id == self.coordinator and makes_sense:
            self.clock.add(sample)

    def hello_is_due(self, now_ns: int) -> bool:
        """Whether to say hello now; then the next one is due a second later."""
        answered = self.welcome is not None and self.silent_ns(now_ns) <= UNANSWERED_NS
        if not self.up or answered or now_ns < self._hello_due_ns:
            return False
        self._hello_due_ns = now_ns + HELLO_EVERY_NS
        return True

    def heartbeat_is_due(self, now_ns: int, *, runs: bool = False) -> bool:
        """Whether to send a heartbeat now; then the next one is due a second later, sooner just after the welcome, and
        while the agent runs as the coordinator's pace says."""
        if self.welcome is None or now_ns < self._heartbeat_due_ns:
            return False
        quick = self.clock.count < FIRST_HEARTBEATS
        usual_ns = (self.pace.heartbeat_s if runs else 1) * NS_PER_S
        self._heartbeat_due_ns = now_ns + (FIRST_HEARTBEATS_EVERY_NS if quick else usual_ns)
        return True

    @property
    def turn_ns(self) -> int:
        """How long an agent waits with its last frame: the load of all ends at once, and up to a second is enough to
        spread the frames of a large fleet."""
        return 0 if self.pace.frame_s == 1 else self._phase_ns // self.pace.frame_s

    def reporting_period(self, now_ns: int) -> int | None:
        """The number of the present reporting period; None if frames are sent as soon as a second is complete. Periods
        of different agents begin at different times, so that their frames do not all come at once."""
        period_ns = self.pace.frame_s * NS_PER_S
        return None if self.pace.frame_s == 1 else (now_ns + self._phase_ns) // period_ns

    def hasten_heartbeat(self, now_ns: int) -> None:
        """The next heartbeat is due now."""
        self._heartbeat_due_ns = now_ns

    def heartbeat(self, tick: Tick, state: AgentState, frames_held: int, alive: int, now_ns: int) -> Heartbeat:
        """A heartbeat of this moment. alive: number of worker processes."""
        best = self.clock.best
        return Heartbeat(
            sent_ns=now_ns,
            state=state,
            offset_ns=best.offset_ns if best else None,
            rtt_ns=best.rtt_ns if best else None,
            cpu_percent=tick.cpu_percent,
            cpu_percent_busiest=tick.cpu_percent_busiest,
            host_cpu_percent=tick.host_cpu_percent,
            lag_ms=tick.lag_ms,
            frames_held=frames_held,
            processes_alive=alive,
        )


def introduction(me: Identity, connection: int, state: AgentState, run_id: str, outbox: Outbox) -> Hello:
    """Who an agent is, and what it holds of a run. connection: how many control connections it has had. run_id: ""
    outside a run."""
    return Hello(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        secret=me.secret,
        connection=connection,
        name=me.name,
        host=me.host,
        pid=me.pid,
        processes=me.processes,
        version=me.version,
        state=state,
        run_id=run_id or None,
        next_seq=outbox.first_unacknowledged,
        frames_held=len(outbox),
    )

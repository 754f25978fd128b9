"""The state of an agent's two links to the coordinator, and its estimate of the coordinator's clock. Pure: the time is
an argument."""

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
"""The first heartbeats follow each other quickly, because a clock estimate is needed soon after the welcome."""
REFUSED_FOR_NS = 2 * NS_PER_S
"""If handshakes fail for this long, the cause is not a coordinator that starts or ends."""
REFUSED_APART_NS = 5 * NS_PER_S
"""Failed handshakes further apart than this are unrelated: ZeroMQ tries again each second."""
MOST_OFFSET_NS = 1 << 61
"""Largest difference of two monotonic clocks: 73 years, as each counts from the start of its host."""
MOST_ROUND_TRIP_NS = 60 * NS_PER_S
"""A slower reply gives no estimate of the other clock."""
UNANSWERED_NS = 5 * NS_PER_S
"""A coordinator that does not answer for this long may have forgotten this agent: say hello again."""


ATTACH_EVERY_NS = NS_PER_S
PROVE_WITHIN_NS = 10 * NS_PER_S
"""How long the metrics link may take to get through for the first time, once the control link has."""


class MetricsLink:
    """The metrics link. connection: number of the connection, from 1. attached: the coordinator has answered on this
    connection, so frames may be sent. proved: the coordinator has answered on a metrics connection since its welcome,
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
        """A coordinator welcomes us, but may not know this connection."""
        self.attached, self._attach_due_ns = False, now_ns
        if is_news:
            self.proved = False
            self.is_needed(now_ns)

    def is_needed(self, now_ns: int) -> None:
        """The link is needed from now on."""
        self._wanted_ns = now_ns

    def is_doubtful(self, now_ns: int) -> None:
        """Frames were not acknowledged: send `Attach`, and send them again after its answer."""
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
        """Whether to send `Attach` now; it is due again each second until it is answered."""
        if not self._up or self.attached or self._wanted_ns is None or now_ns < self._attach_due_ns:
            return False
        self._attach_due_ns = now_ns + ATTACH_EVERY_NS
        return True

    def was_attached(self) -> bool:
        """The coordinator has answered. Returns whether that is news."""
        is_news = not self.attached
        self.attached = self.proved = True
        return is_news

    def unreachable(self, endpoint: str, now_ns: int) -> str:
        """Why no frame can arrive, if the link should work by now; otherwise ""."""
        overdue = self._wanted_ns is not None and now_ns - self._wanted_ns > PROVE_WITHIN_NS
        there = f"its metrics connection to {endpoint} does not get through ({self._cause})"
        return f"{there}, although its control connection does" if overdue and not self.proved else ""


class Link:
    """The control link. up: as ZeroMQ reports it. welcome: the coordinator's answer to hello, None before it.
    coordinator: id of the run whose coordinator answered. connection: number of the connection, from 1. pace: how often
    to send frames and heartbeats."""

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
        """Why there is no link, according to the last examination."""
        self._examinations = 0
        self._lasting = 0

    def came_up(self, now_ns: int) -> None:
        """The handshake succeeded: hello is due at once, even to the same coordinator."""
        self.up, self.welcome, self._refused_ns, self._hello_due_ns = True, None, None, now_ns
        self.obstacle, self._examinations, self._lasting = "", 0, 0
        self.connection += 1

    def went_down(self) -> bool:
        """The link was lost. Returns whether we were welcome on it."""
        was_welcome = self.welcome is not None
        self.up, self.welcome = False, None
        return was_welcome

    def refused(self, now_ns: int) -> None:
        """The handshake failed."""
        first_ns, last_ns = self._refused_ns or (now_ns, now_ns)
        self._refused_ns = (first_ns if now_ns - last_ns <= REFUSED_APART_NS else now_ns, now_ns)

    def examined(self, obstacle: str, *, lasting: bool) -> bool:
        """The coordinator's address was examined. Returns whether the obstacle is new."""
        is_news = obstacle != self.obstacle
        if not obstacle and (is_news or not self._examinations):
            self._refused_ns = None  # until now it may have been a proxy without a coordinator that closed connections
        self._lasting = 0 if not lasting else 1 if is_news else self._lasting + 1
        self.obstacle = obstacle
        self._examinations += 1
        return is_news and bool(obstacle)

    @property
    def hopeless(self) -> str:
        """Why there will never be a link; "" while there may be. One obstacle is no proof: a coordinator may end."""
        if self._lasting > 1:
            return self.obstacle
        refused = self._refused_ns is not None and self._refused_ns[1] - self._refused_ns[0] > REFUSED_FOR_NS
        # A coordinator answers there, and secures its links as we do: only the token can be wrong.
        if refused and self._examinations and not self.obstacle:
            return "the coordinator refuses our token; copy its token file here (--token-file)"
        return ""

    def waited_in_vain(self, wait_ns: int | None, now_ns: int) -> str:
        """An error if no coordinator answered for this long; otherwise "". wait_ns: None for no limit."""
        if wait_ns is None or self.silent_ns(now_ns) <= wait_ns:
            return ""
        why = f": {self.obstacle}" if self.obstacle else ""
        return f"no coordinator answered for {wait_ns / NS_PER_S:.0f} s{why}"

    def heard(self, now_ns: int) -> None:
        """A message of the coordinator has come."""
        self._heard_ns = now_ns

    def silent_ns(self, now_ns: int) -> int:
        """Time since the last message of a coordinator, or since the agent's start."""
        return now_ns - self._heard_ns

    def welcomed(self, welcome: Welcome, run_id: str, now_ns: int) -> bool:
        """The coordinator of this run answered hello. Returns whether that is news."""
        if self.welcome == welcome and self.coordinator == run_id:
            return False
        self.welcome, self.coordinator, self.pace = welcome, run_id, welcome.pace
        self._phase_ns = crc32(welcome.agent_id.encode()) % (self.pace.frame_s * NS_PER_S)
        self.clock = ClockSync()  # another coordinator may have answered, with another clock
        self._heartbeat_due_ns = now_ns
        return True

    def replied(self, reply: HeartbeatReply, run_id: str, now_ns: int) -> None:
        """A heartbeat was answered. Answers of an earlier coordinator do not count for the clock."""
        sample = clock_sample(reply.sent_ns, reply.received_ns, reply.replied_ns, now_ns)
        # No clock is further away, and the next heartbeat could not carry such figures.
        makes_sense = abs(sample.offset_ns) <= MOST_OFFSET_NS and sample.rtt_ns <= MOST_ROUND_TRIP_NS
        if run_id == self.coordinator and makes_sense:
            self.clock.add(sample)

    def hello_is_due(self, now_ns: int) -> bool:
        """Whether to say hello now; the next one is due a second later."""
        answered = self.welcome is not None and self.silent_ns(now_ns) <= UNANSWERED_NS
        if not self.up or answered or now_ns < self._hello_due_ns:
            return False
        self._hello_due_ns = now_ns + HELLO_EVERY_NS
        return True

    def heartbeat_is_due(self, now_ns: int, *, runs: bool = False) -> bool:
        """Whether to send a heartbeat now. The next one is due a second later, sooner just after the welcome, and at
        the coordinator's pace while the load runs."""
        if self.welcome is None or now_ns < self._heartbeat_due_ns:
            return False
        quick = self.clock.count < FIRST_HEARTBEATS
        usual_ns = (self.pace.heartbeat_s if runs else 1) * NS_PER_S
        self._heartbeat_due_ns = now_ns + (FIRST_HEARTBEATS_EVERY_NS if quick else usual_ns)
        return True

    @property
    def turn_ns(self) -> int:
        """How long this agent delays its last frames. All loads end at once, so a large fleet spreads its last frames
        over up to a second."""
        return 0 if self.pace.frame_s == 1 else self._phase_ns // self.pace.frame_s

    def reporting_period(self, now_ns: int) -> int | None:
        """Number of the current reporting period; None if frames are sent as soon as a second is complete. Periods of
        different agents begin at different times, which spreads their frames."""
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
    """The hello of an agent. connection: number of its control connection. run_id: the run that it works for, or has
    results of; "" for none."""
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

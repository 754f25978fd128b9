"""How long a load may go on without its coordinator. Pure: the time is an argument.

The lease counts from when the agent sent the heartbeat that was answered last, not from when the answer came. So the
coordinator knows a bound: it has received every heartbeat that renews a lease, and none was sent later than that.
"""

from __future__ import annotations

from agent.events import RenewLease
from common.units import NS_PER_S

RENEW_EVERY_NS = NS_PER_S // 2
"""Worker processes are renewed no more often than this; by as much they may stop before the lease is over."""


class Lease:
    """One lease after the other, a run each. heard_ns: when the coordinator of the run said anything."""

    def __init__(self, now_ns: int) -> None:
        self.heard_ns = now_ns
        self._length_ns = 0
        self._from_ns = self._countable_ns = now_ns
        self._passed_on_ns = now_ns
        self._passed_on_until_ns = 0
        self._ticked_ns = now_ns
        self._held_up_ns = 0

    def begins(self, length_ns: int, now_ns: int) -> None:
        """The agent was dealt a share of a run."""
        self.heard_ns = self._from_ns = now_ns
        self._length_ns, self._held_up_ns = length_ns, 0

    def answered(self, sent_ns: int, now_ns: int) -> None:
        """The coordinator of the run has answered the heartbeat that was sent at this instant."""
        if self._countable_ns <= sent_ns <= now_ns:
            self._from_ns = max(self._from_ns, sent_ns)

    def ticks(self, suspended_ns: int, now_ns: int) -> None:
        """The agent's loop runs. suspended_ns: how long the machine was suspended since the last time."""
        if suspended_ns:  # our clock stood still, and does not tell how old an answer is
            self.heard_ns -= suspended_ns
            self._from_ns -= suspended_ns
            self._countable_ns = now_ns
        self._held_up_ns = max(self._held_up_ns, now_ns - self._ticked_ns + suspended_ns)
        self._ticked_ns = now_ns

    def expired(self, now_ns: int) -> str:
        """Why the load must end, or ""."""
        silent_ns = now_ns - self._from_ns
        return f"no word from its coordinator for {silent_ns // NS_PER_S} s" if silent_ns > self._length_ns else ""

    def pass_on(self, now_ns: int) -> RenewLease:
        """What worker processes may go on for, as it is now."""
        self._passed_on_ns, self._passed_on_until_ns = now_ns, self._from_ns + self._length_ns
        return RenewLease(self._passed_on_until_ns)

    def pass_on_news(self, now_ns: int) -> list[RenewLease]:
        """The same, if the coordinator has answered since the last time."""
        is_news = self._from_ns + self._length_ns != self._passed_on_until_ns
        return [self.pass_on(now_ns)] if is_news and now_ns - self._passed_on_ns >= RENEW_EVERY_NS else []

    def why_fenced(self, process: int, now_ns: int) -> str:
        """Why the lease of a worker process ran out. Its report may be read before the tick that follows a hold-up."""
        if (held_up_ns := max(self._held_up_ns, now_ns - self._ticked_ns)) > self._length_ns // 2:
            return f"its own process did not run for {held_up_ns / NS_PER_S:.1f} s"
        if (silent_ns := now_ns - self._from_ns) >= self._length_ns - RENEW_EVERY_NS:
            return f"no word from its coordinator for {silent_ns / NS_PER_S:.0f} s"
        return f"worker process {process} did not run for longer than the lease of {self._length_ns / NS_PER_S:g} s"

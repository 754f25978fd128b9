"""How long a load may continue without its coordinator. Pure: the time is an argument.

The lease counts from the instant at which the agent sent the last answered heartbeat, not from the arrival of the
answer. So the coordinator knows when it ends at the latest: the agent sent every heartbeat before the coordinator
received it.
"""

from __future__ import annotations

from agent.core.actions import RenewLease
from common.units import NS_PER_S

RENEW_EVERY_NS = NS_PER_S // 2
"""Shortest time between renewals for worker processes, which may stop this much before the lease ends."""


class Lease:
    """The lease of the current run. heard_ns: when the run's coordinator was last heard."""

    def __init__(self, now_ns: int) -> None:
        self.heard_ns = now_ns
        self._length_ns = 0
        self._from_ns = self._countable_ns = now_ns
        self._passed_on_ns = now_ns
        self._passed_on_until_ns = 0
        self._ticked_ns = now_ns
        self._held_up_ns = 0

    def begins(self, length_ns: int, now_ns: int) -> None:
        """The agent received a share of a run."""
        self.heard_ns = self._from_ns = now_ns
        self._length_ns, self._held_up_ns = length_ns, 0

    def answered(self, sent_ns: int, now_ns: int) -> None:
        """The coordinator of the run has answered the heartbeat that was sent at this instant."""
        if self._countable_ns <= sent_ns <= now_ns:
            self._from_ns = max(self._from_ns, sent_ns)

    def ticks(self, suspended_ns: int, now_ns: int) -> None:
        """The agent's loop runs. suspended_ns: how long the machine was suspended since the last time."""
        if suspended_ns:  # our clock stood still: the age of an answer is unknown
            self.heard_ns -= suspended_ns
            self._from_ns -= suspended_ns
            self._countable_ns = now_ns
        self._held_up_ns = max(self._held_up_ns, now_ns - self._ticked_ns + suspended_ns)
        self._ticked_ns = now_ns

    def expired(self, now_ns: int) -> str:
        """Why the load must end; "" if it need not."""
        silent_ns = now_ns - self._from_ns
        return f"no word from its coordinator for {silent_ns // NS_PER_S} s" if silent_ns > self._length_ns else ""

    def pass_on(self, now_ns: int) -> RenewLease:
        """The present end of the lease, for worker processes."""
        self._passed_on_ns, self._passed_on_until_ns = now_ns, self._from_ns + self._length_ns
        return RenewLease(self._passed_on_until_ns)

    def pass_on_news(self, now_ns: int) -> list[RenewLease]:
        """The new end of the lease, if the coordinator has answered since the last renewal."""
        is_news = self._from_ns + self._length_ns != self._passed_on_until_ns
        return [self.pass_on(now_ns)] if is_news and now_ns - self._passed_on_ns >= RENEW_EVERY_NS else []

    def why_fenced(self, process: int, now_ns: int) -> str:
        """Why the lease of a worker process ran out. Its report may be read before the tick that follows a hold-up."""
        if (held_up_ns := max(self._held_up_ns, now_ns - self._ticked_ns)) > self._length_ns // 2:
            return f"its own process did not run for {held_up_ns / NS_PER_S:.1f} s"
        if (silent_ns := now_ns - self._from_ns) >= self._length_ns - RENEW_EVERY_NS:
            return f"no word from its coordinator for {silent_ns / NS_PER_S:.0f} s"
        return f"worker process {process} did not run for longer than the lease of {self._length_ns / NS_PER_S:g} s"

"""Gives the shares of lost agents to agents that stand by (`--on-agent-loss replace`). Pure.

Theory of operation. Two agents never work on one share. So a share is free only when the agent that had it is fenced:
it has reported its end, or its process is gone, or it was silent for longer than its worker processes go on by
themselves (`coordinator.core.transitions`). Until then it may come back and go on; from then on it may only report.

    lost      the agent is silent, gone, or has ended its load early; nothing follows before it is fenced
    free      it is fenced; the share waits for a standby until the load ends
    offered   a standby prepares it: it opens connections, but preloads nothing, because the keys exist
    taken     that agent is ready: the takeover is recorded, then it receives the start instant of the run, the instant
              from which it sends, and what is left of a number of requests

An agent that fails to prepare, or makes no progress for `fleet.prepare`, gives way to the next one. One that has taken
a share over can be lost like any other. An agent that has had a share never gets another one: its frames are numbered
through the run.

Before the start no operation was sent: the share of an agent that is lost moves unchanged to a standby, unless the
agent may have preloaded part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.plan.scenarios import load_end_ns, preloads
from common.plan.schema import Fleet, OnAgentLoss
from common.protocol.messages import TakeOver
from common.units import NS_PER_S, counted, listed
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.unassigned_shares import remaining_requests
from coordinator.core.actions import Action, Note, Write
from coordinator.core.conversation import Conversation
from coordinator.core.dealt_plan import assignments_of, pools_of
from coordinator.core.member import LOST_AFTER_NS, OFFERS, Fence, Member, MemberState
from coordinator.core.run_state import RunState
from coordinator.core.transitions import Phase
from coordinator.journal.records import ShareTakenOver

TAKE_AHEAD_NS = 600_000_000
"""A takeover begins this much later: time for the message, and for waking the workers."""
CHECK_JOURNAL_EVERY_NS = NS_PER_S // 10


class TakeOvers:
    """Works on the state that it shares with `coordinator.core.run`; keeps the lines that it showed.

    written: the records in the run's journal.
    """

    def __init__(self, state: RunState, conversation: Conversation, written: Aggregate) -> None:
        self._state, self._conversation, self._written = state, conversation, written
        self._end_ns = load_end_ns(state.setup.plan)
        self._said: set[tuple[str, str]] = set()
        self._successors: dict[str, Member] = {}
        self._looked_ns = 0

    def advance(self, fence: Fence, now_ns: int) -> list[Action]:
        """Offer shares that are free, and start the agents that have prepared them."""
        if not self._is_wanted:
            return []
        actions: list[Action] = []
        for member in self._state.lost:
            if not self._is_open(member, now_ns):
                continue
            # A fenced agent stays fenced: its worker processes have ended, also if the agent comes back.
            if member.state is not MemberState.RETURNED and not member.is_fenced(now_ns, fence):
                seconds = (member.may_write_until_ns(fence) - now_ns) / NS_PER_S
                text = f"{member.agent_id} may still be at work; its share is free in {seconds:.0f} s at most"
                actions += self._say(member, "lost", text)
                continue
            self._state.registry.forfeit(member)
            actions += self._give(member, now_ns)
        return actions

    def are_pending(self, now_ns: int) -> bool:
        """Whether a share waits for a standby, and there is one."""
        if not self._is_wanted:
            return False
        waiting = [member for member in self._state.lost if self._is_open(member, now_ns)]
        return bool(waiting) and (bool(self._successors) or self._standby(now_ns) is not None)

    def before_start(self, lost: Member, now_ns: int) -> list[Action]:
        """Move the share of an agent that is lost before the start to a standby; nothing if that is impossible."""
        standby = self._standby(now_ns)
        if self._state.phase is not Phase.PREPARING or preloads(self._state.setup.plan) or standby is None:
            return []
        self._state.move_share(lost, standby, now_ns)
        text = f"agent {lost.agent_id} is lost before the start; {standby.agent_id}, which stood by, gets its share"
        order = self._conversation.order(standby, self._conversation.prepare_order(standby), now_ns)
        return [Note(text, trouble=True, of_agent=True), *order]

    @property
    def _is_wanted(self) -> bool:
        return self._state.setup.plan.fleet.on_agent_loss is OnAgentLoss.REPLACE and self._state.phase is Phase.RUNNING

    def _is_open(self, member: Member, now_ns: int) -> bool:
        """Whether the member has lost its share, no other agent has it, and operations are left in it."""
        if member.replaced_by or not member.has_lost_share:
            return False
        tally, t0_ns = self._written.agents.get(member.agent_id), self._state.t0_ns
        if tally is None or t0_ns is None or not tally.facts.pools:
            return False
        if self._end_ns is not None and now_ns + TAKE_AHEAD_NS >= t0_ns + self._end_ns:
            return False
        left = remaining_requests(self._written, member.agent_id)
        return left is None or any(pool.operations for pool in left)

    def _standby(self, now_ns: int) -> Member | None:
        """The first standby that has not failed recently. After a search without a result, the next one comes a little
        later, because there may be many agents and many events."""
        if self._looked_ns <= now_ns < self._looked_ns + CHECK_JOURNAL_EVERY_NS:
            return None
        standing_by = self._state.registry.standing_by(now_ns)
        found = next((member for member in standing_by if now_ns >= member.unfit_until_ns), None)
        self._looked_ns = now_ns if found is None else 0
        return found

    def _give(self, lost: Member, now_ns: int) -> list[Action]:
        """Take the next step for a free share."""
        successor = self._successors.get(lost.agent_id)
        if successor is not None and (
            successor.state not in OFFERS or self._state.registry.find(successor.incarnation) is not successor
        ):
            successor = None  # it has declined, or left
            del self._successors[lost.agent_id]
        if successor is not None and (why := self._unable(successor, now_ns)):
            self._state.registry.decline(successor, now_ns)
            return [
                Note(f"agent {successor.agent_id} cannot take over the share of {lost.agent_id}: {why}", trouble=True)
            ]
        if successor is None:
            return self._offer(lost, now_ns)
        return self._start(successor, lost, now_ns) if successor.is_ready and successor.offset_ns is not None else []

    def _unable(self, successor: Member, now_ns: int) -> str:
        if now_ns - successor.heard_ns > LOST_AFTER_NS:
            return f"no message from it for {(now_ns - successor.heard_ns) / NS_PER_S:.1f} s"
        prepare_s = self._state.setup.plan.fleet.prepare_s
        if not successor.is_ready and now_ns - successor.progressed_ns > prepare_s.ns:
            return f"not prepared, and without progress for {prepare_s}"
        return ""

    def _offer(self, lost: Member, now_ns: int) -> list[Action]:
        successor = self._standby(now_ns)
        if successor is None:
            return self._say(lost, "free", f"no agent stands by to take over the share of {lost.agent_id}")
        opened = self._written.opened
        assert opened is not None
        plan = self._state.setup.plan if self._state.dealt_plan is None else self._state.dealt_plan.plan
        pools = self._written.agents[lost.agent_id].facts.pools
        offered = assignments_of(plan, pools, opened.threads or (opened.threads_total,), preloads=False)
        self._state.registry.offer(successor, offered, lost, now_ns)
        self._successors[lost.agent_id] = successor
        return self._conversation.order(successor, self._conversation.prepare_order(successor), now_ns)

    def _start(self, successor: Member, lost: Member, now_ns: int) -> list[Action]:
        t0_ns, offered = self._state.t0_ns, successor.offered
        assert t0_ns is not None
        assert offered
        from_ns = max(0, now_ns + TAKE_AHEAD_NS - t0_ns)
        left = remaining_requests(self._written, lost.agent_id)
        pools = pools_of(offered)
        self._state.registry.take_over(successor, lost, TakeOver(from_ns=from_ns, remaining=left), pools, now_ns)
        del self._successors[lost.agent_id]
        record = ShareTakenOver(
            agent=successor.facts(pools), replaces=lost.agent_id, from_ns=from_ns, at_ns=now_ns, remaining=left
        )
        text = f"agent {successor.agent_id} takes over the share of {lost.agent_id} at {from_ns / NS_PER_S:.1f} s"
        order = self._conversation.order(successor, self._conversation.start_order(successor), now_ns)
        return [Write(record), Note(text, trouble=True, of_agent=True), *order]

    def _say(self, member: Member, what: str, text: str) -> list[Action]:
        """A line, once for each share and step."""
        if (member.agent_id, what) in self._said:
            return []
        self._said.add((member.agent_id, what))
        return [Note(text, trouble=True, of_agent=True)]


def reason_to_abort(fleet: Fleet, members: Sequence[Member]) -> str:
    """Why `--on-agent-loss abort` stops the load, or "". members: those that may have lost their share."""
    lost = [member.agent_id for member in members if member.has_lost_share]
    if fleet.on_agent_loss is not OnAgentLoss.ABORT or len(lost) <= fleet.tolerate_lost:
        return ""
    tolerated = f"--tolerate-lost {fleet.tolerate_lost} and " if fleet.tolerate_lost else ""
    return f"lost {counted(len(lost), 'agent')} ({listed(lost)}), with {tolerated}--on-agent-loss abort"

"""How many agents a run needs to start, which stand by, and what happens when an agent is lost. Pure.

A run starts when all expected agents are there, or when `--wait` has passed and `--at-least` of them are. Every agent
beyond those that got a share stands by: it stays connected, and is dismissed with the others at the end.

An agent loses its share when it is lost, or when it ends its load before its time (it was terminated, or its lease ran
out). `--on-agent-loss` decides what happens then:

    continue  the others go on
    abort     the load stops once more agents have lost their share than `--tolerate-lost` allows
    replace   an agent that stands by takes the share over (`coordinator.core.takeover`)
"""

from __future__ import annotations

from collections.abc import Sequence

from common.plan.schema import Fleet, OnAgentLoss
from common.units import counted, listed
from coordinator.core.records import AgentEnd
from coordinator.core.registry import Member


def is_quorum(fleet: Fleet, expected: int, ready: int, waited_ns: int) -> bool:
    """Whether `ready` agents are enough to start with, after a wait of `waited_ns`."""
    return ready >= expected or (waited_ns > fleet.wait_s.ns and ready >= (fleet.at_least or expected))


def lost_share(member: Member) -> bool:
    """Whether nobody works on this agent's share any more, although the run has not been stopped."""
    if member.final is not None:
        return bool(member.final.reason)
    return member.end is AgentEnd.LOST


def reason_to_abort(fleet: Fleet, members: Sequence[Member]) -> str:
    """Why the load must stop, or "". members: those that may have lost their share."""
    lost = [member.agent_id for member in members if lost_share(member)]
    if fleet.on_agent_loss is not OnAgentLoss.ABORT or len(lost) <= fleet.tolerate_lost:
        return ""
    tolerated = f"--tolerate-lost {fleet.tolerate_lost} and " if fleet.tolerate_lost else ""
    return f"lost {counted(len(lost), 'agent')} ({listed(lost)}), with {tolerated}--on-agent-loss abort"

"""The agents that run a plan, and how long the coordinator waits for them."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from msgspec import field

from common.plan.schema.base import FLEET, AtLeastOne, NotNegative, Section, setting
from common.units import Seconds


class OnAgentLoss(enum.Enum):
    """What the run does when an agent is lost during the load. ABORT stops the run once more agents are lost than
    tolerated; REPLACE gives their shares to standby agents."""

    CONTINUE = "continue"
    ABORT = "abort"
    REPLACE = "replace"


class Fleet(Section, frozen=True, kw_only=True):
    """The agents of a run, local and remote, and the time limits of the coordinator and the agents."""

    heading: ClassVar[str] = FLEET

    expect_agents: Annotated[NotNegative, setting("--expect-agents", help="agents that join from other machines")] = 0
    local_agents: Annotated[NotNegative, setting("--local-agents", help="agents to start on this machine")] = 0
    processes_per_local_agent: Annotated[
        AtLeastOne | None,
        setting("--processes", default="one per usable core", help="worker processes of each local agent"),
    ] = None
    per_agent: Annotated[
        bool,
        setting("--per-agent", is_switch=True, help="pools, rate and requests apply to each agent, not to the fleet"),
    ] = False
    at_least: Annotated[
        AtLeastOne | None,
        setting("--at-least", default="all", help="start with this many agents if not all have joined within --wait"),
    ] = None
    on_agent_loss: Annotated[
        OnAgentLoss,
        setting(
            "--on-agent-loss",
            help="when an agent is lost: continue without it, stop the run, or give its share to a standby agent",
        ),
    ] = OnAgentLoss.CONTINUE
    tolerate_lost: Annotated[
        NotNegative,
        setting(
            "--tolerate-lost",
            help="agents that may be lost before the run fails, or aborts with --on-agent-loss abort",
        ),
    ] = 0
    wait_s: Annotated[Seconds, setting("--wait", help="longest wait for agents to join")] = field(
        default=Seconds(60.0), name="wait"
    )
    prepare_s: Annotated[Seconds, setting("--prepare", help="longest that an agent may prepare without progress")] = (
        field(default=Seconds(120.0), name="prepare")
    )
    lease_s: Annotated[
        Seconds, setting("--lease", help="an agent that loses the coordinator for this long stops its load")
    ] = field(default=Seconds(30.0), name="lease")
    drain_s: Annotated[Seconds, setting("--drain", help="longest wait for operations in flight at the end")] = field(
        default=Seconds(10.0), name="drain"
    )

"""The specification of a round: plan, fleet and faults, all drawn from the seed. Pure."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Any

COUNTERS = "soak:n:"
"""Prefix of the keys that INCR counts up. Their sum is the number of INCR commands that the server executed."""


class FaultKind(enum.Enum):
    """What can go wrong."""

    CUT = "connections are reset, and new ones refused"
    RESET = "all connections are reset once"
    STORM = "connections are reset again and again"
    ONE_CUT = "one of the two connections stops passing data"
    BLACKHOLE = "nothing passes, in either direction"
    DEAF = "nothing passes from coordinator to agent"
    MUTE = "nothing passes from agent to coordinator"
    HALF_OPEN = "the coordinator's side is closed, the agent's stays open and silent"
    DELAY = "everything is delayed"
    THROTTLE = "the bandwidth is low"
    AGENT_KILLED = "kill -9 of an agent"
    AGENT_STOPPED = "SIGSTOP of an agent's own process"
    AGENT_TERMINATED = "SIGTERM of an agent"
    AGENT_PAUSED = "Ctrl-S in an agent's terminal"
    WORKER_KILLED = "kill -9 of a worker process"
    WORKER_STOPPED = "SIGSTOP of a worker process"
    COORDINATOR_KILLED = "kill -9 of the coordinator, which is resumed"
    COORDINATOR_STOPPED = "SIGSTOP of the coordinator"
    COORDINATOR_PAUSED = "Ctrl-S in the coordinator's terminal"
    INTERRUPTED = "Ctrl-C"
    INTERRUPTED_TWICE = "Ctrl-C twice"
    JOURNAL_FULL = "the journal cannot be written any more, and the run is resumed"
    TARGET_STOPPED = "SIGSTOP of the target"
    TARGET_KILLED = "kill -9 of the target, which is restarted empty"
    FLOOD = "a peer with the token sends as fast as it can, and disconnects"
    STRANGERS = "many connections that send nothing"
    GARBAGE = "many connections that send garbage"


NETWORK_FAULTS = frozenset(
    {
        FaultKind.CUT,
        FaultKind.RESET,
        FaultKind.STORM,
        FaultKind.ONE_CUT,
        FaultKind.BLACKHOLE,
        FaultKind.DEAF,
        FaultKind.MUTE,
        FaultKind.HALF_OPEN,
        FaultKind.DELAY,
        FaultKind.THROTTLE,
    }
)
"""Kinds that need an agent behind a relay."""
MAY_LOSE_OPERATIONS = frozenset({FaultKind.AGENT_KILLED, FaultKind.WORKER_KILLED})
"""Kinds that may lose operations: those in flight, and those not reported yet."""
SHORTENS_WAITS = frozenset({FaultKind.AGENT_TERMINATED, FaultKind.INTERRUPTED_TWICE})
"""Kinds after which agents and coordinator wait for each other for a shorter time."""
TARGET_FAULTS = frozenset({FaultKind.TARGET_STOPPED, FaultKind.TARGET_KILLED})
"""Kinds that hit the target."""
OUTAGES = NETWORK_FAULTS | {
    FaultKind.AGENT_STOPPED,
    FaultKind.WORKER_STOPPED,
    FaultKind.COORDINATOR_STOPPED,
    FaultKind.COORDINATOR_KILLED,
    FaultKind.JOURNAL_FULL,
}
"""Kinds that separate agents and coordinator for a while. If all outages together are shorter than the lease, nothing
is lost."""
HARMLESS = frozenset(
    {
        FaultKind.FLOOD,
        FaultKind.STRANGERS,
        FaultKind.GARBAGE,
        FaultKind.DELAY,
        FaultKind.AGENT_PAUSED,
        FaultKind.COORDINATOR_PAUSED,
    }
)
"""Kinds that must not change how a run ends."""
_WEIGHTS = {
    FaultKind.COORDINATOR_KILLED: 4,
    FaultKind.BLACKHOLE: 2,
    FaultKind.CUT: 2,
    FaultKind.AGENT_STOPPED: 2,
    FaultKind.FLOOD: 2,
}


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault. at_s: after the load began or, if `early`, after the coordinator started. seconds: duration; for a kill,
    time until the restart. agent: index of the agent, modulo the number of agents."""

    kind: FaultKind
    at_s: float
    seconds: float
    agent: int
    early: bool = False

    def __str__(self) -> str:
        since = "start" if self.early else "load"
        return f"{since} + {self.at_s:4.1f} s: {self.kind.name}, agent {self.agent}, for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent that joins through its own relay. late_s: above 0, it starts this long after the coordinator. terminal:
    it writes to a terminal. proxied: without a coordinator, its relay closes connections at once instead of holding
    them."""

    processes: int
    once: bool
    late_s: float
    terminal: bool
    proxied: bool = False


@dataclass(frozen=True, slots=True)
class RoundSpec:
    """A round. plan: content of a plan file, without its target. length_s: expected length of the load. agents: all
    that join through relays, standbys included. terminal: the coordinator writes to a terminal. serves_next_run: the
    agents run another plan afterwards."""

    seed: int
    number: int
    plan: dict[str, Any]
    length_s: float
    agents: tuple[AgentSpec, ...]
    terminal: bool
    faults: tuple[PlannedFault, ...]
    serves_next_run: bool

    @property
    def kinds(self) -> frozenset[FaultKind]:
        """The kinds of all planned faults."""
        return frozenset(fault.kind for fault in self.faults)

    @property
    def lease_s(self) -> float:
        """The lease of the plan."""
        return float(self.plan["fleet"]["lease"][:-1])

    @property
    def fence_s(self) -> float:
        """An agent without a coordinator must have stopped its load after this time: lease, drain, and a margin for a
        busy machine."""
        return self.lease_s + float(self.plan["fleet"]["drain"][:-1]) + 4.0


def draw_round(seed: int, number: int, *, quiet: bool | None = None) -> RoundSpec:
    """Draw round `number` of a seed: always the same. quiet: without faults; None decides by chance."""
    chance = random.Random(f"{seed}/{number}")
    driver = chance.choice(["client", "asyncio", "wire"])
    remote = chance.choice([0, 1, 1, 2, 2, 3])
    local = chance.choice([0, 0, 1, 2]) if remote else chance.choice([1, 2])
    load, length_s = _load(chance)
    on_loss = chance.choice(["continue", "continue", "abort", "replace"])
    spares = chance.choice([1, 2]) if on_loss == "replace" and remote else 0
    plan = {
        "pools": [_pools(chance, driver)],
        "workload": _workload(chance, driver),
        "load": load,
        "fleet": {
            "expect_agents": remote,
            "local_agents": local,
            "processes_per_local_agent": chance.choice([1, 1, 2]),
            "lease": f"{chance.choice([3, 4, 6, 12, 18])}s",
            "drain": f"{chance.choice([1, 2, 3])}s",
            "wait": "40s",
            "prepare": "40s",
            "on_agent_loss": on_loss,
            "tolerate_lost": chance.choice([0, 0, 1]),
        },
        "seed": chance.randrange(1, 1000),
    }
    agents = tuple(
        AgentSpec(
            processes=chance.choice([1, 1, 2]),
            once=chance.random() < 0.5,
            late_s=chance.choice([0.0, 0.0, 1.0]),
            terminal=chance.random() < 0.5,
            proxied=chance.random() < 0.3,
        )
        for _ in range(remote + spares)
    )
    terminal = chance.random() < 0.6
    is_quiet = chance.random() < 0.08 if quiet is None else quiet
    faults = () if is_quiet else _faults(chance, agents, len(agents) + local, terminal, length_s)
    return RoundSpec(seed, number, plan, length_s, agents, terminal, faults, serves_next_run=chance.random() < 0.4)


def _pools(chance: random.Random, driver: str) -> dict[str, Any]:
    pools: dict[str, Any] = {
        "driver": driver,
        "client_pools": chance.choice([2, 3, 4, 6]),
        "client_instances_per_pool": chance.choice([1, 2]),
        "max_connections": chance.choice([2, 4, 8]),
        "connections": chance.choice(["lazy", "lazy", "prewarm"]),
    }
    if driver != "wire":
        pools["threads_per_pool" if driver == "client" else "tasks_per_pool"] = chance.choice([1, 2, 3])
        pools["tcp_pool"] = chance.choice(["raising", "blocking"])
    return pools


def _workload(chance: random.Random, driver: str) -> dict[str, Any]:
    workload: dict[str, Any] = {
        "commands": [
            {"command": "SET", "weight": 2},
            {"command": "GET", "weight": 3},
            {"command": "INCR", "weight": 2, "key_prefix": COUNTERS},
        ],
        "keys": {"prefix": "soak:k:", "maximum": chance.choice([50, 500, 2000])},
        "clean_up": chance.choice(["none", "none", "keys"]),
    }
    shape = chance.random()
    if shape < 0.3:
        workload["pipeline"] = chance.choice([3, 10])
    elif shape < 0.4 and driver == "client":
        workload["transaction"] = 3
    if chance.random() < 0.3:
        workload["preload"] = [{"command": "SET"}]
    return workload


def _load(chance: random.Random) -> tuple[dict[str, Any], float]:
    """(load section of the plan, its length in seconds)"""
    rate = chance.choice([100, 300, 800, 1500])
    seconds = chance.choice([4, 6, 9, 12])
    load: dict[str, Any]
    match chance.choice(["open", "open", "closed", "stages", "requests", "requests"]):
        case "open":
            arrivals = chance.choice(["constant", "poisson"])
            load = {"duration": f"{seconds}s", "rate": f"{rate}/s", "arrivals": arrivals}
        case "closed":
            seconds = min(seconds, 6)
            load = {"duration": f"{seconds}s"}
        case "stages":
            half = max(2, seconds // 2)
            stages = [{"duration": f"{half}s", "rate": f"{rate}/s"}, {"duration": f"{half}s", "rate": f"{rate // 2}/s"}]
            stages[1]["ramp"] = chance.choice(["step", "linear"])
            load, seconds = {"stages": stages}, 2 * half
        case _:
            load = {"requests": rate * seconds, "rate": f"{rate}/s"}
    if "requests" not in load and chance.random() < 0.25:
        load["warmup"] = "1s"
        seconds += 1
    return load, float(seconds)


def _faults(
    chance: random.Random, agents: tuple[AgentSpec, ...], fleet: int, terminal: bool, length_s: float
) -> tuple[PlannedFault, ...]:
    kinds = [kind for kind in FaultKind if agents or kind not in NETWORK_FAULTS]
    if not terminal:
        kinds.remove(FaultKind.COORDINATOR_PAUSED)
    if not any(agent.terminal for agent in agents):
        kinds.remove(FaultKind.AGENT_PAUSED)
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    faults: list[PlannedFault] = []
    for kind in chance.choices(kinds, weights, k=chance.choice([1, 1, 2, 2, 3, 4])):
        early = chance.random() < 0.12
        at_s = chance.uniform(0.2, 2.0) if early else chance.uniform(0.0, length_s + 2.0)
        seconds = chance.choice([0.3, 1.0, 2.5, 5.0, 9.0, 14.0]) * chance.uniform(0.8, 1.2)
        faults.append(PlannedFault(kind, round(at_s, 1), round(seconds, 1), chance.randrange(fleet), early))
    return tuple(sorted(faults, key=lambda fault: (not fault.early, fault.at_s)))

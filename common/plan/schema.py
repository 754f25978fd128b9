"""The plan: one typed, frozen document of what to run. Shapes only; where it comes from is `sources`' matter.

Field names are the keys of the plan file; where a Python name carries a unit, the key does not (`duration_s` is
`duration` in the file, because its value says its unit: "30s"). Counts are fleet-wide.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta, field

from common.units import Bytes, Count, PerSecond, Seconds

AtLeastOne = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]

REDACTED = "***"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the plan: immutable, and no key in it that it does not know."""


class Driver(enum.Enum):
    """How a pool issues operations."""

    CLIENT = "client"


class Connections(enum.Enum):
    """When TCP connections are opened: as calls need them, or all of them before the start."""

    LAZY = "lazy"
    PREWARM = "prewarm"


class Arrivals(enum.Enum):
    """How intended send times are spaced in an open loop."""

    CONSTANT = "constant"
    POISSON = "poisson"


class BackoffKind(enum.Enum):
    """redis-py's backoff families."""

    NONE = "none"
    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    FULL_JITTER = "full-jitter"
    EQUAL_JITTER = "equal-jitter"
    DECORRELATED_JITTER = "decorrelated-jitter"


class Embedded(enum.Enum):
    """A server of our own on loopback, for trying things out."""

    STANDALONE = "standalone"


class Retry(Section, frozen=True, kw_only=True):
    """redis-py's retry policy, always passed explicitly. `retries` 0 means that nothing is tried again."""

    retries: NotNegative = 3
    backoff: BackoffKind = BackoffKind.FULL_JITTER
    base_s: Seconds = field(default=Seconds(0.008), name="base")
    cap_s: Seconds = field(default=Seconds(0.512), name="cap")


class Target(Section, frozen=True, kw_only=True):
    """What is loaded. `url` never holds a password once the plan is resolved: that is in `password`."""

    url: str = ""
    embedded: Embedded | None = None
    username: str | None = None
    password: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    protocol: Annotated[int, Meta(ge=2, le=3)] = 3
    client_name: Name | None = "stampede"
    connect_timeout_s: Seconds = field(default=Seconds(5.0), name="connect_timeout")
    socket_timeout_s: Seconds = field(default=Seconds(5.0), name="socket_timeout")
    retry: Retry = Retry()

    def __repr__(self) -> str:
        """Never shows the password: plans end up in logs."""
        return f"Target(url={self.url!r}, username={self.username!r}, password={REDACTED if self.password else None!r})"


class Pools(Section, frozen=True, kw_only=True):
    """A group of client instance pools that are alike. `client_pools` unset: one per agent process."""

    name: Name = "main"
    driver: Driver = Driver.CLIENT
    client_pools: AtLeastOne | None = None
    client_instances_per_pool: AtLeastOne = 1
    threads_per_pool: AtLeastOne = 1
    max_connections: AtLeastOne = 50
    connections: Connections = Connections.LAZY
    checkout_timeout_s: Seconds = field(default=Seconds(20.0), name="checkout_timeout")


class Command(Section, frozen=True, kw_only=True):
    """One entry of the mix. `command` is a name of the command table, or a template such as "SET __key__ __data__"."""

    command: str
    weight: Annotated[float, Meta(ge=0)] = 1.0
    key_prefix: str | None = None


class Keys(Section, frozen=True, kw_only=True):
    """Keys are `prefix` followed by a whole number drawn from minimum..maximum, both included."""

    prefix: str = "stampede:"
    minimum: Count = Count(1)
    maximum: Count = Count(1_000_000)


class Values(Section, frozen=True, kw_only=True):
    """Value sizes in bytes, drawn uniformly from minimum..maximum, both included; `--data-size` sets both."""

    minimum_bytes: Bytes = field(default=Bytes(32), name="minimum")
    maximum_bytes: Bytes = field(default=Bytes(32), name="maximum")


class Workload(Section, frozen=True, kw_only=True):
    """What is issued. `profile` names the built-in workload whose keys lie under those given here; `sources` lays
    them there before this type is made, so `commands` is never empty in a plan that was loaded.

    pipeline: commands per round trip. transaction: commands per MULTI/EXEC; 0 for none.
    """

    profile: str | None = None
    commands: tuple[Command, ...] = ()
    keys: Keys = Keys()
    values: Values = Values()
    pipeline: AtLeastOne = 1
    transaction: NotNegative = 0


class Load(Section, frozen=True, kw_only=True):
    """How much: for `duration`, or exactly `requests` operations; as fast as replies come, or at `rate`."""

    duration_s: Seconds | None = field(default=None, name="duration")
    requests: Count | None = None
    rate_per_s: PerSecond | None = field(default=None, name="rate")
    arrivals: Arrivals = Arrivals.CONSTANT


class Fleet(Section, frozen=True, kw_only=True):
    """Who runs it, and how long the coordinator is patient with them.

    expect_agents: agents that join from elsewhere. local_agents: agents started here. per_agent: counts of pools,
    rate and requests are each agent's instead of the fleet's. lease: an agent that hears nothing for so long drains.
    drain: how long operations in flight may take to come to an end. tolerate_lost: agents that may be lost mid-run
    before the run counts as failed; it goes on with the others either way.
    """

    expect_agents: NotNegative = 0
    local_agents: NotNegative = 0
    processes_per_local_agent: AtLeastOne | None = None
    per_agent: bool = False
    tolerate_lost: NotNegative = 0
    wait_s: Seconds = field(default=Seconds(60.0), name="wait")
    prepare_s: Seconds = field(default=Seconds(120.0), name="prepare")
    lease_s: Seconds = field(default=Seconds(30.0), name="lease")
    drain_s: Seconds = field(default=Seconds(10.0), name="drain")


class Plan(Section, frozen=True, kw_only=True):
    """The whole plan. Two equal plans on equal fleets draw the same keys, because all seeds derive from `seed`."""

    target: Target = Target()
    pools: Annotated[tuple[Pools, ...], Meta(min_length=1)] = (Pools(),)
    workload: Workload = Workload()
    load: Load = Load()
    fleet: Fleet = Fleet()
    seed: NotNegative = 1

"""The plan: one typed, frozen document of what to run. Shapes only; where it comes from is `sources`' matter.

Field names are the keys of the plan file; where a Python name carries a unit, the key does not (`duration_s` is
`duration` in the file, because its value says its unit: "30s"). Counts are fleet-wide.
"""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta, field

from common.plan.schema.base import AtLeastOne, Name, NotNegative
from common.plan.schema.base import Section as Section
from common.plan.schema.load import Arrivals as Arrivals
from common.plan.schema.load import Load as Load
from common.plan.schema.load import Ramp as Ramp
from common.plan.schema.load import Stage as Stage
from common.plan.schema.target import BackoffKind as BackoffKind
from common.plan.schema.target import Cluster as Cluster
from common.plan.schema.target import Embedded as Embedded
from common.plan.schema.target import Keepalive as Keepalive
from common.plan.schema.target import Maintenance as Maintenance
from common.plan.schema.target import ReadFrom as ReadFrom
from common.plan.schema.target import Retry as Retry
from common.plan.schema.target import RetryError as RetryError
from common.plan.schema.target import Sentinel as Sentinel
from common.plan.schema.target import Target as Target
from common.plan.schema.target import Tls as Tls
from common.plan.schema.target import Verify as Verify
from common.plan.schema.workload import CleanUp as CleanUp
from common.plan.schema.workload import Command as Command
from common.plan.schema.workload import Distribution as Distribution
from common.plan.schema.workload import Expiry as Expiry
from common.plan.schema.workload import Keys as Keys
from common.plan.schema.workload import Preload as Preload
from common.plan.schema.workload import PubSub as PubSub
from common.plan.schema.workload import Script as Script
from common.plan.schema.workload import SizeWeight as SizeWeight
from common.plan.schema.workload import Then as Then
from common.plan.schema.workload import ValueKind as ValueKind
from common.plan.schema.workload import Values as Values
from common.plan.schema.workload import When as When
from common.plan.schema.workload import Workload as Workload
from common.units import Seconds


class Driver(enum.Enum):
    """How a pool issues operations: redis-py with threads; redis.asyncio with tasks; or RESP at wire speed over the
    connections that redis-py has opened."""

    CLIENT = "client"
    ASYNCIO = "asyncio"
    WIRE = "wire"


class Connections(enum.Enum):
    """When TCP connections are opened: as calls need them, or all of them before the start."""

    LAZY = "lazy"
    PREWARM = "prewarm"


class TcpPool(enum.Enum):
    """What redis-py's TCP pool does when all its connections are in use: raise at once, or wait."""

    RAISING = "raising"
    BLOCKING = "blocking"


class Pools(Section, frozen=True, kw_only=True):
    """A group of client instance pools that are alike. `client_pools` unset: one per agent process.

    tasks_per_pool: worker tasks of each pool with the asyncio driver, in the place of threads. With the wire driver a
    pool has one worker, which keeps all connections of its instances busy. tcp_pool_wait: of a blocking TCP pool.
    """

    name: Name = "main"
    driver: Driver = Driver.CLIENT
    client_pools: AtLeastOne | None = None
    client_instances_per_pool: AtLeastOne = 1
    threads_per_pool: AtLeastOne = 1
    tasks_per_pool: AtLeastOne = 1
    max_connections: AtLeastOne = 50
    tcp_pool: TcpPool = TcpPool.RAISING
    tcp_pool_wait_s: Seconds = field(default=Seconds(20.0), name="tcp_pool_wait")
    connections: Connections = Connections.LAZY
    checkout_timeout_s: Seconds = field(default=Seconds(20.0), name="checkout_timeout")

    @property
    def workers_per_pool(self) -> int:
        """Worker threads, tasks or loops that use one pool."""
        match self.driver:
            case Driver.CLIENT:
                return self.threads_per_pool
            case Driver.ASYNCIO:
                return self.tasks_per_pool
            case Driver.WIRE:
                return 1


class OnAgentLoss(enum.Enum):
    """What the run does when an agent is lost during the load."""

    CONTINUE = "continue"
    ABORT = "abort"
    REPLACE = "replace"


class Fleet(Section, frozen=True, kw_only=True):
    """Who runs it, and how long the coordinator is patient with them.

    expect_agents: agents that join from elsewhere. local_agents: agents started here. per_agent: counts of pools,
    rate and requests are each agent's instead of the fleet's. prepare: how long an agent may take to get ready
    without any progress. lease: an agent that hears nothing for so long drains. drain: how long operations in flight
    may take to come to an end. at_least: agents that are enough for a start once `wait` has passed; unset: all.
    tolerate_lost: agents that may be lost during the load before the run counts as failed. on_agent_loss: what the run
    does about them; ABORT stops it once more are lost than tolerated, REPLACE gives their shares to agents that stand
    by.
    """

    expect_agents: NotNegative = 0
    local_agents: NotNegative = 0
    processes_per_local_agent: AtLeastOne | None = None
    per_agent: bool = False
    at_least: AtLeastOne | None = None
    on_agent_loss: OnAgentLoss = OnAgentLoss.CONTINUE
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

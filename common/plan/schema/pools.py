"""The client instance pools that issue the load."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from msgspec import field

from common.plan.schema.base import POOLS, AtLeastOne, Name, Section, described, setting
from common.units import Seconds


class Driver(enum.Enum):
    """How a pool issues operations: redis-py with threads; redis.asyncio with tasks; or RESP at wire speed over
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
    """A group of identical client instance pools. With the wire driver each pool has one worker, which keeps all
    connections of its instances busy."""

    heading: ClassVar[str] = POOLS

    name: Annotated[Name, described("name in the report")] = "main"
    driver: Annotated[
        Driver,
        setting(
            "--driver",
            help="redis-py with threads, redis.asyncio with tasks, or RESP at wire speed over redis-py's connections",
        ),
    ] = Driver.CLIENT
    client_pools: Annotated[
        AtLeastOne | None,
        setting(
            "--client-pools",
            "--client-instances",
            default="one per agent process",
            help="client instance pools, fleet-wide",
        ),
    ] = None
    client_instances_per_pool: Annotated[
        AtLeastOne,
        setting("--client-instances-per-pool", "--connections-per-client", help="redis.Redis instances in each pool"),
    ] = 1
    threads_per_pool: Annotated[
        AtLeastOne, setting("--threads-per-pool", "--threads-per-client", help="worker threads of each pool")
    ] = 1
    tasks_per_pool: Annotated[
        AtLeastOne, setting("--tasks-per-pool", help="worker tasks of each pool, with --driver asyncio")
    ] = 1
    max_connections: Annotated[AtLeastOne, setting("--max-connections", help="TCP connections of each redis.Redis")] = (
        50
    )
    tcp_pool: Annotated[
        TcpPool, setting("--tcp-pool", help="what a TCP pool does when all its connections are in use")
    ] = TcpPool.RAISING
    tcp_pool_wait_s: Annotated[Seconds, setting("--tcp-pool-wait", help="longest wait of a blocking TCP pool")] = field(
        default=Seconds(20.0), name="tcp_pool_wait"
    )
    connections: Annotated[
        Connections,
        setting("--connections", help="open connections as calls need them, or all of them before the start"),
    ] = Connections.LAZY
    checkout_timeout_s: Annotated[
        Seconds, setting("--checkout-timeout", help="longest wait of a thread for a client instance")
    ] = field(default=Seconds(20.0), name="checkout_timeout")

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

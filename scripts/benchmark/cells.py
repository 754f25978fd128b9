"""One cell of the matrix: what everybody is to do in it, with the same keys, told to our own drivers as a plan. Pure.

Keys are `key:` and a number of thirteen digits that begins with 1: what redis-benchmark can draw only with leading
zeros, everybody else only without. Two of three forms are one that way: `key:1` and twelve digits with zeros before
them. resp-benchmark has no such zeros, so every tenth of its keys is shorter; these exist, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.plan.schema import Command, Connections, Driver, Keys, Load, Plan, Pools, Target, Values, Workload
from common.units import Bytes, Count

KEY_PREFIX = "key:"
FIRST_KEY = 10**12
_KEY_COST_BYTES = 120
"""What a key of this form and its entry take on the server beside the value; rounded up."""
_SHORT_SHARE = 0.12
"""Keys of resp-benchmark that nobody else has, at most of so many."""


@dataclass(frozen=True, slots=True)
class Cell:
    """How many connections, requests under way on each, and bytes a value. keys: how many there are to draw from."""

    connections: int
    pipeline: int
    value_bytes: int
    keys: int

    @property
    def last_key(self) -> int:
        """The number of the last key."""
        return FIRST_KEY + self.keys - 1

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.connections} connections, pipeline {self.pipeline}, values of {self.value_bytes} bytes"


def short_prefix(keys: int) -> str:
    """What resp-benchmark puts before a number without leading zeros, below so many."""
    return f"{KEY_PREFIX}1" + "0" * (12 - len(str(keys - 1)))


def plan_for(cell: Cell, driver: Driver, target: Target, load: Load | None = None) -> Plan:
    """The cell for a driver of ours: a thread, a task or a prewarmed connection for each connection asked for."""
    size = Bytes(cell.value_bytes)
    workload = Workload(
        commands=(Command(command="SET"), Command(command="GET")),
        keys=Keys(prefix=KEY_PREFIX, minimum=Count(FIRST_KEY), maximum=Count(cell.last_key)),
        values=Values(minimum_bytes=size, maximum_bytes=size),
        pipeline=cell.pipeline,
    )
    pools = _pools(driver, cell.connections)
    return Plan(target=target, workload=workload, pools=(pools,), load=load or Load())


def _pools(driver: Driver, connections: int) -> Pools:
    match driver:
        case Driver.CLIENT:
            return Pools(threads_per_pool=connections, client_instances_per_pool=connections, client_pools=1)
        case Driver.ASYNCIO:
            return Pools(
                driver=driver, tasks_per_pool=connections, client_instances_per_pool=connections, client_pools=1
            )
        case Driver.WIRE:
            return Pools(driver=driver, client_pools=1, max_connections=connections, connections=Connections.PREWARM)


def keys_that_fit(keys: int, value_bytes: int, free_bytes: int) -> int:
    """So many keys, or what half of this memory holds of them, as a round number."""
    fitting = int(free_bytes / 2 / ((value_bytes + _KEY_COST_BYTES) * (1 + _SHORT_SHARE)))
    if keys <= fitting:
        return keys
    digits = str(fitting)
    return max(1, int(digits[0] + "0" * (len(digits) - 1)))

"""A benchmark case: connections, pipeline depth, value size and keys; and the plan of the case for our drivers. Pure.

All programs must use the same keys. redis-benchmark can only write numbers with leading zeros, and the others only
without. A leading 1 makes both forms equal: redis-benchmark writes `key:1` and twelve digits with leading zeros, the
others write `key:` and a number of thirteen digits. resp-benchmark writes a prefix and a number without leading zeros,
so one in ten of its keys is shorter; these keys exist too.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.plan.schema import Command, Connections, Driver, Keys, Load, Plan, Pools, Target, Values, Workload
from common.units import Bytes, Count

KEY_PREFIX = "key:"
FIRST_KEY = 10**12
_KEY_COST_BYTES = 120
"""Memory of a key on the server, without its value; rounded up."""
_SHORT_SHARE = 0.12
"""Most shorter keys that resp-benchmark adds, as a fraction of all keys."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a contender has to do. pipeline: requests in flight on each connection. keys: number of keys."""

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
        """The heading of the case."""
        return f"{self.connections} connections, pipeline {self.pipeline}, values of {self.value_bytes} bytes"


def short_prefix(keys: int) -> str:
    """The prefix that resp-benchmark writes before a number below `keys`, which has no leading zeros."""
    return f"{KEY_PREFIX}1" + "0" * (12 - len(str(keys - 1)))


def plan_for(case: Case, driver: Driver, target: Target, load: Load | None = None) -> Plan:
    """The plan of the case for one of our drivers: one thread, task or prewarmed connection per connection."""
    size = Bytes(case.value_bytes)
    workload = Workload(
        commands=(Command(command="SET"), Command(command="GET")),
        keys=Keys(prefix=KEY_PREFIX, minimum=Count(FIRST_KEY), maximum=Count(case.last_key)),
        values=Values(minimum_bytes=size, maximum_bytes=size),
        pipeline=case.pipeline,
    )
    pools = _pools(driver, case.connections)
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
    """The number of keys that fits half of the free memory, rounded down to one significant digit; at most `keys`."""
    fitting = int(free_bytes / 2 / ((value_bytes + _KEY_COST_BYTES) * (1 + _SHORT_SHARE)))
    if keys <= fitting:
        return keys
    digits = str(fitting)
    return max(1, int(digits[0] + "0" * (len(digits) - 1)))

"""The plan that a comparison runs with the wire driver: the same load on the server, without redis-py's calls. Pure."""

from __future__ import annotations

import msgspec

from common.errors import PlanError, UsageError
from common.plan.rules.checks import check_plan
from common.plan.schema import Driver, Plan, Pools


def plans_to_compare(plan: Plan) -> dict[Driver, Plan]:
    """A checked plan as each driver runs it.

    Raises UsageError when its pools say which driver they want, PlanError when the wire driver cannot run it.
    """
    for number, group in enumerate(plan.pools):
        if group.driver is not Driver.CLIENT:
            raise UsageError(
                "--compare-drivers: expected pools without a driver of their own, because each is run with client and "
                f"with wire, got pools[{number}].driver {group.driver.value}"
            )
    twin = wire_twin(plan)
    try:
        check_plan(twin)
    except PlanError as error:
        raise PlanError(f"--compare-drivers: what the wire driver is to run too is refused: {error}") from error
    return {Driver.CLIENT: plan, Driver.WIRE: twin}


def wire_twin(plan: Plan) -> Plan:
    """The plan with the wire driver in all pools, and as many operations at once as with the client driver."""
    return msgspec.structs.replace(plan, pools=tuple(_twin(group) for group in plan.pools))


def at_once(group: Pools) -> int:
    """How many operations (or batches) a pool of the client driver has under way at most. A thread has a client
    instance for itself, so there are no more than there are of either, however many connections an instance may open.
    """
    return min(group.threads_per_pool, group.client_instances_per_pool)


def _twin(group: Pools) -> Pools:
    """One connection for each operation that the client driver has under way. How long a thread waits for a client
    instance or for a TCP connection says nothing to a driver in which nobody waits for either."""
    unsaid = Pools()
    return msgspec.structs.replace(
        group,
        driver=Driver.WIRE,
        threads_per_pool=unsaid.threads_per_pool,
        client_instances_per_pool=at_once(group),
        max_connections=1,
        checkout_timeout_s=unsaid.checkout_timeout_s,
        tcp_pool=unsaid.tcp_pool,
        tcp_pool_wait_s=unsaid.tcp_pool_wait_s,
    )

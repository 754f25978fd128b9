"""The plan that a comparison runs with the wire driver: the same load on the server, without redis-py. Pure."""

from __future__ import annotations

import msgspec

from common.errors import PlanError, UsageError
from common.plan.rules.checks import check_plan
from common.plan.schema import Driver, Plan, Pools


def plans_to_compare(plan: Plan) -> dict[Driver, Plan]:
    """Return the plan for each driver. plan: already checked.

    Raises UsageError for scenarios, pools that set a driver, and a load without an end; PlanError if the wire driver
    cannot run the plan.
    """
    if plan.scenarios:
        names = ", ".join(scenario.name for scenario in plan.scenarios)
        raise UsageError(f"--compare-drivers: expected a plan with one load, got the scenarios {names}")
    for number, group in enumerate(plan.pools):
        if group.driver is not Driver.CLIENT:
            raise UsageError(
                "--compare-drivers: expected pools without a driver of their own, because each is run with client and "
                f"with wire, got pools[{number}].driver {group.driver.value}"
            )
    if plan.load.runs_until_stopped:
        raise UsageError(
            "--compare-drivers: expected a load with an end, because the runs follow each other, got --duration 0, "
            "which runs until it is stopped"
        )
    twin = wire_twin(plan)
    try:
        check_plan(twin)
    except PlanError as error:
        raise PlanError(f"--compare-drivers: the wire driver cannot run this plan: {error}") from error
    return {Driver.CLIENT: plan, Driver.WIRE: twin}


def wire_twin(plan: Plan) -> Plan:
    """Return the plan with the wire driver in all pools, and as many operations in flight as with the client driver."""
    return msgspec.structs.replace(plan, pools=tuple(_twin(group) for group in plan.pools))


def at_once(group: Pools) -> int:
    """Return how many operations (or batches) a pool of the client driver has in flight at most. Each thread needs a
    client instance of its own, so the smaller number counts; `max_connections` does not matter.
    """
    return min(group.threads_per_pool, group.client_instances_per_pool)


def _twin(group: Pools) -> Pools:
    """Return a group with one connection for each operation that the client driver has in flight. Settings on waiting
    for a client instance or a TCP connection get their defaults: the wire driver does not wait for these."""
    default = Pools()
    return msgspec.structs.replace(
        group,
        driver=Driver.WIRE,
        threads_per_pool=default.threads_per_pool,
        client_instances_per_pool=at_once(group),
        max_connections=1,
        checkout_timeout_s=default.checkout_timeout_s,
        tcp_pool=default.tcp_pool,
        tcp_pool_wait_s=default.tcp_pool_wait_s,
    )

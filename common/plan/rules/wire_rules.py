"""Rules for plans with the wire driver.

The wire driver has no client instances to check out. It issues each operation once and never repeats it. Its
connections receive only replies. Blocking commands are allowed: each blocks only its own connection.
"""

from __future__ import annotations

from collections.abc import Iterator

from common.plan.key_path import KeyPath
from common.plan.planned_commands import subscribes
from common.plan.schema import Driver, Plan, Pools, ReadFrom, Retry, RetryError, TcpPool

_CONNECTION_ERRORS = frozenset({RetryError.CONNECTION, RetryError.TIMEOUT})


def wire_pools_fit(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Pools with the wire driver have no settings that the driver cannot apply."""
    for number, group in enumerate(plan.pools):
        if group.driver is not Driver.WIRE:
            continue
        if group.checkout_timeout_s != Pools().checkout_timeout_s:
            yield (
                ("pools", number, "checkout_timeout"),
                "expected none with the wire driver, which has no client instances to check out, "
                f"got {group.checkout_timeout_s}",
            )
        if group.tcp_pool is not TcpPool.RAISING:
            yield (
                ("pools", number, "tcp_pool"),
                "expected raising with the wire driver, which takes every connection once and never waits for one, "
                f"got {group.tcp_pool.value}",
            )


def wire_target_fits(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """The target has no settings that only redis-py's own calls apply."""
    if not any(group.driver is Driver.WIRE for group in plan.pools):
        return
    target = plan.target
    if others := [error for error in target.retry.errors if error not in _CONNECTION_ERRORS]:
        yield (
            ("target", "retry", "errors"),
            f"expected {', '.join(error.value for error in Retry().errors)} with the wire driver, which reconnects "
            f"but never issues an operation twice, got {others[0].value}",
        )
    if target.health_check_interval_s > 0:
        yield (
            ("target", "health_check_interval"),
            "expected 0s with the wire driver, which sends nothing but the load on its connections, "
            f"got {target.health_check_interval_s}",
        )
    if target.cluster.read_from is not ReadFrom.PRIMARY:
        yield (
            ("target", "cluster", "read_from"),
            "expected primary with the wire driver, which sends each command to a primary, "
            f"got {target.cluster.read_from.value}",
        )


def wire_commands_fit(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Each command of the mix has exactly one reply."""
    if not any(group.driver is Driver.WIRE for group in plan.pools):
        return
    if subscribes(plan.workload):
        yield (
            ("workload", "commands"),
            "expected no SUBSCRIBE with the wire driver, whose connections receive only replies; "
            "use --driver client or asyncio",
        )


WIRE_RULES = (wire_pools_fit, wire_target_fits, wire_commands_fit)
"""Must run after `commands_known`, which guarantees that all commands parse."""

"""Rules on publishers and subscribers in a plan."""

from __future__ import annotations

from collections.abc import Iterator

from common.commands import PUBLISHING, SUBSCRIBING, Placeholder, find_command
from common.plan.key_path import KeyPath
from common.plan.planned_commands import is_cluster, subscribes
from common.plan.schema import Driver, Plan
from common.pubsub_header import HEADER_BYTES

_SHARDED = {"SUBSCRIBE": "SSUBSCRIBE", "PUBLISH": "SPUBLISH"}


def pubsub_commands_fit(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Commands that publish or subscribe have arguments that allow it, and work with the target."""
    has_subscribers = subscribes(plan.workload)
    for number, entry in enumerate(plan.workload.commands):
        path: KeyPath = ("workload", "commands", number, "command")
        template = find_command(entry.command)
        has_message = Placeholder.MESSAGE in template.arguments
        publishes = template.name in PUBLISHING and len(template.arguments) == 3
        if template.name in SUBSCRIBING and len(template.arguments) != 2:
            yield path, f"expected one channel for each {template.name}, got {len(template.arguments) - 1}"
        if has_message and not (publishes and template.arguments[2] is Placeholder.MESSAGE):
            yield path, "expected __message__ as the message of PUBLISH or SPUBLISH, got it elsewhere; use __data__"
        if is_cluster(plan.target) and template.name in _SHARDED and (has_message or template.name in SUBSCRIBING):
            yield (
                path,
                f"expected {_SHARDED[template.name]} in a cluster, as in profile pubsub_sharded, because deliveries of "
                f"PUBLISH cannot be counted there, got {template.name}",
            )
        sizes = _sizes(plan) if has_subscribers and has_message else {}
        for place, size in sizes.items():
            if size < HEADER_BYTES:
                yield place, f"expected at least {HEADER_BYTES} bytes, the size of a message's header, got {size}"


def pubsub_is_in_the_mix(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Only commands of the mix subscribe, or publish messages whose delivery is measured."""
    workload = plan.workload
    others: list[tuple[KeyPath, str]] = [
        *(
            (("workload", "commands", number, "then", index, "command"), then.command)
            for number, entry in enumerate(workload.commands)
            for index, then in enumerate(entry.then)
        ),
        *((("workload", "setup", number), command) for number, command in enumerate(workload.setup)),
    ]
    for path, text in others:
        template = find_command(text)
        if template.name in SUBSCRIBING or Placeholder.MESSAGE in template.arguments:
            yield path, f"expected {template.name} only as a command of the mix with its own weight, got it here"


def subscribers_have_room(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """In a mix with subscribers: no batches, enough connections, and time for the last messages."""
    workload = plan.workload
    if not subscribes(workload):
        return
    for name, size, least in (("pipeline", workload.pipeline, 1), ("transaction", workload.transaction, 0)):
        if size > least:
            yield (
                ("workload", name),
                f"expected {least} in a mix with SUBSCRIBE, which cannot be part of a batch, got {size}",
            )
    for number, pools in enumerate(plan.pools):
        subscribers = -(-pools.workers_per_pool // pools.client_instances_per_pool)
        workers = "tasks" if pools.driver is Driver.ASYNCIO else "threads"
        if pools.max_connections <= subscribers:
            yield (
                ("pools", number, "max_connections"),
                f"expected at least {subscribers + 1}, because {subscribers} {workers} keep a connection of each "
                f"client instance for their subscriptions, got {pools.max_connections}",
            )
    if workload.pubsub.grace_s > plan.fleet.drain_s:
        yield (
            ("workload", "pubsub", "grace"),
            f"expected at most fleet.drain, {plan.fleet.drain_s}, after which all workers end, "
            f"got {workload.pubsub.grace_s}",
        )


def _sizes(plan: Plan) -> dict[KeyPath, int]:
    """Value sizes by the path of the setting."""
    values = plan.workload.values
    if values.sizes:
        return {
            ("workload", "values", "sizes", i, "size"): each.size for i, each in enumerate(values.sizes) if each.weight
        }
    return {("workload", "values", "minimum"): values.minimum_bytes}


PUBSUB_RULES = (pubsub_commands_fit, pubsub_is_in_the_mix, subscribers_have_room)
"""Must run after `commands_known`, which guarantees that all commands parse."""

"""Whether a plan's publishers and subscribers can do what it says; rules of `common.plan.rules.checks`."""

from __future__ import annotations

from collections.abc import Iterator

from common.commands import PUBLISHING, SUBSCRIBING, Placeholder, find_command
from common.plan.key_path import KeyPath
from common.plan.planned_commands import is_cluster, subscribes
from common.plan.schema import Driver, Plan
from common.pubsub_header import HEADER_BYTES

_SHARDED = {"SUBSCRIBE": "SSUBSCRIBE", "PUBLISH": "SPUBLISH"}


def pubsub_commands_fit(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Of each command by itself."""
    has_subscribers = subscribes(plan.workload)
    for number, entry in enumerate(plan.workload.commands):
        path: KeyPath = ("workload", "commands", number, "command")
        template = find_command(entry.command)
        has_message = Placeholder.MESSAGE in template.arguments
        publishes = template.name in PUBLISHING and len(template.arguments) == 3
        if template.name in SUBSCRIBING and len(template.arguments) != 2:
            yield path, f"expected one channel for each {template.name}, got {len(template.arguments) - 1}"
        if has_message and not (publishes and template.arguments[2] is Placeholder.MESSAGE):
            yield path, "expected __message__ as the message of PUBLISH or SPUBLISH, got it elsewhere; say __data__"
        if is_cluster(plan.target) and template.name in _SHARDED and (has_message or template.name in SUBSCRIBING):
            yield (
                path,
                f"expected {_SHARDED[template.name]} in a cluster, as profile pubsub_sharded has it, because what "
                f"PUBLISH delivers there cannot be counted, got {template.name}",
            )
        sizes = _sizes(plan) if has_subscribers and has_message else {}
        for place, size in sizes.items():
            if size < HEADER_BYTES:
                yield place, f"expected at least {HEADER_BYTES} bytes, the size of a message's header, got {size}"


def pubsub_is_in_the_mix(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Nobody subscribes, or sends what is timed, beside the mix."""
    workload = plan.workload
    aside: list[tuple[KeyPath, str]] = [
        *(
            (("workload", "commands", number, "then", place, "command"), then.command)
            for number, entry in enumerate(workload.commands)
            for place, then in enumerate(entry.then)
        ),
        *((("workload", "setup", number), command) for number, command in enumerate(workload.setup)),
    ]
    for path, text in aside:
        template = find_command(text)
        if template.name in SUBSCRIBING or Placeholder.MESSAGE in template.arguments:
            yield path, f"expected {template.name} as a command of the mix alone, with a weight of its own, got it here"


def subscribers_have_room(plan: Plan) -> Iterator[tuple[KeyPath, str]]:
    """Of batches, drivers, connections and times, in a mix with subscribers."""
    workload = plan.workload
    if not subscribes(workload):
        return
    for name, size, least in (("pipeline", workload.pipeline, 1), ("transaction", workload.transaction, 0)):
        if size > least:
            yield ("workload", name), f"expected {least} in a mix with SUBSCRIBE, which goes by itself, got {size}"
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
            f"expected at most fleet.drain, {plan.fleet.drain_s}, which ends it all, got {workload.pubsub.grace_s}",
        )


def _sizes(plan: Plan) -> dict[KeyPath, int]:
    values = plan.workload.values
    if values.sizes:
        return {
            ("workload", "values", "sizes", i, "size"): each.size for i, each in enumerate(values.sizes) if each.weight
        }
    return {("workload", "values", "minimum"): values.minimum_bytes}


PUBSUB_RULES = (pubsub_commands_fit, pubsub_is_in_the_mix, subscribers_have_room)
"""For behind the rule that has found all commands to be templates."""

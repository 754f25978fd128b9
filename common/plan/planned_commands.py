"""Every command that a plan may issue, as templates, and one sample call of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from common.commands import (
    KEY_PLACEHOLDERS,
    SUBSCRIBING,
    Placeholder,
    RandomInteger,
    ScriptDigest,
    Template,
    Variable,
    find_command,
    template_labels,
)
from common.plan.schema import Plan
from common.plan.schema.target import Embedded, ReadFrom, Target
from common.plan.schema.workload import CleanUp, Command, Keys, Preload, When, Workload

DEFAULT_PER_HASH_TAG = 100
_CLUSTER_SCHEMES = ("redis+cluster://", "rediss+cluster://")
_SENTINEL_SCHEMES = ("redis+sentinel://", "rediss+sentinel://")


class PlannedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One command that a plan may issue: an entry of the mix, or one of the commands that follow its reply.

    entry: index of the entry in the mix. following: index in the entry's `then`, None for the entry itself. when: the
    replies after which a following command is issued. command: the entry; its keys are used by following commands too.
    label: its row in frames and reports, see `planned_commands`.
    """

    entry: int
    following: int | None
    when: When | None
    command: Command
    template: Template
    label: str


def planned_commands(workload: Workload) -> Iterator[PlannedCommand]:
    """Every command of the mix, except commands of weight 0, which are never drawn.

    Labels are the names that the plan gives, else those of `template_labels`: commands with the same template share a
    row, unless the plan names them. Raises ValueError like `find_command`.
    """
    expiring = workload.expiry.maximum_s > 0
    planned: list[tuple[int, int | None, When | None, Command, Template, str]] = []
    for entry, command in enumerate(workload.commands):
        if command.weight > 0:
            planned.append((entry, None, None, command, find_command(command.command, expiring), command.name))
            for number, then in enumerate(command.then):
                template = find_command(then.command, expiring)
                planned.append((entry, number, then.when, command, template, then.name))
    labels = template_labels(template for *_, template, name in planned if not name)
    for entry, following, when, command, template, name in planned:
        yield PlannedCommand(
            entry=entry,
            following=following,
            when=when,
            command=command,
            template=template,
            label=name or labels[template],
        )


def plan_templates(workload: Workload) -> Iterator[Template]:
    """The templates of `planned_commands`."""
    return (planned.template for planned in planned_commands(workload))


def subscribes(workload: Workload) -> bool:
    """Whether the mix has subscribers. Raises ValueError like `find_command`."""
    return any(template.name in SUBSCRIBING for template in plan_templates(workload))


def is_cluster(target: Target) -> bool:
    """Whether the plan says that the target is a cluster."""
    return target.embedded is Embedded.CLUSTER or target.url.startswith(_CLUSTER_SCHEMES)


def has_endpoints(target: Target) -> bool:
    """Whether clients use several servers of the target, so that operations are counted by server."""
    return is_cluster(target) or is_behind_sentinels(target) or reads_replicas(target)


def is_behind_sentinels(target: Target) -> bool:
    """Whether the plan says that Sentinels know the target."""
    return target.embedded is Embedded.SENTINEL or target.url.startswith(_SENTINEL_SCHEMES)


def reads_replicas(target: Target) -> bool:
    """Whether reads go to replicas too, of a target that is not a cluster."""
    has_replicas = is_behind_sentinels(target) or bool(target.replicas)
    return has_replicas and target.cluster.read_from is not ReadFrom.PRIMARY


def keys_of(workload: Workload, entry: Command | Preload) -> Keys:
    """The keys of one entry: the workload's keys, overridden by the entry's own settings."""
    own = {
        "prefix": entry.key_prefix,
        "minimum": entry.key_minimum,
        "maximum": entry.key_maximum,
        "distribution": entry.key_distribution if isinstance(entry, Command) else None,
    }
    return msgspec.structs.replace(workload.keys, **{name: value for name, value in own.items() if value is not None})


def keys_per_hash_tag(target: Target, workload: Workload) -> int:
    """How many consecutive key numbers share a hash tag; 0 for keys without one.

    The default is 0, except for a cluster with commands of several keys or with transactions: they need keys of one
    slot, so `DEFAULT_PER_HASH_TAG` keys share a tag. Raises ValueError like `find_command`.
    """
    chosen = workload.keys.per_hash_tag
    if chosen is not None:
        return chosen
    if not is_cluster(target):
        return 0
    has_several = any(template.count(*KEY_PLACEHOLDERS) > 1 for template in plan_templates(workload))
    return DEFAULT_PER_HASH_TAG if has_several or workload.transaction else 0


def key_text(prefix: str, number: int, per_hash_tag: int) -> bytes:
    """The key with this number. per_hash_tag: see `keys_per_hash_tag`."""
    return f"{prefix}{{{number // per_hash_tag}}}:{number}".encode() if per_hash_tag else f"{prefix}{number}".encode()


def preload_commands(plan: Plan, thread: int, threads: int) -> int:
    """How many commands of the preload one worker issues. thread: its number among the `threads` of the fleet."""
    return sum(
        len(keys_of(plan.workload, entry).part(thread, threads)) * entry.times for entry in plan.workload.preload
    )


def script_digests(workload: Workload) -> dict[str, bytes]:
    """The SHA-1 digest of each script in hexadecimal, as EVALSHA takes it, by the script's name."""
    return {
        script.name: hashlib.sha1(script.lua.encode(), usedforsecurity=False).hexdigest().encode()
        for script in workload.scripts
    }


SampleCall = tuple[str, tuple[bytes, ...]]
"""(command name, arguments with the name first)."""


def sample_calls(target: Target, workload: Workload) -> Iterator[SampleCall]:
    """A sample call of each command of the mix, as arguments of COMMAND GETKEYS or ACL DRYRUN; never issued itself."""
    for planned in planned_commands(workload):
        yield _sample(target, workload, planned.template, planned.command)


def sample_setup_calls(target: Target, workload: Workload) -> Iterator[SampleCall]:
    """A sample call of each command of the plan's setup and preload; see `sample_calls`."""
    for text in workload.setup:
        yield _sample(target, workload, find_command(text), Command(command=text))
    for preload in workload.preload:
        yield _sample(target, workload, find_command(preload.command, workload.expiry.maximum_s > 0), preload)


def sample_calls_around_load(target: Target, workload: Workload) -> Iterator[SampleCall]:
    """A sample call of each command before and after the load: flush, scripts, setup, preload, clean-up; see
    `sample_calls`."""
    if workload.flush_before:
        yield "FLUSHDB", (b"FLUSHDB", b"ASYNC")
    for script in workload.scripts:
        yield "SCRIPT", (b"SCRIPT", b"LOAD", script.lua.encode())
    yield from sample_setup_calls(target, workload)
    if workload.clean_up is not CleanUp.NONE:
        yield "SCAN", (b"SCAN", b"0")
        yield "UNLINK", (b"UNLINK", key_text(workload.keys.prefix, int(workload.keys.minimum), 0))


def _sample(target: Target, workload: Workload, template: Template, entry: Command | Preload) -> SampleCall:
    keys, per_hash_tag = keys_of(workload, entry), keys_per_hash_tag(target, workload)
    digests = script_digests(workload)
    values: dict[Placeholder, bytes] = {
        Placeholder.KEY: key_text(keys.prefix, int(keys.minimum), per_hash_tag),
        Placeholder.NEW_KEY: key_text(keys.prefix, int(keys.maximum) + 1, per_hash_tag),
        Placeholder.DATA: b"x",
        Placeholder.TEXT: b"x",
        Placeholder.RAND_INT: b"%012d" % int(keys.minimum),
        Placeholder.TTL: b"%d" % max(1, int(workload.expiry.maximum_s)),
        Placeholder.THREAD: b"0",
        Placeholder.SEQ: b"1",
        Placeholder.CURSOR: b"0",
        Placeholder.IDS: b"0-1",
        Placeholder.MESSAGE: b"x",
    }

    def resolve(piece: Variable | ScriptDigest) -> bytes:
        match piece:
            case RandomInteger(low):
                return b"%d" % low
            case ScriptDigest(script):
                return digests[script]
        return values[piece]

    return template.name, template.render(resolve)

"""All that a plan may issue: entries of its mix with all that follows them, as templates."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator

import msgspec

from common.commands.table import COMMANDS
from common.commands.template import Placeholder, Template, parse_template
from common.plan.schema.target import Embedded, Target
from common.plan.schema.workload import Command, Keys, Preload, When, Workload
from common.units import show

DEFAULT_PER_HASH_TAG = 100
_CLUSTER_SCHEMES = ("redis+cluster://", "rediss+cluster://")
_KEYS = (Placeholder.KEY, Placeholder.NEW_KEY)


class PlannedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One command that a plan may issue: an entry of the mix, or one that follows an entry.

    entry: the index of the entry in the mix. following: the index in its `then`, None for the entry itself. keys: the
    entry whose keys are drawn.
    """

    entry: int
    following: int | None
    when: When | None
    command: Command
    template: Template


def find_command(text: str, expiring: bool = False) -> Template:
    """The template that a plan's `command` means: a name of the table, a template of its own, or "=NAME" for a command
    without arguments that the table does not know.

    expiring: the plan has an expiry. Raises ValueError for a single word that is not in the table, and whatever
    `parse_template` raises.
    """
    template = parse_template(text)
    if len(template.parts) > 1:
        return template
    if template.name.startswith("=") and len(template.name) > 1:
        return parse_template(text.strip().removeprefix("="))
    row = COMMANDS.get(template.name)
    if row is not None:
        return row.expiring if expiring and row.expiring else row.template
    near = difflib.get_close_matches(template.name, COMMANDS, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"say ={template.name} if it takes no arguments"
    raise ValueError(
        f'expected a name of the command table, or a template such as "SET __key__ __data__", '
        f"got {show(text)}; {remedy}"
    )


def planned_commands(workload: Workload) -> Iterator[PlannedCommand]:
    """Every command that the plan may issue; entries of weight 0 are never drawn. Raises what `find_command` does."""
    expiring = workload.expiry.maximum_s > 0
    for entry, command in enumerate(workload.commands):
        if command.weight > 0:
            template = find_command(command.command, expiring)
            yield PlannedCommand(entry=entry, following=None, when=None, command=command, template=template)
            for number, then in enumerate(command.then):
                template = find_command(then.command, expiring)
                yield PlannedCommand(entry=entry, following=number, when=then.when, command=command, template=template)


def plan_templates(workload: Workload) -> Iterator[Template]:
    """The templates of all that the plan may issue. Raises what `find_command` does."""
    return (planned.template for planned in planned_commands(workload))


def is_cluster(target: Target) -> bool:
    """Whether the plan says that its target is a cluster."""
    return target.embedded is Embedded.CLUSTER or target.url.startswith(_CLUSTER_SCHEMES)


def keys_per_hash_tag(target: Target, workload: Workload) -> int:
    """How many consecutive key numbers share a hash tag; 0 for keys without one.

    As the plan says; where it does not, as it needs: in a cluster, commands with several keys and transactions have to
    keep to one slot. Coordinator and workers both ask here. Raises what `find_command` does.
    """
    said = workload.keys.per_hash_tag
    if said is not None:
        return said
    if not is_cluster(target):
        return 0
    several = any(template.count(*_KEYS) > 1 for template in plan_templates(workload))
    return DEFAULT_PER_HASH_TAG if several or workload.transaction else 0


def keys_of(workload: Workload, own: Command | Preload) -> Keys:
    """The keys of one command: the workload's, but for what the command says of its own."""
    said = {
        "prefix": own.key_prefix,
        "minimum": own.key_minimum,
        "maximum": own.key_maximum,
        "distribution": own.key_distribution if isinstance(own, Command) else None,
    }
    return msgspec.structs.replace(workload.keys, **{name: value for name, value in said.items() if value is not None})


def script_digest(lua: str) -> bytes:
    """What EVALSHA calls a script by."""
    return hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest().encode()

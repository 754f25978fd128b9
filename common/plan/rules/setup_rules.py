"""Rules on a plan's setup and preload."""

from __future__ import annotations

from collections.abc import Iterator

from common.commands import COMMANDS, KeyType, Placeholder, ScriptDigest, Template, find_command, original
from common.plan.key_path import KeyPath
from common.plan.planned_commands import keys_of, planned_commands
from common.plan.rules.workload_rules import unfit_for_pools
from common.plan.schema import Plan
from common.units import show

MOST_SETUP_KEYS = 1_000_000
"""The coordinator alone issues the setup. For more keys, a preload is faster."""

Finding = tuple[KeyPath, str]


def setup_is_known(plan: Plan) -> Iterator[Finding]:
    """Setup commands are known, and need no values that only workers draw."""
    for number, text in enumerate(plan.workload.setup):
        path: KeyPath = ("workload", "setup", number)
        try:
            template = find_command(text)
        except ValueError as error:
            yield path, str(error)
            continue
        for problem in _setup_problems(plan, template):
            yield path, problem


def _setup_problems(plan: Plan, template: Template) -> Iterator[str]:
    workload = plan.workload
    if problem := unfit_for_pools(template):
        yield problem
    scripts = [script.name for script in workload.scripts]
    for script in template.scripts:
        if script not in scripts:
            known = ", ".join(scripts) if scripts else "none"
            yield f"expected __sha(NAME)__ of a script of the plan ({known}), got {show(script)}"
    for piece in map(original, template.pieces()):
        if not isinstance(piece, bytes | ScriptDigest) and piece is not Placeholder.KEY:
            shown = piece.value if isinstance(piece, Placeholder) else f"__rand({piece.low},{piece.high})__"
            yield f"expected only the placeholders __key__ and __sha(NAME)__ in setup, got {shown}; use a preload"
    count = len(workload.keys.numbers)
    if template.count(Placeholder.KEY) and count > MOST_SETUP_KEYS:
        yield (
            f"expected at most {MOST_SETUP_KEYS} keys for a setup command that names __key__, got {count}; "
            "use fewer keys, or a preload"
        )


def preload_writes(plan: Plan) -> Iterator[Finding]:
    """A preload writes, and publishes no message whose delivery would be measured."""
    for number, entry in enumerate(plan.workload.preload):
        path: KeyPath = ("workload", "preload", number, "command")
        template = find_command(entry.command)
        if template.name in COMMANDS and not COMMANDS[template.name].writes:
            yield path, f"expected a command that writes, got {template.name}"
        if template.count(Placeholder.MESSAGE):
            yield path, f"expected no {Placeholder.MESSAGE.value} in preload, got {show(entry.command)}"


def preload_fits(plan: Plan) -> Iterator[Finding]:
    """A preload writes the type of key that the mix expects."""
    for number, entry in enumerate(plan.workload.preload):
        filled = _key_type(find_command(entry.command))
        prefix = keys_of(plan.workload, entry).prefix
        for planned in planned_commands(plan.workload):
            wanted = _key_type(planned.template)
            same_keys = keys_of(plan.workload, planned.command).prefix == prefix
            if filled is not None and wanted is not None and same_keys and filled is not wanted:
                yield (
                    ("workload", "preload", number, "command"),
                    f"expected a command whose keys suit the mix, got {show(entry.command)}, which leaves "
                    f"a {filled.value} where {planned.template.name} expects a {wanted.value}; preload by another "
                    "command, or give one of them a key_prefix",
                )


def _key_type(template: Template) -> KeyType | None:
    """The type of key that a command expects or writes; None if it is unknown, or if any type is accepted."""
    row = COMMANDS.get(template.name)
    if row is None or template.arguments[1:2] != (Placeholder.KEY,) or row.key_type in (KeyType.ANYTHING, KeyType.DUMP):
        return None
    return row.key_type


SETUP_RULES = (setup_is_known, preload_writes, preload_fits)
"""Must run after WORKLOAD_RULES, which guarantee that commands are known."""

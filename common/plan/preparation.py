"""Rules for what a plan does before the load: its setup and its preload. `common.plan.checks` holds plans to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from common.commands import COMMANDS, Placeholder, Sha, Template, find_command, keys_of
from common.plan.schema import Plan, Preload
from common.plan.shape import Path
from common.units import show

MOST_SETUP_KEYS = 1_000_000
"""Setup is issued by the coordinator alone; more keys than that are a preload's work."""

Finding = tuple[Path, str]
Rule = Callable[[Plan], Iterator[Finding]]

_NOT_PRELOADED = (Placeholder.NEW_KEY, Placeholder.CURSOR, Placeholder.IDS, Placeholder.MESSAGE)


def preparation_rules(not_for_pools: Collection[str]) -> tuple[Rule, ...]:
    """The rules. not_for_pools: commands after which a connection is not what it was."""

    def setup_known(plan: Plan) -> Iterator[Finding]:
        for number, text in enumerate(plan.workload.setup):
            for problem in _setup_problems(plan, text, not_for_pools):
                yield ("workload", "setup", number), problem

    def preload_known(plan: Plan) -> Iterator[Finding]:
        for number, entry in enumerate(plan.workload.preload):
            for problem in _preload_problems(plan, entry, not_for_pools):
                yield ("workload", "preload", number, "command"), problem

    return setup_known, preload_known, _preload_ranges


def _setup_problems(plan: Plan, text: str, not_for_pools: Collection[str]) -> Iterator[str]:
    try:
        template = find_command(text)
    except ValueError as error:
        yield str(error)
        return
    yield from _bad_name(template, not_for_pools)
    yield from _unknown_scripts(plan, template)
    for piece in template.pieces():
        if not isinstance(piece, bytes | Sha) and piece is not Placeholder.KEY:
            shown = piece.value if isinstance(piece, Placeholder) else f"__rand({piece.low},{piece.high})__"
            yield f"expected no placeholders but __key__ and __sha(NAME)__ in setup, got {shown}; preload has them all"
    keys = plan.workload.keys
    count = int(keys.maximum) - int(keys.minimum) + 1
    if template.count(Placeholder.KEY) and count > MOST_SETUP_KEYS:
        yield (
            f"expected at most {MOST_SETUP_KEYS} keys for a setup command that names __key__, got {count}; "
            "use fewer keys, or preload"
        )


def _preload_problems(plan: Plan, entry: Preload, not_for_pools: Collection[str]) -> Iterator[str]:
    try:
        template = find_command(entry.command, plan.workload.expiry.maximum_s > 0)
    except ValueError as error:
        yield str(error)
        return
    yield from _bad_name(template, not_for_pools)
    yield from _unknown_scripts(plan, template)
    if template.name in COMMANDS and not COMMANDS[template.name].writes:
        yield f"expected a command that writes, got {template.name}"
    if not template.count(Placeholder.KEY):
        yield f"expected a command with __key__, which is each key of the range in turn, got {show(entry.command)}"
    for placeholder in _NOT_PRELOADED:
        if template.count(placeholder):
            yield f"expected no {placeholder.value} in preload, got {show(entry.command)}"


def _bad_name(template: Template, not_for_pools: Collection[str]) -> Iterator[str]:
    if template.name in not_for_pools:
        yield f"expected a command that leaves its connection as it was, got {template.name}"


def _unknown_scripts(plan: Plan, template: Template) -> Iterator[str]:
    known = [script.name for script in plan.workload.scripts]
    for name in template.scripts:
        if name not in known:
            yield f"expected one of the plan's scripts ({', '.join(known) or 'there are none'}), got {show(name)}"


def _preload_ranges(plan: Plan) -> Iterator[Finding]:
    for number, entry in enumerate(plan.workload.preload):
        keys = keys_of(plan.workload, entry)
        if keys.minimum > keys.maximum:
            # Who said nothing of the lower end has said the upper one.
            culprit = "key_maximum" if entry.key_minimum is None else "key_minimum"
            problem = f"expected key_minimum <= key_maximum, got {keys.minimum} and {keys.maximum}"
            yield ("workload", "preload", number, culprit), problem

"""Rules on the workload of a plan beyond its types: commands, templates, keys, values, expiry."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from common.commands import (
    COMMANDS,
    Placeholder,
    Template,
    blocking_timeout_s,
    find_command,
    parse_template,
    template_text,
)
from common.plan.key_path import KeyPath
from common.plan.planned_commands import is_cluster, keys_of, keys_per_hash_tag, planned_commands
from common.plan.schema import Command, Distribution, Driver, Keys, Plan, Preload, ValueKind, Values, Workload
from common.plan.value_sizes import CHECKSUM_BYTES, JSON_BYTES, TEXT_BITS
from common.units import show

LARGEST_KEY = 1 << 60
LARGEST_VALUE = 512 * 2**20
LEAST_COMPRESSIBLE_TEXT = 1 - TEXT_BITS / 8
"""The share of a text value that a compressor removes in any case."""

NOT_FOR_POOLS = frozenset(
    {
        *("AUTH", "HELLO", "SELECT", "RESET", "QUIT", "READONLY", "READWRITE", "ASKING"),
        *("MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH"),
        *("PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
        *("MONITOR", "SYNC", "PSYNC", "SHUTDOWN", "CLIENT"),
    }
)
"""Commands that change the connection for its next user, or that do not have exactly one reply."""
_READ_ONLY_SUBCOMMANDS: dict[str, tuple[str, ...]] = {
    "CLIENT": ("GETNAME", "GETREDIR", "HELP", "ID", "INFO", "LIST", "TRACKINGINFO")
}
"""Subcommands that only read. All others change this or other connections."""
_SCANS = frozenset({"SCAN", "HSCAN", "SSCAN", "ZSCAN"})

Finding = tuple[KeyPath, str]


def _texts(workload: Workload) -> Iterator[tuple[KeyPath, str, Command | Preload, bool]]:
    """For each command: (its path, its text, the entry whose keys it uses, whether it follows a reply)."""
    for number, entry in enumerate(workload.commands):
        path: KeyPath = ("workload", "commands", number)
        yield (*path, "command"), entry.command, entry, False
        for index, then in enumerate(entry.then):
            yield (*path, "then", index, "command"), then.command, entry, True
    for number, preload in enumerate(workload.preload):
        yield ("workload", "preload", number, "command"), preload.command, preload, False


def _templates(workload: Workload) -> Iterator[tuple[KeyPath, Template, Command | Preload, bool]]:
    """Like `_texts`, with templates. Rules that use it run after `commands_known`, which guarantees that all texts
    parse."""
    expiring = workload.expiry.maximum_s > 0
    for path, text, own, follows in _texts(workload):
        yield path, find_command(text, expiring), own, follows


def unfit_for_pools(template: Template) -> str | None:
    """Why a command must not use pooled connections; None if it may."""
    if template.name not in NOT_FOR_POOLS:
        return None
    allowed = _READ_ONLY_SUBCOMMANDS.get(template.name)
    if allowed is None:
        return f"expected a command that leaves its connection unchanged, got {template.name}"
    word = template.arguments[1] if len(template.arguments) > 1 else None
    subcommand = word.decode(errors="replace").upper() if isinstance(word, bytes) else None
    if subcommand in allowed:
        return None
    return (
        f"expected {template.name} with one of {', '.join(allowed)}, which change no connection, "
        f"got {show(f'{template.name} {subcommand}') if subcommand else template.name}"
    )


def commands_known(plan: Plan) -> Iterator[Finding]:
    """Each command is a name of the table or a template, and leaves its connection unchanged."""
    for path, text, _, _ in _texts(plan.workload):
        try:
            problem = unfit_for_pools(parse_template(text)) or unfit_for_pools(find_command(text))
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            yield path, problem


def weights_allow_a_draw(plan: Plan) -> Iterator[Finding]:
    """The weights allow drawing a command: at least one is above zero, and their sum is finite."""
    weights = [entry.weight for entry in plan.workload.commands]
    path = ("workload", "commands")
    if not weights:
        yield path, "expected at least one command, got none"
    elif not sum(weights):
        yield path, "expected at least one weight above zero, got 0 for all"
    elif not math.isfinite(sum(weights)):
        yield path, "expected weights with a finite sum"


def placeholders_have_values(plan: Plan) -> Iterator[Finding]:
    """Each placeholder is in a command where it has a value."""
    workload = plan.workload
    scripts = [script.name for script in workload.scripts]
    for path, template, own, follows in _templates(workload):
        if template.count(Placeholder.IDS) and not follows:
            yield path, "expected __ids__ only in `then`, after a command whose reply has stream entries, got it here"
        if template.count(Placeholder.CURSOR) and (template.name not in _SCANS or follows or isinstance(own, Preload)):
            yield (
                path,
                f"expected __cursor__ only in {', '.join(sorted(_SCANS))} of the mix, got it in {template.name}",
            )
        if template.count(Placeholder.TTL) and not workload.expiry.maximum_s:
            yield path, "expected an expiry for __ttl__, got none; set one, such as --expiry 60s"
        for script in template.scripts:
            if script not in scripts:
                known = ", ".join(scripts) if scripts else "none"
                yield path, f"expected __sha(NAME)__ of a script of the plan ({known}), got {show(script)}"
        if isinstance(own, Preload) and (template.count(Placeholder.KEY) != 1 or template.count(Placeholder.NEW_KEY)):
            yield path, f"expected a command with one __key__, to be issued for each key, got {show(own.command)}"


def scripts_distinct(plan: Plan) -> Iterator[Finding]:
    """Script names are unique."""
    names = [script.name for script in plan.workload.scripts]
    for number, name in enumerate(names):
        if name in names[:number]:
            path = ("workload", "scripts", number, "name")
            yield path, f"expected a unique name, got {show(name)} a second time"


def command_names_distinct(plan: Plan) -> Iterator[Finding]:
    """A name of the plan labels one template, so that each row of a report is of one template."""
    planned = list(planned_commands(plan.workload))
    templates = {each.label: each.template for each in reversed(planned)}
    for each in planned:
        other = templates[each.label]
        if each.template != other:
            path: KeyPath = ("workload", "commands", each.entry)
            path = path if each.following is None else (*path, "then", each.following)
            yield (
                (*path, "name"),
                f"expected a name for one command, got {show(each.label)} for {show(template_text(other))} and "
                f"{show(template_text(each.template))}",
            )


def blocking_commands_end(plan: Plan) -> Iterator[Finding]:
    """No command blocks forever, or as long as the socket timeout."""
    limit_s = plan.target.socket_timeout_s
    for path, template, _, _ in _templates(plan.workload):
        waits_s = blocking_timeout_s(template)
        if waits_s is not None and not 0 < waits_s < limit_s:
            found = "0, which waits forever" if waits_s == 0 else f"{waits_s:g}s"
            yield (
                path,
                f"expected {template.name} to wait for more than 0s and less than the socket timeout of {limit_s}, "
                f"got {found}; set a shorter timeout, or a longer --socket-timeout",
            )


def keys_in_range(plan: Plan) -> Iterator[Finding]:
    """Key ranges have at least one number, and the median of a gaussian lies within."""
    workload = plan.workload
    yield from _range(("workload", "keys"), ("minimum", "maximum"), workload.keys, workload.keys)
    owners: list[tuple[KeyPath, Command | Preload]] = [
        *((("workload", "commands", number), entry) for number, entry in enumerate(workload.commands)),
        *((("workload", "preload", number), entry) for number, entry in enumerate(workload.preload)),
    ]
    for path, own in owners:
        yield from _range(path, ("key_minimum", "key_maximum"), keys_of(workload, own), workload.keys)


def _range(path: KeyPath, names: tuple[str, str], keys: Keys, common: Keys) -> Iterator[Finding]:
    low_key, high_key = names
    # If the lower end is the default, or the same as for all other commands, the user has set only the upper end here.
    other = Keys().minimum if keys is common else common.minimum
    if keys.minimum > keys.maximum:
        culprit = high_key if keys.minimum == other else low_key
        yield (*path, culprit), f"expected {low_key} <= {high_key}, got {keys.minimum} and {keys.maximum}"
    elif keys.maximum > LARGEST_KEY:
        yield (*path, high_key), f"expected at most 2^60, got {keys.maximum}"
    median = keys.median if keys.distribution is Distribution.GAUSSIAN else None
    if median is not None and not keys.minimum <= median <= keys.maximum:
        yield ("workload", "keys", "median"), f"expected a median of {keys.minimum}..{keys.maximum}, got {median}"


def distribution_settings_are_used(plan: Plan) -> Iterator[Finding]:
    """The plan has no settings of a distribution that it does not use: the user may have forgotten to choose it."""
    workload = plan.workload
    drawn = {workload.keys.distribution, *(keys_of(workload, entry).distribution for entry in workload.commands)}
    for key, fitting in _SETTINGS_OF_DISTRIBUTIONS.items():
        if getattr(workload.keys, key) != getattr(Keys(), key) and not drawn.intersection(fitting):
            names = " or ".join(distribution.value for distribution in fitting)
            found = ", ".join(sorted(distribution.value for distribution in drawn))
            yield ("workload", "keys", key), f"expected only with key distribution {names}, got {found}"


_SETTINGS_OF_DISTRIBUTIONS = {
    "exponent": (Distribution.ZIPFIAN, Distribution.LATEST),
    "median": (Distribution.GAUSSIAN,),
    "deviation": (Distribution.GAUSSIAN,),
    "hot_keys": (Distribution.HOTSPOT,),
    "hot_operations": (Distribution.HOTSPOT,),
}


def values_make_sense(plan: Plan) -> Iterator[Finding]:
    """Sizes can be drawn. They are not too large for Redis, and not too small for the checksum or JSON."""
    values = plan.workload.values
    path: KeyPath = ("workload", "values")
    if values.minimum_bytes > values.maximum_bytes:
        culprit = "maximum" if values.minimum_bytes == Values().minimum_bytes else "minimum"
        found = f"{values.minimum_bytes} and {values.maximum_bytes}"
        yield (*path, culprit), f"expected minimum <= maximum, got {found}"
    if values.maximum_bytes > LARGEST_VALUE:
        yield (*path, "maximum"), f"expected at most Redis' 512MiB, got {values.maximum_bytes}"
    for number, entry in enumerate(values.sizes):
        if entry.size > LARGEST_VALUE:
            yield (*path, "sizes", number, "size"), f"expected at most Redis' 512MiB, got {entry.size}"
    total = sum(entry.weight for entry in values.sizes)
    if values.sizes and not (total and math.isfinite(total)):
        yield (*path, "sizes"), f"expected weights with a finite sum above zero, got {total:g}"
    around = JSON_BYTES if values.kind is ValueKind.JSON else 0
    needed = around + (CHECKSUM_BYTES + _longest_key(plan) if values.verify else 0)
    smallest = min((entry.size for entry in values.sizes if entry.weight), default=values.minimum_bytes)
    if smallest < needed:
        culprit = "sizes" if values.sizes else "minimum"
        why = "verified values contain their key and a checksum" if values.verify else "JSON values contain braces"
        yield (*path, culprit), f"expected sizes of at least {needed} bytes, because {why}, got {smallest}"


def values_are_of_their_kind(plan: Plan) -> Iterator[Finding]:
    """Values of kind text and json are compatible with the other settings."""
    values = plan.workload.values
    path: KeyPath = ("workload", "values")
    if values.kind is ValueKind.BINARY:
        return
    if 0 < values.compressible < LEAST_COMPRESSIBLE_TEXT:
        yield (
            (*path, "compressible"),
            f"expected 0, or at least {LEAST_COMPRESSIBLE_TEXT}, the least for values of {values.kind.value}, "
            f"got {values.compressible:g}",
        )
    for place, template, own, _ in _templates(plan.workload):
        if template.count(Placeholder.MESSAGE):
            yield (
                (*path, "kind"),
                f"expected binary where the plan has __message__, whose header is binary, got {values.kind.value}",
            )
        prefix = keys_of(plan.workload, own).prefix
        if values.kind is ValueKind.JSON and values.verify and template.count(Placeholder.DATA) and _is_escaped(prefix):
            yield (
                place,
                "expected keys without quotes, backslashes and control characters, because JSON values that are "
                f"verified contain their key, got the prefix {show(prefix)}",
            )


def _is_escaped(text: str) -> bool:
    """Whether JSON has to escape the text."""
    return json.dumps(text, ensure_ascii=False) != f'"{text}"'


def _longest_key(plan: Plan) -> int:
    """Length in bytes of the longest key with a value."""
    per_hash_tag = keys_per_hash_tag(plan.target, plan.workload)
    lengths = [0]
    for _, template, own, _ in _templates(plan.workload):
        if template.count(Placeholder.DATA, Placeholder.TEXT) and template.count(Placeholder.KEY, Placeholder.NEW_KEY):
            keys = keys_of(plan.workload, own)
            # New keys continue beyond the maximum; one more digit allows for ten times as many keys.
            number = str(int(keys.maximum) * (10 if template.count(Placeholder.NEW_KEY) else 1))
            tag = len(str(int(number) // per_hash_tag)) + 3 if per_hash_tag else 0
            lengths.append(len(keys.prefix.encode()) + tag + len(number))
    return max(lengths)


def expiry_is_used(plan: Plan) -> Iterator[Finding]:
    """A time to live is in whole seconds, and a command sets it."""
    expiry = plan.workload.expiry
    path = ("workload", "expiry")
    if not expiry.maximum_s and not expiry.minimum_s:
        return
    for name, seconds in (("minimum", expiry.minimum_s), ("maximum", expiry.maximum_s)):
        if seconds < 1 or not seconds.is_integer():
            yield (*path, name), f"expected whole seconds, at least 1s, got {seconds}"
            return
    if expiry.minimum_s > expiry.maximum_s:
        yield (*path, "minimum"), f"expected minimum <= maximum, got {expiry.minimum_s} and {expiry.maximum_s}"
    if not any(template.count(Placeholder.TTL) for _, template, _, _ in _templates(plan.workload)):
        yield path, "expected a command that sets it: SET, or a template with __ttl__; got none"


def commands_go_to_one_node(plan: Plan) -> Iterator[Finding]:
    """In a cluster, each command goes to one node. With hash tags, the keys of a command, and of a transaction, can be
    drawn from one tag."""
    workload = plan.workload
    shared = workload.transaction > 0
    for path, template, _, _ in _templates(workload) if is_cluster(plan.target) else ():
        if template.name in COMMANDS and not COMMANDS[template.name].routed:
            yield (
                path,
                f"expected a command that can be sent to one node of a cluster, got {template.name}; leave it out",
            )
        elif template.name == "CLIENT" and any(group.driver is not Driver.WIRE for group in plan.pools):
            yield (
                path,
                "expected a command that redis-py can send to one node of a cluster, got CLIENT; use --driver wire",
            )
    if not keys_per_hash_tag(plan.target, workload):
        if is_cluster(plan.target):
            yield from _keys_share_slots(workload)
        return
    off = "or use --keys-per-hash-tag 0"
    for path, template, own, _ in _templates(workload):
        keys = keys_of(workload, own)
        count, new = template.count(Placeholder.KEY), template.count(Placeholder.NEW_KEY)
        if "{" in keys.prefix:
            culprit = ("workload", "keys", "prefix") if own.key_prefix is None else (*path[:3], "key_prefix")
            yield culprit, f"expected a key prefix without {{ where keys have hash tags, got {show(keys.prefix)}; {off}"
        if new > 1 or (new and (count or shared)):
            yield (
                path,
                "expected __new_key__ as the only key, because all keys must share a slot; leave the others out, "
                f"{off}",
            )
        if not shared or isinstance(own, Preload):
            continue
        if template.count(Placeholder.CURSOR) and count:
            yield (
                path,
                f"expected no __cursor__ of a key in a transaction, whose keys must share a slot; leave it out, {off}",
            )
        if count and (keys.minimum, keys.maximum) != (workload.keys.minimum, workload.keys.maximum):
            yield (
                path,
                "expected the same range of keys for all commands of a transaction, because they must share a slot, "
                f"{off}",
            )


def _keys_share_slots(workload: Workload) -> Iterator[Finding]:
    """In a cluster without hash tags by number, key prefixes have a tag wherever commands need keys of one slot."""
    for path, template, own, _ in _templates(workload):
        count = template.count(Placeholder.KEY, Placeholder.NEW_KEY)
        needed = count > 1 or (count and workload.transaction and not isinstance(own, Preload))
        if needed and "{" not in keys_of(workload, own).prefix:
            why = f"{template.name} has {count} keys" if count > 1 else "a transaction has several keys"
            yield (
                path,
                f"expected keys of one slot, because the target is a cluster and {why}, got keys without hash tags; "
                "use --keys-per-hash-tag 100, or a key prefix with a tag such as {1}",
            )


WORKLOAD_RULES = (
    commands_known,
    weights_allow_a_draw,
    placeholders_have_values,
    scripts_distinct,
    command_names_distinct,
    keys_in_range,
    distribution_settings_are_used,
    values_make_sense,
    values_are_of_their_kind,
    expiry_is_used,
    blocking_commands_end,
    commands_go_to_one_node,
)
"""In the order in which a reader would check a plan. All except the first rely on `commands_known`."""

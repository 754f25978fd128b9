"""One call of each command of a plan, as the run will make it: to ask a server about, not to issue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from common.commands.planned import find_command, keys_of, keys_per_hash_tag, planned_commands, script_digest
from common.commands.template import Mixed, Part, Placeholder, Rand, SameAs, Sha, Template
from common.plan.schema.target import Target
from common.plan.schema.workload import CleanUp, Command, Preload, Workload


def key_text(prefix: str, number: int, per_hash_tag: int) -> bytes:
    """The key of a number; per_hash_tag: as `keys_per_hash_tag` says."""
    return f"{prefix}{{{number // per_hash_tag}}}:{number}".encode() if per_hash_tag else f"{prefix}{number}".encode()


def sample_calls(target: Target, workload: Workload) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """(name, arguments with the name first) of every command that the plan may issue."""
    for planned in planned_commands(workload):
        yield _call(target, workload, planned.template, planned.command)


def preparing_calls(target: Target, workload: Workload) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """The same of what is issued before and after the load: scripts, setup, preload, clean-up."""
    if workload.flush_before:
        yield "FLUSHDB", (b"FLUSHDB", b"ASYNC")
    for script in workload.scripts:
        yield "SCRIPT", (b"SCRIPT", b"LOAD", script.lua.encode())
    yield from planned_preparations(target, workload)
    if workload.clean_up is not CleanUp.NONE:
        yield "SCAN", (b"SCAN", b"0")
        yield "UNLINK", (b"UNLINK", key_text(workload.keys.prefix, int(workload.keys.minimum), 0))


def planned_preparations(target: Target, workload: Workload) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """The same for the commands that the plan names itself, in setup and preload."""
    for text in workload.setup:
        yield _call(target, workload, find_command(text), Command(command=text))
    for preload in workload.preload:
        yield _call(target, workload, find_command(preload.command, workload.expiry.maximum_s > 0), preload)


def _call(
    target: Target, workload: Workload, template: Template, own: Command | Preload
) -> tuple[str, tuple[bytes, ...]]:
    filled = _filled(workload, own, keys_per_hash_tag(target, workload))
    scripts = {script.name: script_digest(script.lua) for script in workload.scripts}
    return template.name, tuple(_argument(part, filled, scripts) for part in template.parts)


def _filled(workload: Workload, own: Command | Preload, per_hash_tag: int) -> Mapping[Placeholder, bytes]:
    keys = keys_of(workload, own)
    return {
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


def _argument(part: Part, filled: Mapping[Placeholder, bytes], scripts: Mapping[str, bytes]) -> bytes:
    match part:
        case bytes():
            return part
        case Mixed():
            return b"".join(_argument(piece, filled, scripts) for piece in part.pieces)
        case SameAs():
            return _argument(part.piece, filled, scripts)
        case Rand():
            return b"%d" % part.low
        case Sha():
            return scripts[part.script]
        case _:
            return filled[part]

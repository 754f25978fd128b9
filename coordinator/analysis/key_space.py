"""The key space before and after the load: flush, setup, preload and clean-up, in plans and in reports. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from common.commands import Piece, Placeholder, Template, find_command, pieces_of
from common.plan.planned_commands import keys_of
from common.plan.schema import CleanUp, Plan
from common.protocol.messages import Preloaded
from common.units import NS_PER_S, counted
from coordinator.analysis.totals.aggregate import Aggregate, scenarios_by_target
from coordinator.journal.records import Reading


class PreloadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the preload.

    keys: keys written, counted for each entry of the preload. expected_keys: different keys; None if the plan does not
    determine it. dbsize_before, dbsize_after: keys of all primaries; None if the target does not report it. ok: whether
    the number of keys is as expected; None if that is not known.
    """

    keys: int
    commands: int
    seconds: float
    per_s: float
    expected_keys: int | None
    dbsize_before: int | None
    dbsize_after: int | None
    ok: bool | None


class CleanUpSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the clean-up. left: keys that could not be deleted; None if that is not known. error: the reason.
    deleted_earlier: those of `deleted` that were deleted before the run was resumed."""

    deleted: int
    left: int | None
    seconds: float
    error: str
    deleted_earlier: int = 0


def key_space_lines(plan: Plan) -> list[str]:
    """Return lines on what will be done before and after the load; none for a plan that does nothing."""
    workload, lines = plan.workload, []
    if workload.flush_before:
        lines.append("before: the target's database is emptied, if --yes-flush is given too")
    if workload.scripts:
        lines.append(f"before: scripts loaded: {', '.join(script.name for script in workload.scripts)}")
    lines += [f"before: setup {text}: {counted(_setup_calls(plan, text), 'call')}" for text in workload.setup]
    for entry in workload.preload:
        keys = keys_of(workload, entry)
        count = len(keys.numbers)
        lines.append(
            f"before: preload {entry.command}: {counted(count, 'key')}, {keys.prefix}{keys.minimum} to "
            f"{keys.prefix}{keys.maximum}, {counted(count * entry.times, 'command')}"
        )
    if workload.clean_up is not CleanUp.NONE:
        lines.append("after: every key that the plan may have written is deleted")
    return lines


def key_space_facts(plan: Plan) -> dict[str, int | bool | str | None]:
    """Return the same as facts for programs. preload_keys: different keys, see `expected_keys`."""
    workload = plan.workload
    return {
        "flush": workload.flush_before,
        "scripts": len(workload.scripts),
        "setup_calls": sum(_setup_calls(plan, text) for text in workload.setup),
        "preload_keys": expected_keys(plan),
        "preload_commands": sum(entry.times * len(keys_of(workload, entry).numbers) for entry in workload.preload),
        "clean_up": workload.clean_up.value,
    }


def _setup_calls(plan: Plan, text: str) -> int:
    return len(plan.workload.keys.numbers) if find_command(text).count(Placeholder.KEY) else 1


def expected_keys(*plans: Plan) -> int | None:
    """Return how many different keys the preload of these plans writes to one target; entries may share keys. None if
    the plans do not determine it: a command's first argument must be its key and contain no other placeholder."""
    spans: dict[tuple[bytes, bytes], list[tuple[int, int]]] = {}
    for workload, entry in ((plan.workload, entry) for plan in plans for entry in plan.workload.preload):
        keys = keys_of(workload, entry)
        around = _around_key(find_command(entry.command))
        if around is None:
            return None
        before, after = around
        spans.setdefault((before + keys.prefix.encode(), after), []).append((int(keys.minimum), int(keys.maximum)))
    return sum(_covered(ranges) for ranges in spans.values())


def _around_key(template: Template) -> tuple[bytes, bytes] | None:
    """Return the text before and after `__key__` in the first argument; None if it has other placeholders."""
    pieces = pieces_of(template.arguments[1])
    if Placeholder.KEY not in pieces:
        return None
    at = pieces.index(Placeholder.KEY)
    before, after = _joined(pieces[:at]), _joined(pieces[at + 1 :])
    return None if before is None or after is None else (before, after)


def _joined(pieces: Sequence[Piece]) -> bytes | None:
    literals = [piece for piece in pieces if isinstance(piece, bytes)]
    return b"".join(literals) if len(literals) == len(pieces) else None


def _covered(ranges: Sequence[tuple[int, int]]) -> int:
    """Return how many numbers lie in at least one of these ranges, both ends included."""
    count, next_free = 0, 0
    for low, high in sorted(ranges):
        count += max(0, high + 1 - max(low, next_free))
        next_free = max(next_free, high + 1)
    return count


def preload_of(run: Aggregate) -> PreloadSummary | None:
    """Return the result of the preload; None for a run without one."""
    done = Preloaded.merge(agent.facts.preloaded for agent in run.agents.values())
    if run.opened is None or done is None:
        return None
    known = [_known_keys(scenarios) for scenarios in scenarios_by_target(run).values()]
    expected, before, after = (_sum_of_known(counts) for counts in zip(*known, strict=True))
    seconds = done.took_ns / NS_PER_S
    return PreloadSummary(
        keys=done.keys,
        commands=done.commands,
        seconds=seconds,
        per_s=done.commands / seconds if seconds else 0.0,
        expected_keys=expected,
        dbsize_before=before,
        dbsize_after=after,
        ok=None if before is None or after is None or expected is None else _is_ok(before, after, expected),
    )


def _known_keys(scenarios: Sequence[Aggregate]) -> tuple[int | None, int | None, int | None]:
    """(keys that the preload of these scenarios writes, keys of their target before it, keys after it)."""
    opened = [each.opened for each in scenarios if each.opened is not None]
    reading = scenarios[0].readings.get(Reading.BEFORE)
    return expected_keys(*(each.plan for each in opened)), opened[0].target.keys, reading.keys if reading else None


def _sum_of_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _is_ok(before: int, after: int, expected: int) -> bool:
    """Return whether the number of keys fits the preload: in an empty database all its keys are new, otherwise some may
    have existed before."""
    return after - before == expected or (before > 0 and after >= expected)


def preload_mismatch(run: Aggregate) -> Iterator[str]:
    """Yield a sentence if the target does not have the keys that the preload wrote."""
    preload = preload_of(run)
    if preload is None or preload.ok is not False:
        return
    expected, before, after = preload.expected_keys, preload.dbsize_before, preload.dbsize_after
    assert expected is not None
    assert before is not None
    assert after is not None
    why = "keys were evicted, expired or deleted" if after < before + expected else "other clients wrote keys"
    yield (
        f"The preload wrote {counted(expected, 'different key')}, but the target had {counted(before, 'key')} "
        f"before the preload and {after:,} after it: {why}."
    )


def preload_text(preload: PreloadSummary) -> str:
    """Return one line for the report."""
    sizes = "DBSIZE not reported"
    if preload.dbsize_before is not None and preload.dbsize_after is not None:
        sizes = f"DBSIZE {preload.dbsize_before:,} before, {preload.dbsize_after:,} after"
    return (
        f"{counted(preload.keys, 'key')} by {counted(preload.commands, 'command')} in {preload.seconds:.1f} s "
        f"({preload.per_s:,.0f}/s); {sizes}"
    )


def clean_up_of(run: Aggregate) -> CleanUpSummary | None:
    """Return the result of the clean-up; None for a run without one, or before it."""
    done = run.cleaned
    if done is None:
        return None
    return CleanUpSummary(
        deleted=done.deleted,
        left=done.left,
        seconds=done.took_ns / NS_PER_S,
        error=done.error,
        deleted_earlier=done.earlier,
    )


def clean_up_text(done: CleanUpSummary, run_id: str = "") -> str:
    """Return one line for the report. run_id: of a run that has ended, and can be resumed to delete the rest."""
    left = "unknown how many are left" if done.left is None else f"{done.left:,} left"
    why = f": {done.error}" if done.error else ""
    hint = f"; `coordinator start --resume {run_id}` deletes the rest" if run_id and done.left != 0 else ""
    earlier = f" ({done.deleted_earlier:,} of them before the run was resumed)" if done.deleted_earlier else ""
    return f"{counted(done.deleted, 'key')} deleted{earlier} in {done.seconds:.1f} s, {left}{why}{hint}"

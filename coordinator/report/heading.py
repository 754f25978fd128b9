"""The first lines of a report: which run, when, how it ended, on what target, and with what load."""

from __future__ import annotations

from rich.table import Table

from coordinator.report.printing import (
    ERRORS_SHOWN_FROM,
    OUTCOME_STYLES,
    as_text,
    counts_by_name,
    facts,
    failed_share,
    rounded,
)
from coordinator.report.summary_types import RunSummary, Summary, TargetSummary


def heading(summary: Summary) -> Table:
    """Return the first lines."""
    run, targets = summary.run, list(summary.targets.items())
    outcome = as_text(run.outcome.value, style=OUTCOME_STYLES[run.outcome])
    outcome.append(f" in {run.duration_s:.1f} s", style="default")
    outcome.append(_failed(summary), style="red")
    if run.reason:
        outcome.append(f": {run.reason}", style="default")
    return facts(
        ("Run", as_text(run.id)),
        ("", outcome),
        *([("", as_text(_when(run)))] if run.load_started_at else []),
        *(("Target" if at == 0 else "", as_text(_target_line(name, each))) for at, (name, each) in enumerate(targets)),
        ("Load", as_text(_load_model(summary))),
    )


def _when(run: RunSummary) -> str:
    """Return when the load started and ended: "from 2026-03-04 05:06:07.890 to 05:06:17.891 UTC"."""
    day, time = _day_and_time(run.load_started_at or "")
    started = f"from {day} {time}"
    if run.load_ended_at is None:
        return f"{started} UTC"
    last_day, end = _day_and_time(run.load_ended_at)
    return f"{started} to {end if last_day == day else f'{last_day} {end}'} UTC"


def _day_and_time(utc: str) -> tuple[str, str]:
    """Return the date and the time of day, to the millisecond, of an ISO 8601 text with microseconds."""
    day, _, time = utc.partition("T")
    return day, time[: len("05:06:07.890")]


def _target_line(name: str, target: TargetSummary) -> str:
    of = f"{name}: " if name else ""
    return f"{of}{target.url} ({target.topology}, {target.server})"


def _failed(summary: Summary) -> str:
    """Return how many operations failed (with their errors, unless the reason names these) or were never sent, for the
    first line."""
    totals, unsent = summary.totals, summary.load.unsent
    found = ""
    if share := failed_share(totals.errors, totals.operations):
        kinds = counts_by_name(summary.errors, most=2)
        found = f", {share}" if kinds.partition(" ")[0] in summary.run.reason else f", {share} ({kinds})"
    never = unsent / (totals.operations + unsent) if unsent else 0.0
    return f"{found}, {never:.1%} never sent" if never > ERRORS_SHOWN_FROM else found


_SENDERS = {"client": "thread", "asyncio": "task", "wire": "connection"}


def _load_model(summary: Summary) -> str:
    load = summary.load
    measured = [stage for stage in summary.stages if stage.measured]
    if len(summary.scenarios) > 1:
        achieved = f"{rounded(load.achieved_rate_per_s)}/s achieved"
        return f"{len(summary.scenarios)} scenarios: {achieved}, {_never_sent(summary)}"
    if len(measured) > 1:
        how = {"closed": "closed loop", "mixed": "closed and open loop"}.get(load.model, "open loop")
        how += f", {load.arrivals} arrivals" if load.arrivals else ""
        wanted = "" if load.wanted_rate_per_s is None else f"{rounded(load.wanted_rate_per_s)}/s wanted, "
        return (
            f"{len(measured)} stages ({how}): {wanted}{rounded(load.achieved_rate_per_s)}/s achieved, "
            + _never_sent(summary)
        )
    if load.wanted_rate_per_s is None:
        pools = (summary.plan.get("scenarios") or [summary.plan])[0]["pools"]
        workers = dict.fromkeys(_SENDERS[str(pool["driver"])] for pool in pools)
        return f"closed loop: every {' and '.join(workers)} sends as soon as it has its last reply"
    stage = measured[0] if measured else None
    ramp = ""
    if stage is not None and stage.ramp == "linear":
        ramp = f" (a ramp from {rounded(stage.from_rate_per_s or 0.0)} to {rounded(stage.target_rate_per_s or 0.0)})"
    return (
        f"open loop ({load.arrivals} arrivals): {rounded(load.wanted_rate_per_s)}/s wanted{ramp}, "
        f"{rounded(load.achieved_rate_per_s)}/s achieved, {_never_sent(summary)}"
    )


def _never_sent(summary: Summary) -> str:
    load = summary.load
    uncarried = f", {load.uncarried:,} more due in a share without an agent" if load.uncarried else ""
    return f"{load.unsent:,} never sent{uncarried}"

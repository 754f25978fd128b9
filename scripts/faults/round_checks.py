"""The checks after a round: compare what was observed from outside with what the program promises. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.faults.round_specs import HARMLESS, MAY_LOSE_OPERATIONS, SHORTENS_WAITS, TARGET_FAULTS, FaultKind

EXIT_CODES = {0, 4, 5, 7, 130}
"""Documented exit codes of a run whose plan and command line are valid."""
MAX_MEMORY_MIB = 400.0
OUTCOMES = {0: {"completed", "degraded"}, 4: {"degraded", "aborted"}, 5: {"degraded", "aborted"}, 130: {"interrupted"}}
"""Outcomes that fit an exit code; 7 fits any outcome."""


@dataclass(slots=True)
class Observations:
    """What was observed in a round.

    faults: kinds of the injected faults. codes: exit codes of all coordinators; None for a killed one. calls_at_fence:
    the server's calls of the plan's commands when the last agent must have stopped. calls_at_end: the same some time
    later. incr_executed: executed INCR commands, by the keys; None if the keys were deleted. is_comparable: false if
    the server was restarted, or another run loaded it before. max_lost: most operations that could not be reported any
    more. outage_s: length of all outages together. lease_s: the plan's lease. reused: agents served another run.
    collected: the run was resumed after its end, to collect the results that agents had kept. problems: found during
    the round.
    """

    faults: list[FaultKind] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)
    summary: Mapping[str, Any] | None = None
    calls_at_end: int = 0
    calls_at_fence: int | None = None
    incr_executed: int | None = None
    keys_left: int | None = None
    is_comparable: bool = True
    max_lost: int = 0
    outage_s: float = 0.0
    lease_s: float = 0.0
    memory_mib: float = 0.0
    resumes: int = 0
    reused: bool = False
    collected: bool = False
    problems: list[str] = field(default_factory=list)


def problems(observed: Observations) -> Iterator[str]:
    """A sentence for each failed check."""
    yield from observed.problems
    yield from _end_problems(observed)
    if observed.memory_mib > MAX_MEMORY_MIB:
        yield f"the coordinator used {observed.memory_mib:.0f} MiB, more than {MAX_MEMORY_MIB:.0f}"
    if observed.is_comparable and observed.calls_at_fence is not None:
        late = observed.calls_at_end - observed.calls_at_fence
        if late:
            yield f"late load: {late:,} operations reached the server after lease and drain of all agents had passed"
    if observed.summary is not None:
        yield from _count_problems(observed, observed.summary)


def _end_problems(observed: Observations) -> Iterator[str]:
    code = observed.codes[-1] if observed.codes else None
    if code is None:
        return
    faults = set(observed.faults)
    if code not in EXIT_CODES:
        yield f"exit code {code}; expected one of {sorted(EXIT_CODES)}"
    if observed.summary is None:
        if code == 0:
            yield "exit code 0 without a report"
        if faults <= HARMLESS:
            yield f"exit code {code}: the run did not begin, although no fault may prevent it"
        return
    outcome, reason = observed.summary["run"]["outcome"], observed.summary["run"]["reason"]
    if code in OUTCOMES and outcome not in OUTCOMES[code]:
        yield f"exit code {code} with the outcome {outcome!r}"
    if faults <= HARMLESS and code != 0:
        yield f"exit code {code}, although no fault may change the end: {reason}"
    if code == 130 and not faults & {FaultKind.INTERRUPTED, FaultKind.INTERRUPTED_TWICE}:
        yield "interrupted without a Ctrl-C"
    if code == 4 and not faults & TARGET_FAULTS:
        yield f"exit code 4 blames the target, which had no fault: {reason}"


def _count_problems(observed: Observations, summary: Mapping[str, Any]) -> Iterator[str]:
    ledger, preload = summary["ledger"], summary["preload"]
    calls = observed.calls_at_end - (preload["commands"] if preload else 0)
    faults = set(observed.faults)
    is_short = observed.outage_s < observed.lease_s and not faults & SHORTENS_WAITS
    is_complete = all(agent["state"] == "finished" for agent in summary["agents"]) or is_short
    is_lossless = is_complete and not faults & MAY_LOSE_OPERATIONS
    least, most = ledger["definite"], ledger["definite"] + ledger["uncertain"]
    if ledger["issued"] != ledger["counted"] and is_lossless:
        yield f"issued {ledger['issued']:,}, counted {ledger['counted']:,}, although no results were lost"
    if observed.is_comparable:
        if calls < least:
            yield f"the server counts {calls:,} operations, the report has {least:,}: {least - calls:,} too many"
        max_lost = 0 if is_lossless else observed.max_lost
        if calls > most + max_lost:
            yield (
                f"the server counts {calls:,} operations, the report has {most:,}"
                f"{f', and at most {max_lost:,} may be lost' if max_lost else ''}: "
                f"{calls - most - max_lost:,} unaccounted for"
            )
        if ledger["server_calls"] is not None and ledger["server_calls"] != calls:
            yield (
                f"late load: {calls - ledger['server_calls']:,} operations reached the server after the report was "
                f"made, at {ledger['server_calls']:,} operations"
            )
        if is_lossless and ledger["unaccounted"]:
            yield f"the report's ledger has {ledger['unaccounted']:,} operations unaccounted for"
    elif is_lossless and ledger["unaccounted"]:
        yield f"the report's ledger has {ledger['unaccounted']:,} operations unaccounted for; the target was restarted"
    if observed.incr_executed is not None and observed.is_comparable and is_lossless and not ledger["uncertain"]:
        done = summary["commands"]["INCR"]["ok"] if "INCR" in summary["commands"] else 0
        has_no_warmup = ledger["counted"] == summary["totals"]["operations"]
        if observed.incr_executed < done or (has_no_warmup and observed.incr_executed != done):
            yield f"INCR was executed {observed.incr_executed:,} times, by its keys; the report has {done:,}"
    clean_up = summary["clean_up"]
    if clean_up is not None and clean_up["error"] in (None, "") and observed.keys_left and observed.is_comparable:
        yield f"{observed.keys_left:,} keys are left after the clean-up, which reports {clean_up['left']}"

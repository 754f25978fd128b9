"""Whether a round kept the promises, by what was seen from outside. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.faults.draws import COSTS_OPERATIONS, HARMLESS, LEAVES_EARLY, TARGET, Kind

EXIT_CODES = {0, 4, 5, 7, 130}
"""Documented ends of a run whose plan and command line are good."""
MOST_MEMORY_MIB = 400.0
OUTCOMES = {0: {"completed", "degraded"}, 4: {"degraded", "aborted"}, 5: {"degraded", "aborted"}, 130: {"interrupted"}}
"""Outcomes that go with an exit code; 7 goes with any."""


@dataclass(slots=True)
class Seen:
    """What was seen of a round.

    happened: the faults that came to pass. codes: of all coordinators, None for a killed one. fenced_calls: calls of
    the plan's commands at the server, since it was empty, when the last agent had to have stopped; later_calls: some
    time after that. incremented: executed INCR, by the keys; None where they were deleted. is_comparable: the server
    was not restarted, and no other run began before this one. lost_room: operations at most that nobody could report
    any more. outage_s, lease_s: how long agents and coordinator were kept apart, all faults together, and how long they
    may be. reused: agents served a next run. collected: the run was resumed after its end, for what agents had kept.
    """

    happened: list[Kind] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)
    summary: Mapping[str, Any] | None = None
    later_calls: int = 0
    fenced_calls: int | None = None
    incremented: int | None = None
    keys_left: int | None = None
    is_comparable: bool = True
    lost_room: int = 0
    outage_s: float = 0.0
    lease_s: float = 0.0
    memory_mib: float = 0.0
    resumes: int = 0
    reused: bool = False
    collected: bool = False
    problems: list[str] = field(default_factory=list)


def problems(seen: Seen) -> Iterator[str]:
    """A sentence for each promise that was broken."""
    yield from seen.problems
    yield from _of_the_end(seen)
    if seen.memory_mib > MOST_MEMORY_MIB:
        yield f"the coordinator took {seen.memory_mib:.0f} MiB, more than {MOST_MEMORY_MIB:.0f}"
    if seen.fenced_calls is not None and seen.is_comparable and seen.later_calls != seen.fenced_calls:
        yield (
            f"unfenced: {seen.later_calls - seen.fenced_calls:,} operations reached the server after lease and drain "
            "of every agent had passed"
        )
    if seen.summary is not None:
        yield from _of_the_counts(seen, seen.summary)


def _of_the_end(seen: Seen) -> Iterator[str]:
    code = seen.codes[-1] if seen.codes else None
    if code is None:
        return
    happened = set(seen.happened)
    if code not in EXIT_CODES:
        yield f"exit code {code}; expected one of {sorted(EXIT_CODES)}"
    if seen.summary is None:
        if code == 0:
            yield "exit code 0 without a report"
        if happened <= HARMLESS:
            yield f"exit code {code}: the run did not begin, although nothing happened that may keep it from it"
        return
    outcome = seen.summary["run"]["outcome"]
    if code in OUTCOMES and outcome not in OUTCOMES[code]:
        yield f"exit code {code} with the outcome {outcome!r}"
    if happened <= HARMLESS and code != 0:
        yield f"exit code {code}, although nothing happened that may change the end: {seen.summary['run']['reason']}"
    if code == 130 and not happened & {Kind.INTERRUPTED, Kind.INTERRUPTED_TWICE}:
        yield "interrupted, but by nobody"
    if code == 4 and not happened & TARGET:
        yield f"the target is blamed, but nothing happened to it: {seen.summary['run']['reason']}"


def _of_the_counts(seen: Seen, summary: Mapping[str, Any]) -> Iterator[str]:
    ledger, preload = summary["ledger"], summary["preload"]
    preloaded = preload["commands"] if preload else 0
    reached = seen.later_calls - preloaded
    happened = set(seen.happened)
    is_short = seen.outage_s < seen.lease_s and not happened & LEAVES_EARLY
    is_whole = all(agent["state"] == "finished" for agent in summary["agents"]) or is_short
    lossless = is_whole and not happened & COSTS_OPERATIONS
    least, most = ledger["definite"], ledger["definite"] + ledger["uncertain"]
    if ledger["issued"] != ledger["counted"] and lossless:
        yield f"issued {ledger['issued']:,}, counted {ledger['counted']:,}, although nobody was lost for good"
    if seen.is_comparable:
        if reached < least:
            yield f"the server did {reached:,} operations, the report has {least:,}: {least - reached:,} too many"
        room = 0 if lossless else seen.lost_room
        if reached > most + room:
            yield (
                f"the server did {reached:,} operations, the report accounts for {most:,}"
                f"{f' and what was in flight may be {room:,} more' if room else ''}: "
                f"{reached - most - room:,} unaccounted for"
            )
        if ledger["server_calls"] is not None and ledger["server_calls"] != reached:
            yield (
                f"unfenced: the report was made at {ledger['server_calls']:,} operations of the server, which then did "
                f"{reached - ledger['server_calls']:,} more"
            )
        if lossless and ledger["unaccounted"]:
            yield f"the ledger itself has {ledger['unaccounted']:,} unaccounted for"
    elif lossless and ledger["unaccounted"]:
        yield f"the ledger itself has {ledger['unaccounted']:,} unaccounted for, with a target that was restarted"
    if seen.incremented is not None and seen.is_comparable and lossless and not ledger["uncertain"]:
        done = summary["commands"]["INCR"]["ok"] if "INCR" in summary["commands"] else 0
        is_all = ledger["counted"] == summary["totals"]["operations"]  # no warmup
        if seen.incremented < done or (is_all and seen.incremented != done):
            yield f"INCR was executed {seen.incremented:,} times, by its keys; the report has {done:,}"
    cleaned = summary["clean_up"]
    if cleaned is not None and cleaned["error"] in (None, "") and seen.keys_left and seen.is_comparable:
        yield f"{seen.keys_left:,} keys are left after the clean-up, which says {cleaned['left']}"

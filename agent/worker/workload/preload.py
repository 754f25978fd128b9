"""Keys written before the start: each worker process fills its threads' parts of the key space, in pipelines.

It has a client of its own, so that nothing of it shows in what the run's clients count, and that it is the same for
every driver. Nothing of it is in the ledger: the server's counters are read when it is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeAlias

from agent.worker.metrics.connection_events import EventLog
from agent.worker.workload.operations import Operation
from agent.worker.workload.preload_operations import preload_operations
from agent.worker.workload.values import Values
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.commands import Argument, Compound, Placeholder, find_command
from common.errors import TargetError
from common.plan.planned_commands import keys_per_hash_tag
from common.plan.rules.preparation_rules import preload_share
from common.plan.schema import Pools, Preload, Target
from common.protocol.messages import Assignment, Preloaded
from common.redis_client import (
    Client,
    address_of,
    build_client,
    error_reply,
    failure_of,
    ping_target,
    translate,
    translated,
)
from common.units import printable

LANES = 4
"""Connections that one process fills over. More would wait for each other: what a request costs is mostly Python's."""
BATCH = 100
BATCH_BYTES = 1 << 20
PROGRESS_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker thread has to write for one entry of the preload. keys: how many. key_at: which of the arguments
    is the key, to name it when something is wrong."""

    operations: Iterator[Operation]
    keys: int
    times: int
    key_at: int


OnProgress: TypeAlias = Callable[[int, int], None]
"""Told commands that were answered, of how many, some ten times a second; what it raises ends the preload."""


@dataclass(slots=True)
class _Lane:
    """One connection's work, and what it has done so far. Another thread reads it meanwhile."""

    keys: int = 0
    commands: int = 0
    bytes_out: int = 0


def parts_of(assignment: Assignment) -> list[list[Part]]:
    """What each worker thread of an assignment has to write, an item a thread."""
    plan = assignment.plan
    if not plan.workload.preload or not assignment.preloads:
        return []
    per_hash_tag = keys_per_hash_tag(plan.target, plan.workload)
    values = Values(plan.workload.values, plan.seed)
    return [
        [
            Part(
                operations=preload_operations(
                    plan.workload,
                    entry,
                    thread,
                    assignment.threads_total,
                    seed=plan.seed,
                    per_hash_tag=per_hash_tag,
                    values=values,
                ),
                keys=keys,
                times=entry.times,
                key_at=_key_at(entry),
            )
            for entry, keys in zip(
                plan.workload.preload, preload_share(plan, thread, assignment.threads_total), strict=True
            )
        ]
        for thread in assignment.threads
    ]


def _key_at(entry: Preload) -> int:
    """Which argument of the command is its key, or has it within; a name of the table has it in the same place."""
    parts = find_command(entry.command).arguments
    return next(at for at, part in enumerate(parts) if _holds_key(part))


def _holds_key(part: Argument) -> bool:
    """Whether this argument of a template is its key, or has it within."""
    return Placeholder.KEY in (part.pieces if isinstance(part, Compound) else (part,))


def preload(threads: Sequence[Sequence[Part]], target: Target, on_progress: OnProgress) -> Preloaded | None:
    """Write everything: one item a worker thread, its parts in order. None when there is nothing to write.

    Raises TargetError when the target cannot be reached, or answers with an error; then, and when on_progress raises,
    everything under way is cut short.
    """
    total = sum(part.keys * part.times for parts in threads for part in parts)
    if not total:
        return None
    began_ns = monotonic_ns()
    on_progress(0, total)
    ping_target(target)
    cancellation = Cancellation()
    waiting = deque(threads)
    lanes = [_Lane() for _ in range(min(LANES, len(threads)))]
    # Twice as many as there are lanes: a cluster's client asks again on another connection what was redirected.
    pools = Pools(max_connections=2 * len(lanes))
    client = build_client(target, pools, events=EventLog(), cancellation=cancellation)
    try:
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="preload") as executor:
            pending = {executor.submit(_fill, lane, waiting, client, target, cancellation) for lane in lanes}
            try:
                while pending:
                    done, pending = wait(pending, timeout=PROGRESS_S, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    on_progress(sum(lane.commands for lane in lanes), total)
            except BaseException:
                # Whoever waits for the target must not keep the executor, and so the failure, waiting.
                cancellation.cancel()
                raise
    finally:
        client.close()
    return Preloaded(
        keys=sum(lane.keys for lane in lanes),
        commands=sum(lane.commands for lane in lanes),
        bytes_out=sum(lane.bytes_out for lane in lanes),
        took_ns=monotonic_ns() - began_ns,
    )


def _fill(
    lane: _Lane, waiting: deque[Sequence[Part]], client: Client, target: Target, cancellation: Cancellation
) -> None:
    """Take the next thread's parts until none is left."""
    with translated(target):
        while waiting:
            try:
                parts = waiting.popleft()
            except IndexError:  # another lane was quicker
                return
            for part in parts:
                _fill_part(lane, part, client, target, cancellation)


def _fill_part(lane: _Lane, part: Part, client: Client, target: Target, cancellation: Cancellation) -> None:
    before, commands = lane.keys, 0
    for batch, request_bytes in _batches(part.operations):
        cancellation.check()
        pipeline = client.pipeline(transaction=False)
        for arguments in batch:
            pipeline.execute_command(*arguments)  # type: ignore[no-untyped-call]
        for arguments, reply in zip(batch, pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(reply, Exception):
                raise _trouble(arguments, reply, part, target)
        commands += len(batch)
        lane.commands += len(batch)
        lane.bytes_out += request_bytes
        lane.keys = before + commands // part.times


def _batches(operations: Iterator[Operation]) -> Iterator[tuple[list[tuple[str | bytes, ...]], int]]:
    """(the arguments of a round trip's commands, their bytes); one trip is bounded in both."""
    batch: list[tuple[str | bytes, ...]] = []
    size = 0
    for _, arguments, request_bytes, _ in operations:
        batch.append(arguments)
        size += request_bytes
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def _trouble(arguments: Sequence[str | bytes], error: Exception, part: Part, target: Target) -> TargetError:
    if not failure_of(error).replied:
        return translate(error, target)
    key = arguments[part.key_at]
    shown = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
    return TargetError(
        f"target {address_of(target)} refused the preload: {arguments[0]!s} {printable(shown)} was answered with "
        f"{error_reply(error)}"
    )

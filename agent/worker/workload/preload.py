"""The preload: before the start, each worker process writes its workers' parts of the key space, in pipelines.

It has its own client, so the run's clients count nothing of the preload, and all drivers preload in the same way. The
ledger does not count it either, because the server's counters are read after the preload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from agent.worker.metrics.connection_events import EventLog
from agent.worker.workload.arguments import ArgumentContext, CommandBuilder, CommandNumbers
from agent.worker.workload.keys import Keyspace
from agent.worker.workload.reply_effects import Operation
from agent.worker.workload.sampling import SEQUENCE, WorkerCounters
from agent.worker.workload.values import ValueGenerator
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.commands import Placeholder, find_command
from common.errors import TargetError
from common.plan.planned_commands import keys_of, keys_per_hash_tag, script_digests
from common.plan.schema import Plan, Pools, Preload, Target, Workload
from common.plan.seeds import SeedPurpose, seed_sequence
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

CONNECTIONS = 4
"""Connections of one process. More would mostly wait for the interpreter lock, which most of the work needs."""
BATCH = 100
BATCH_BYTES = 1 << 20
PROGRESS_S = 0.1
_BLOCK_KEYS = 512


@dataclass(frozen=True, slots=True)
class PreloadTask:
    """The writes of one worker for one entry of the preload. keys: number of keys. times: commands per key. key_index:
    index of the key among the arguments, to name the key in an error."""

    operations: Iterator[Operation]
    keys: int
    times: int
    key_index: int


OnProgress: TypeAlias = Callable[[int, int], None]
"""Called about ten times a second with (commands answered, commands in all). An exception from it ends the preload."""


@dataclass(slots=True)
class _Progress:
    """What one connection has written so far. Another thread reads it at any time."""

    keys: int = 0
    commands: int = 0
    bytes_out: int = 0


def preload_tasks(assignment: Assignment) -> list[list[PreloadTask]]:
    """The tasks of each worker of an assignment."""
    plan = assignment.plan
    if not plan.workload.preload or not assignment.preloads:
        return []
    values = ValueGenerator(plan.workload.values, plan.seed)
    return [_tasks_of(plan, thread, assignment.threads_total, values) for thread in assignment.threads]


def _tasks_of(plan: Plan, thread: int, threads: int, values: ValueGenerator) -> list[PreloadTask]:
    per_hash_tag = keys_per_hash_tag(plan.target, plan.workload)
    return [
        PreloadTask(
            operations=preload_operations(
                plan.workload, entry, thread, threads, seed=plan.seed, per_hash_tag=per_hash_tag, values=values
            ),
            keys=len(keys_of(plan.workload, entry).part(thread, threads)),
            times=entry.times,
            key_index=find_command(entry.command).first_with(Placeholder.KEY) or 0,
        )
        for entry in plan.workload.preload
    ]


def preload_operations(
    workload: Workload,
    entry: Preload,
    thread: int,
    threads: int,
    *,
    seed: int,
    per_hash_tag: int = 0,
    values: ValueGenerator | None = None,
) -> Iterator[Operation]:
    """The operations of one entry in one worker: each key of the worker's part in order, `times` times in a row. Keys,
    values and times to live have the same form as in the mix.

    values: the workload's values, if they exist already, so that their buffer is made only once. The plan's rules allow
    exactly one `__key__` in the entry's template, no `__new_key__`, and no deferred argument. The row of each operation
    is 0.
    """
    template = find_command(entry.command, workload.expiry.maximum_s > 0)
    keys = keys_of(workload, entry)
    context = ArgumentContext(
        keyspace=Keyspace(keys.prefix, int(keys.minimum), int(keys.maximum), per_hash_tag),
        values=values or ValueGenerator(workload.values, seed),
        ttl_s=(int(workload.expiry.minimum_s), int(workload.expiry.maximum_s)),
        thread=thread,
        threads=threads,
        scripts=script_digests(workload),
    )
    builder, counters = CommandBuilder(template, context), WorkerCounters()
    generator = np.random.default_rng(seed_sequence(seed, thread, SeedPurpose.PRELOAD))
    part = keys.part(thread, threads)
    for first in range(part.start, part.stop, _BLOCK_KEYS):
        drawn = np.repeat(np.arange(first, min(first + _BLOCK_KEYS, part.stop), dtype=np.int64), entry.times)
        numbers = CommandNumbers(
            generator=generator,
            count=drawn.size,
            keys=drawn[:, None],
            rand_ints=np.repeat(drawn[:, None], builder.counts.rand_ints, axis=1),
            new_keys=np.zeros(drawn.size, dtype=np.int64),
            sequence=counters.take(SEQUENCE, np.full(drawn.size, builder.counts.sequences)),
        )
        built, sizes = builder.build(numbers)
        for arguments, request_bytes in zip(built, sizes.tolist(), strict=True):
            yield 0, arguments, request_bytes, None


def preload(workers: Sequence[Sequence[PreloadTask]], target: Target, on_progress: OnProgress) -> Preloaded | None:
    """Write the whole preload: the tasks of each worker, in order. Returns None if there is nothing to write.

    Raises TargetError if the target cannot be reached or answers with an error. Then, and if `on_progress` raises, cuts
    all commands in flight.
    """
    total = sum(task.keys * task.times for tasks in workers for task in tasks)
    if not total:
        return None
    began_ns = monotonic_ns()
    on_progress(0, total)
    ping_target(target)
    cancellation = Cancellation()
    waiting = deque(workers)
    connections = [_Progress() for _ in range(min(CONNECTIONS, len(workers)))]
    # Twice the connections: a cluster's client repeats a redirected command on another connection.
    pools = Pools(max_connections=2 * len(connections))
    client = build_client(target, pools, events=EventLog(), cancellation=cancellation)
    try:
        with ThreadPoolExecutor(len(connections), thread_name_prefix="preload") as executor:
            pending = {
                executor.submit(_run, progress, waiting, client, target, cancellation) for progress in connections
            }
            try:
                while pending:
                    done, pending = wait(pending, timeout=PROGRESS_S, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    on_progress(sum(progress.commands for progress in connections), total)
            except BaseException:
                # Otherwise the executor, and so this error, waits for threads that wait for the target.
                cancellation.cancel()
                raise
    finally:
        client.close()
    return Preloaded(
        keys=sum(progress.keys for progress in connections),
        commands=sum(progress.commands for progress in connections),
        bytes_out=sum(progress.bytes_out for progress in connections),
        took_ns=monotonic_ns() - began_ns,
    )


def _run(
    progress: _Progress,
    waiting: deque[Sequence[PreloadTask]],
    client: Client,
    target: Target,
    cancellation: Cancellation,
) -> None:
    """Take the next worker's tasks until none is left."""
    with translated(target):
        while waiting:
            try:
                tasks = waiting.popleft()
            except IndexError:  # another connection was quicker
                return
            for task in tasks:
                _write(progress, task, client, target, cancellation)


def _write(progress: _Progress, task: PreloadTask, client: Client, target: Target, cancellation: Cancellation) -> None:
    keys_before, commands = progress.keys, 0
    for batch, request_bytes in _batches(task.operations):
        cancellation.check()
        pipeline = client.pipeline(transaction=False)
        for arguments in batch:
            pipeline.execute_command(*arguments)  # type: ignore[no-untyped-call]
        for arguments, reply in zip(batch, pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(reply, Exception):
                raise _target_error(arguments, reply, task, target)
        commands += len(batch)
        progress.commands += len(batch)
        progress.bytes_out += request_bytes
        progress.keys = keys_before + commands // task.times


def _batches(operations: Iterator[Operation]) -> Iterator[tuple[list[tuple[str | bytes, ...]], int]]:
    """(arguments of each command of one round trip, their bytes). Both the number and the bytes are limited."""
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


def _target_error(arguments: Sequence[str | bytes], error: Exception, task: PreloadTask, target: Target) -> TargetError:
    if not failure_of(error).replied:
        return translate(error, target)
    key = arguments[task.key_index]
    shown = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
    return TargetError(
        f"target {address_of(target)} refused the preload: {arguments[0]!s} {printable(shown)} was answered with "
        f"{error_reply(error)}"
    )

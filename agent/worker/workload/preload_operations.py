"""Operations that fill the key space: each key of a range once over all threads, with the mix' own keys and values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agent.worker.division import seed_sequence
from agent.worker.workload.arguments import Filler, Rows, Supplies
from agent.worker.workload.keys import Keyspace
from agent.worker.workload.reply_effects import Operation
from agent.worker.workload.sequences import SEQUENCE, Counters
from agent.worker.workload.values import Values
from common.commands import find_command
from common.plan.planned_commands import keys_of, script_digests
from common.plan.schema import Preload, Workload

_BLOCK = 512


def preload_operations(
    workload: Workload,
    entry: Preload,
    thread: int,
    threads: int,
    *,
    seed: int,
    per_hash_tag: int = 0,
    values: Values | None = None,
) -> Iterator[Operation]:
    """The operations of one entry of a preload in one of the fleet's threads: of its part of the range in order, each
    key `times` times in a row. What they write is what the mix would: keys, values and times to live.

    values: those of the workload, where they are at hand, so that their buffer is made but once. The entry's template
    holds one `__key__`, no `__new_key__` and nothing late, which the plan's checks see to. Rows are 0.
    """
    template = find_command(entry.command, workload.expiry.maximum_s > 0)
    keys = keys_of(workload, entry)
    low, size = int(keys.minimum), int(keys.maximum) - int(keys.minimum) + 1
    supplies = Supplies(
        keyspace=Keyspace(keys.prefix, low, int(keys.maximum), per_hash_tag),
        values=values or Values(workload.values, seed),
        ttl_s=(int(workload.expiry.minimum_s), int(workload.expiry.maximum_s)),
        thread=thread,
        threads=threads,
        scripts=script_digests(workload),
    )
    filler, counters = Filler(template, supplies), Counters()
    generator = np.random.default_rng(seed_sequence(seed, thread, 3))
    end = low + size * (thread + 1) // threads
    for first in range(low + size * thread // threads, end, _BLOCK):
        numbers = np.repeat(np.arange(first, min(first + _BLOCK, end), dtype=np.int64), entry.times)
        rows = Rows(
            generator=generator,
            count=numbers.size,
            keys=numbers[:, None],
            rand_ints=np.repeat(numbers[:, None], filler.rand_ints, axis=1),
            made=np.zeros(numbers.size, dtype=np.int64),
            sequence=counters.take(SEQUENCE, np.full(numbers.size, filler.sequences)),
        )
        arguments, sizes = filler.fill(rows)
        for made, request_bytes in zip(arguments, sizes.tolist(), strict=True):
            yield 0, made, request_bytes, None

"""Joins intervals of one second to an interval of several, and splits intervals that are too large for one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from common.metrics.intervals import (
    IntervalMetrics,
    Merge,
    PoolMetrics,
    SecondMetrics,
    merge_by_stage,
    merge_named,
    merge_pools,
)


def joined_seconds(parts: Iterable[IntervalMetrics]) -> tuple[IntervalMetrics, ...]:
    """One interval for each stage, with the metrics of each of its seconds. parts: intervals of one second."""
    joined = []
    for stage in merge_by_stage(parts := list(parts), Merge.CONSECUTIVE):
        of_stage = [part for part in parts if part.stage == stage.stage]
        seconds = tuple(map(SecondMetrics.from_interval, of_stage)) if len(of_stage) > 1 else ()
        joined.append(msgspec.structs.replace(stage, seconds=seconds))
    return tuple(joined)


def size_of(interval: IntervalMetrics) -> int:
    """Its size in bytes as it is sent."""
    return len(msgspec.msgpack.encode(interval))


def split_interval(interval: IntervalMetrics, most_bytes: int) -> Iterator[IntervalMetrics]:
    """Intervals that merge to this one and take at most `most_bytes` each, unless a single command takes more. The
    first ones have the gauges and everything that belongs to no command. `seconds` is dropped."""
    if size_of(interval) <= most_bytes:
        yield interval
        return
    interval = msgspec.structs.replace(interval, seconds=())
    nothing = IntervalMetrics(first=interval.first, last=interval.last, stage=interval.stage)
    piece = msgspec.structs.replace(interval, pools={})
    size = size_of(piece)
    for name, part in _by_command(interval.pools):
        more = len(name) + len(msgspec.msgpack.encode(part))
        if size + more > most_bytes and piece != nothing:
            yield piece
            piece, size = nothing, size_of(nothing)
        pools = merge_named((piece.pools, {name: part}), lambda pools: merge_pools(pools, Merge.CONSECUTIVE))
        piece, size = msgspec.structs.replace(piece, pools=pools), size + more
    yield piece


def _by_command(pools: Mapping[str, PoolMetrics]) -> Iterator[tuple[str, PoolMetrics]]:
    """For each pool, its metrics without commands and servers, and then each of its commands and servers."""
    for name, pool in pools.items():
        yield name, msgspec.structs.replace(pool, commands={}, primaries={}, replicas={})
        for command, metrics in pool.commands.items():
            yield name, PoolMetrics(commands={command: metrics})
        for server, metrics in pool.primaries.items():
            yield name, PoolMetrics(primaries={server: metrics})
        for server, metrics in pool.replicas.items():
            yield name, PoolMetrics(replicas={server: metrics})

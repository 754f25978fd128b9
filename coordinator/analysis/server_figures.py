"""Figures of one server from its samples and descriptions: means and peaks over the load, a row for each sample, what
its counters gained, and the entries of its logs that belong to the run. Pure.

Counters are sums since the server's start. A sample's rates are the differences to the sample before it; a counter
that went down (a restart, CONFIG RESETSTAT) has no rate there. Means and peaks cover the samples taken in the load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from coordinator.analysis.totals.server_side import FIELDS, NodeSide, known, seconds
from coordinator.journal.records import CommandTime, LatencyEvent, LoggedCommand, NodeDescribed

COLUMNS = (
    "at_s",
    "role",
    "reply_us",
    "cpu_percent",
    "cpu_main_percent",
    "memory",
    "rss",
    "fragmentation",
    "evicted",
    "expired",
    "hits",
    "misses",
    "clients",
    "blocked",
    "commands_per_s",
    "bytes_in_per_s",
    "bytes_out_per_s",
    "lag_s",
    "lag_bytes",
)
"""What a row of `NodeSamples.rows` has, in this order."""

_SHORTEST_S = 0.02
"""A shorter time between two samples gives no sensible rate: the description after the load may follow a sample."""
_ROLES = {0.0: "primary", 1.0: "replica"}

Column = npt.NDArray[np.float64]


class NodeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Means and peaks of one server while the load ran; None where the server does not report them. Counts are gains.

    cpu_percent: of one core; main: of the main thread. hit_rate: share of lookups that found a key. reply_us_max: the
    slowest INFO; reply_max_at_s: when it was sent, in seconds from the start.
    """

    samples: int = 0
    cpu_percent_mean: float | None = None
    cpu_percent_max: float | None = None
    cpu_main_percent_mean: float | None = None
    memory_max: int | None = None
    rss_max: int | None = None
    fragmentation: float | None = None
    evicted: int | None = None
    expired: int | None = None
    hits: int | None = None
    misses: int | None = None
    hit_rate: float | None = None
    clients_max: int | None = None
    blocked_max: int | None = None
    commands_per_s: float | None = None
    bytes_in_per_s: float | None = None
    bytes_out_per_s: float | None = None
    lag_s_max: int | None = None
    lag_bytes_max: int | None = None
    reply_us_max: int | None = None
    reply_max_at_s: float | None = None


class NodeSamples:
    """The samples of one server as columns of floats, NaN where a value is unknown."""

    def __init__(self, side: NodeSide, t0_ns: int) -> None:
        rows = side.rows
        self.at_s: Column = seconds(rows, t0_ns)
        self._values: dict[str, Column] = {name: known(rows[:, 1 + number]) for number, name in enumerate(FIELDS)}
        self._length_s = np.diff(self.at_s, prepend=np.nan)
        self._length_s[self._length_s < _SHORTEST_S] = np.nan

    def gained(self, name: str) -> Column:
        """Return the gain of a counter in each row; NaN in the first."""
        gains = np.diff(self._values[name], prepend=np.nan)
        gains[gains < 0] = np.nan
        return gains

    def per_s(self, name: str) -> Column:
        """Return the rate of a counter in each row."""
        rate: Column = self.gained(name) / self._length_s
        return rate

    @property
    def fragmentation(self) -> Column:
        """Return resident memory by used memory in each row."""
        memory = self._values["memory"]
        return self._values["rss"] / np.where(memory > 0, memory, np.nan)

    def rows(self) -> list[tuple[Any, ...]]:
        """Return a row for each sample; see `COLUMNS`. None where a value is unknown."""
        columns: list[Sequence[Any]] = [_listed(self.at_s, 3)]
        columns.append([_ROLES.get(value) for value in self._values["replica"].tolist()])
        columns += [_listed(self._values["reply_us"])]
        columns += [_listed(self.per_s(name) / 1e4, 1) for name in ("cpu_us", "cpu_main_us")]
        columns += [_listed(self._values[name]) for name in ("memory", "rss")]
        columns += [_listed(self.fragmentation, 2)]
        columns += [_listed(self.gained(name)) for name in ("evicted", "expired", "hits", "misses")]
        columns += [_listed(self._values[name]) for name in ("clients", "blocked")]
        columns += [_listed(self.per_s(name)) for name in ("commands", "bytes_in", "bytes_out")]
        columns += [_listed(self._values[name]) for name in ("lag_s", "lag_bytes")]
        return list(zip(*columns, strict=True))

    def figures(self, load_s: float) -> NodeFigures:
        """Return means and peaks over the load. load_s: its length."""
        if not self.at_s.size:
            return NodeFigures()
        middle = self.at_s - np.nan_to_num(self._length_s) / 2
        inside = (middle >= 0) & (middle <= load_s)
        if not np.any(inside & ~np.isnan(self._length_s)):
            inside = np.ones(self.at_s.size, bool)  # a load shorter than the time between two samples

        def peak(column: Column) -> float | None:
            return _known_or_none(np.nanmax, column[inside])

        def total(name: str) -> int | None:
            return _whole(_known_or_none(np.nansum, self.gained(name)[inside]))

        def mean(name: str) -> float | None:
            gains = self.gained(name)
            counted = inside & ~np.isnan(gains) & ~np.isnan(self._length_s)
            return float(gains[counted].sum() / self._length_s[counted].sum()) if np.any(counted) else None

        hits, misses = total("hits"), total("misses")
        slowest = np.where(inside, self._values["reply_us"], -1.0)
        cpu, cpu_main = mean("cpu_us"), mean("cpu_main_us")
        frayed = self.fragmentation[inside]
        return NodeFigures(
            samples=int(self.at_s.size),
            cpu_percent_mean=None if cpu is None else cpu / 1e4,
            cpu_percent_max=peak(self.per_s("cpu_us") / 1e4),
            cpu_main_percent_mean=None if cpu_main is None else cpu_main / 1e4,
            memory_max=_whole(peak(self._values["memory"])),
            rss_max=_whole(peak(self._values["rss"])),
            fragmentation=_known_or_none(lambda column: column[-1], frayed[~np.isnan(frayed)]),
            evicted=total("evicted"),
            expired=total("expired"),
            hits=hits,
            misses=misses,
            hit_rate=hits / (hits + misses) if hits is not None and misses is not None and hits + misses else None,
            clients_max=_whole(peak(self._values["clients"])),
            blocked_max=_whole(peak(self._values["blocked"])),
            commands_per_s=mean("commands"),
            bytes_in_per_s=mean("bytes_in"),
            bytes_out_per_s=mean("bytes_out"),
            lag_s_max=_whole(peak(self._values["lag_s"])),
            lag_bytes_max=_whole(peak(self._values["lag_bytes"])),
            reply_us_max=_whole(float(slowest.max())),
            reply_max_at_s=float(self.at_s[slowest.argmax()]),
        )


class CommandGain(msgspec.Struct, frozen=True):
    """What a command gained between the two descriptions. within: how many calls took at most how many microseconds."""

    calls: int
    usec: int
    within: tuple[tuple[int, int], ...]

    def quantile_us(self, share: float) -> int | None:
        """Return the microseconds within which this share of the calls ended; None if the server has no histogram."""
        total = self.within[-1][1] if self.within else 0
        return next((up_to_us for up_to_us, calls in self.within if total and calls >= share * total), None)


def added(gains: Sequence[CommandGain]) -> CommandGain:
    """Return the sum of a command's gains in several servers; without a histogram if one server has none."""
    edges = sorted({up_to_us for gain in gains for up_to_us, _ in gain.within})
    within = tuple((edge, sum(_calls_within(gain.within, edge) for gain in gains)) for edge in edges)
    return CommandGain(
        calls=sum(gain.calls for gain in gains),
        usec=sum(gain.usec for gain in gains),
        within=within if all(gain.within for gain in gains) else (),
    )


def was_restarted(before: NodeDescribed, after: NodeDescribed) -> bool:
    """Return whether the counters of a server began again."""
    rows = ((row, after.commands.get(name)) for name, row in before.commands.items())
    fewer = any(now is not None and now.calls < then.calls for then, now in rows)
    return fewer or (bool(before.run_id and after.run_id) and before.run_id != after.run_id)


def commands_gained(before: NodeDescribed, after: NodeDescribed, own: Mapping[str, int]) -> dict[str, CommandGain]:
    """Return what each command gained without our own calls. own: those calls, by row."""
    left = Counter(own)
    gained = {}
    for name, now in after.commands.items():
        then = before.commands.get(name, CommandTime(0, 0))
        calls = now.calls - then.calls
        # Before Redis 7, commandstats has no rows for subcommands.
        ours = left.get(name, 0) or sum(count for row, count in left.items() if row.startswith(name + "|"))
        if calls > ours:
            usec = (now.usec - then.usec) * (calls - ours) // calls
            gained[name] = CommandGain(calls - ours, max(0, usec), _within(then.within, now.within))
    return gained


def _within(then: Sequence[tuple[int, int]], now: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the difference of two cumulative histograms, each with steps of its own."""
    edges = sorted({up_to_us for up_to_us, _ in (*then, *now)})
    gains = [(edge, _calls_within(now, edge) - _calls_within(then, edge)) for edge in edges]
    return tuple(gains) if gains and all(calls >= 0 for _, calls in gains) else ()


def _calls_within(steps: Sequence[tuple[int, int]], edge: int) -> int:
    return max((calls for up_to_us, calls in steps if up_to_us <= edge), default=0)


def logged_in_run(before: NodeDescribed | None, after: NodeDescribed) -> tuple[tuple[LoggedCommand, ...], int]:
    """Return (entries of the server's logs that the run added, how many more were added and overwritten)."""
    if before is None:
        return after.logged, 0
    begins = before.last_logged
    added = tuple(entry for entry in after.logged if entry.id > begins.get(entry.log, -1))
    if before.run_id != after.run_id:
        return after.logged, 0
    more = sum(max(0, last - begins.get(log, -1)) for log, last in after.last_logged.items())
    return added, max(0, more - len(added))


def events_in_run(before: NodeDescribed | None, after: NodeDescribed) -> tuple[LatencyEvent, ...]:
    """Return the latency events of the run."""
    since_s = before.server_time_s if before is not None and before.server_time_s is not None else 0
    return tuple(event for event in after.events if event.at_s >= since_s)


def _listed(column: Column, digits: int = 0) -> list[float | int | None]:
    rounded = np.round(column, digits).tolist()
    if digits:
        return [None if value != value else value for value in rounded]
    return [None if value != value else int(value) for value in rounded]


def _known_or_none(reduce: Any, column: Column) -> float | None:
    known_values = column[~np.isnan(column)]
    return float(reduce(known_values)) if known_values.size else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)

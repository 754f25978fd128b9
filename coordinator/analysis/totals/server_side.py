"""What the servers of the target did during a run: a fold of the records of `coordinator.servers.sampler`. Pure.

Samples are kept as rows of whole numbers, some 150 bytes each. A server keeps `MOST_ROWS`; when there are more, every
second row is dropped and samples must be twice as far apart from then on. Counters are sums since the server's start,
so the rows that stay lose no count, only resolution.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from common.units import NS_PER_S
from coordinator.journal.records import NodeDescribed, NodeSample, NodeSampled, NodeSilent, Reading

FIELDS = tuple(each.name for each in msgspec.structs.fields(NodeSample))
MOST_ROWS = 7_200
"""Two hours with a sample each second."""
MOST_SILENCES = 20
_UNKNOWN = -1
_LARGEST = (1 << 63) - 1
_WIDTH = 1 + len(FIELDS)


@dataclass(slots=True)
class Silence:
    """A time without answers. until_ns: of the next answer; None if there was none."""

    since_ns: int
    reason: str
    until_ns: int | None = None


@dataclass(slots=True)
class NodeSide:
    """What is known of one server. silences: the first `MOST_SILENCES` of them. refused: why it is not watched any
    more. own: calls of ours between the two readings of the ledger; maybe: those that it may have executed."""

    target: str
    name: str
    before: NodeDescribed | None = None
    after: NodeDescribed | None = None
    silences: list[Silence] = field(default_factory=list)
    silent: Silence | None = None
    refused: str = ""
    own: Counter[str] = field(default_factory=Counter)
    sampled: Counter[str] = field(default_factory=Counter)
    maybe: Counter[str] = field(default_factory=Counter)
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _last: tuple[int, NodeSample] | None = None
    _previous: tuple[int, NodeSample] | None = None
    _apart_ns: int = 0

    def described(self, record: NodeDescribed, *, counts: bool) -> None:
        """Add a description. counts: it was made between the two readings of the ledger."""
        if record.when is Reading.BEFORE:
            self.before = self.before or record
        else:
            self.after = record
        if counts:
            self.own.update(record.own)
        if record.sample is not None:
            self._add(record.at_ns, record.sample)

    def sampled_at(self, record: NodeSampled) -> None:
        """Add a sample."""
        for calls in (self.own, self.sampled):
            calls.update(record.own)
            calls["info"] += 1
        self._add(record.at_ns, record.sample)

    def did_not_answer(self, record: NodeSilent) -> None:
        """Add a time without an answer."""
        self.maybe.update(record.own)
        if record.for_good:
            self.refused = self.refused or record.reason
        if self.silent is None:
            self.silent = Silence(record.at_ns, record.reason)
            if len(self.silences) < MOST_SILENCES:
                self.silences.append(self.silent)

    @property
    def last_sample(self) -> NodeSample | None:
        """The latest sample."""
        return None if self._last is None else self._last[1]

    def latest_rate(self, name: str) -> float | None:
        """Return the rate per second of a counter between the last two samples; None if it is not known."""
        if self._last is None or self._previous is None:
            return None
        (then_ns, then), (now_ns, now) = self._previous, self._last
        before, after = getattr(then, name), getattr(now, name)
        if before is None or after is None or after < before:
            return None
        return float((after - before) * NS_PER_S / (now_ns - then_ns))

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The samples in order: a column with their time, then one for each of `FIELDS`; -1 is unknown."""
        rows = self._rows
        if self._last is not None and (not rows or rows[-_WIDTH] != self._last[0]):
            rows = rows + array("q", _row(*self._last))
        return np.array(rows, np.int64).reshape(-1, _WIDTH)

    def _add(self, at_ns: int, sample: NodeSample) -> None:
        if self.silent is not None:
            self.silent.until_ns, self.silent = at_ns, None
        if self._last is not None and at_ns <= self._last[0]:
            return  # the same once more
        self._previous, self._last = self._last, (at_ns, sample)
        if self._rows and at_ns - self._rows[-_WIDTH] < self._apart_ns:
            return
        self._rows.extend(_row(at_ns, sample))
        if len(self._rows) >= MOST_ROWS * _WIDTH:
            kept = np.array(self._rows, np.int64).reshape(-1, _WIDTH)[::2]
            self._rows = array("q", kept.tobytes())
            # A little less than the usual distance, because samples are not taken at exact times.
            self._apart_ns = int(0.9 * (kept[-1, 0] - kept[0, 0]) / (len(kept) - 1))


class ServerSide:
    """All servers of a run, by target and name. others: reasons that concern no single server."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[str, str], NodeSide] = {}
        self.others: list[str] = []

    def apply(self, record: NodeDescribed | NodeSampled | NodeSilent, *, counts: bool) -> None:
        """Add a record. counts: it came between the two readings of the ledger."""
        if not record.node:
            if isinstance(record, NodeSilent) and record.reason not in self.others:
                self.others.append(record.reason)
            return
        key = (record.target, record.node)
        side = self.nodes.get(key) or self.nodes.setdefault(key, NodeSide(*key))
        match record:
            case NodeDescribed():
                side.described(record, counts=counts)
            case NodeSampled():
                side.sampled_at(record)
            case NodeSilent():
                side.did_not_answer(record)

    def described(self, target: str) -> list[str]:
        """Return the names of the servers of a target that were described before the load."""
        return [side.name for side in self.nodes.values() if side.target == target and side.before is not None]

    def own_calls(self, node: str) -> tuple[Counter[str], Counter[str]]:
        """Return (calls that the coordinator made at a server between the two readings of the ledger, calls that it may
        have made), by the name of the row in commandstats."""
        sides = [side for (_, name), side in self.nodes.items() if name == node]
        return sum((side.own for side in sides), Counter()), sum((side.maybe for side in sides), Counter())


def _row(at_ns: int, sample: NodeSample) -> list[int]:
    values = msgspec.structs.astuple(sample)
    return [at_ns, *[_UNKNOWN if value is None else min(int(value), _LARGEST) for value in values]]


def known(values: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return numbers of a column of `NodeSide.rows`, NaN where they are unknown."""
    return np.where(values == _UNKNOWN, np.nan, values.astype(np.float64))


def seconds(rows: npt.NDArray[np.int64], t0_ns: int) -> npt.NDArray[np.float64]:
    """Return the times of rows, in seconds from the start instant."""
    return (rows[:, 0] - t0_ns) / NS_PER_S

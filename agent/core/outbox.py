"""Frames that the coordinator has not acknowledged yet. Pure.

Theory of operation. A frame gets its sequence number when it is first sent, and from then on it is sealed: the
coordinator may have accepted it even if its acknowledgement was lost, so it is resent as it is or not at all. What
waits behind the sealed frames has no number yet and may still be merged with its neighbour. So memory is limited
(`WINDOW` sealed frames and `CAPACITY` waiting ones), nothing is dropped, and nothing can count twice.

Metrics too large for one message are split into several frames just before the first one is sealed. Only the last of
these frames names the complete second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from common.metrics.intervals import IntervalMetrics, Merge, merge_by_stage
from common.metrics.splitting import size_of, split_interval
from common.protocol.messages import MAX_INTERVALS, MAX_MESSAGE_BYTES, MetricsFrame

WINDOW = 32
CAPACITY = 300
FRAME_BYTES = MAX_MESSAGE_BYTES // 2
"""Frames are split so that their intervals take no more, unless a single command does: its three histograms take
at most 620,000 bytes, as long as no bucket counts 2**32 operations."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Intervals to be sent, and the last second that is complete once they are."""

    through: int
    intervals: tuple[IntervalMetrics, ...]
    fits: bool = False
    """Whether this is known to fit one frame."""

    @property
    def span(self) -> int:
        """How many seconds of resolution were already lost by merging."""
        if not self.intervals:
            return 0
        return max(part.last for part in self.intervals) - min(part.first for part in self.intervals)


class Outbox:
    """The frames of one run of one agent incarnation."""

    def __init__(self) -> None:
        self._sealed: deque[MetricsFrame] = deque()
        self._resend_from = 0
        self._waiting: deque[_Waiting] = deque()
        self.next_seq = 0

    def __len__(self) -> int:
        return len(self._sealed) + len(self._waiting)

    @property
    def all_sealed(self) -> bool:
        """Whether everything has been sent at least once, so that `next_seq` is final unless more is added."""
        return not self._waiting

    @property
    def first_unacknowledged(self) -> int:
        """The lowest sequence number that is not acknowledged."""
        return self._sealed[0].seq if self._sealed else self.next_seq

    def add(self, through: int, intervals: tuple[IntervalMetrics, ...]) -> None:
        """Add metrics to send. If too many entries wait, merge the two neighbours that lose the least resolution."""
        self._waiting.append(_Waiting(through, intervals))
        if len(self._waiting) > CAPACITY:
            self._merge_one_pair()

    def _merge_one_pair(self) -> None:
        waiting = self._waiting
        pairs = range(len(waiting) - 1)
        at = min(pairs, key=lambda i: waiting[i].span + waiting[i + 1].span)
        left, right = waiting[at], waiting[at + 1]
        parts = left.intervals + right.intervals
        waiting[at] = _Waiting(max(left.through, right.through), merge_by_stage(parts, Merge.CONSECUTIVE))
        del waiting[at + 1]

    def next_frame(self) -> MetricsFrame | None:
        """The next frame to send, sealed from now on; None if there is none, or the window is full."""
        if self._resend_from == len(self._sealed):
            if not self._waiting or len(self._sealed) == WINDOW:
                return None
            self._split_head()
            head = self._waiting.popleft()
            self._sealed.append(MetricsFrame(seq=self.next_seq, through=head.through, intervals=head.intervals))
            self.next_seq += 1
        self._resend_from += 1
        return self._sealed[self._resend_from - 1]

    def _split_head(self) -> None:
        if not self._waiting[0].fits:
            self._waiting.extendleft(reversed(list(_split(self._waiting.popleft()))))

    def acknowledge(self, next_seq: int) -> bool:
        """The coordinator has every frame before `next_seq`; numbers beyond what was sent are ignored. Returns whether
        that is news."""
        before = len(self._sealed)
        while self._sealed and self._sealed[0].seq < min(next_seq, self.next_seq):
            self._sealed.popleft()
            self._resend_from = max(0, self._resend_from - 1)
        return len(self._sealed) != before

    def rewind(self) -> None:
        """The link was lost: send all sealed frames again."""
        self._resend_from = 0


def _split(whole: _Waiting) -> Iterator[_Waiting]:
    """Split into parts that each fit a frame."""
    parts: list[IntervalMetrics] = []
    size = 0
    for interval in whole.intervals:
        for part in split_interval(interval, FRAME_BYTES):
            more = size_of(part)
            if parts and (size + more > FRAME_BYTES or len(parts) == MAX_INTERVALS):
                yield _Waiting(-1, tuple(parts), fits=True)
                parts, size = [], 0
            parts.append(part)
            size += more
    yield _Waiting(whole.through, tuple(parts), fits=True)

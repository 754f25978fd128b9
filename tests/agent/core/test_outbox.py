from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.core.outbox import CAPACITY, FRAME_BYTES, WINDOW, Outbox
from common.metrics.histogram import BUCKETS, Histogram, bucket_bounds
from common.metrics.intervals import CommandMetrics, IntervalMetrics, Merge, PoolMetrics, merge_intervals
from common.protocol import codec
from common.protocol.messages import MAX_INTERVALS, MAX_MESSAGE_BYTES, Envelope, FrameAck, MetricsFrame
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import FrameAccepted
from tests.support.examples import tried
from tests.support.protocol import RunBench, fleet_plan, interval, said


def filled(frames: int) -> Outbox:
    outbox = Outbox()
    for second in range(frames):
        outbox.add(second, (interval(second, 1),))
    return outbox


def send_all(outbox: Outbox) -> list[MetricsFrame]:
    return list(iter(outbox.next_frame, None))


def test_frames_leave_in_order_and_once() -> None:
    outbox = filled(3)
    assert [frame.seq for frame in send_all(outbox)] == [0, 1, 2]
    assert outbox.next_frame() is None
    assert outbox.next_seq == 3


def test_no_more_frames_are_under_way_than_the_window_allows() -> None:
    outbox = filled(WINDOW + 5)
    assert len(send_all(outbox)) == WINDOW
    assert not outbox.all_sealed
    outbox.acknowledge(2)
    assert [frame.seq for frame in send_all(outbox)] == [WINDOW, WINDOW + 1]


def test_a_merged_frame_completes_the_last_of_its_seconds() -> None:
    outbox = filled(CAPACITY + 3)
    frames: list[MetricsFrame] = []
    while sent := send_all(outbox):
        frames += sent
        outbox.acknowledge(outbox.next_seq)
    assert len(frames) == CAPACITY
    assert [frame.through for frame in frames] == [frame.intervals[-1].last for frame in frames]


def test_an_acknowledgement_forgets_what_it_covers() -> None:
    outbox = filled(5)
    send_all(outbox)
    outbox.acknowledge(3)
    assert (len(outbox), outbox.first_unacknowledged) == (2, 3)
    outbox.acknowledge(1)
    assert (len(outbox), outbox.first_unacknowledged) == (2, 3)


def test_an_acknowledgement_of_more_than_was_sent_is_not_believed() -> None:
    outbox = filled(5)
    outbox.next_frame()
    outbox.acknowledge(2**63)
    assert len(outbox) == 4
    assert [frame.seq for frame in send_all(outbox)] == [1, 2, 3, 4]


def test_a_lost_link_sends_again_what_was_sealed_exactly_as_it_was() -> None:
    outbox = filled(4)
    sent = send_all(outbox)
    outbox.acknowledge(1)
    outbox.add(4, (interval(4, 1),))
    outbox.rewind()
    again = send_all(outbox)
    assert again[:3] == sent[1:]
    assert again[3].seq == 4


def test_an_acknowledgement_in_the_middle_of_a_resend_skips_nothing() -> None:
    outbox = filled(4)
    send_all(outbox)
    outbox.rewind()
    outbox.next_frame()
    outbox.acknowledge(2)
    assert [frame.seq for frame in send_all(outbox)] == [2, 3]


def test_a_frame_without_intervals_still_tells_how_far_the_agent_is() -> None:
    outbox = Outbox()
    outbox.add(7, ())
    [frame] = send_all(outbox)
    assert (frame.through, frame.intervals) == (7, ())


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3), min_size=CAPACITY, max_size=CAPACITY + 200))
def test_merging_what_waits_bounds_memory_and_loses_nothing(counts: list[int]) -> None:
    outbox = Outbox()
    for second, count in enumerate(counts):
        outbox.add(second, (interval(second, count),) if count else ())
        assert len(outbox) <= CAPACITY
    total, through = 0, -1
    while len(outbox):
        for frame in send_all(outbox):
            assert frame.through > through
            through = frame.through
            total += sum(part.operations for part in frame.intervals)
        outbox.acknowledge(outbox.next_seq)
    assert total == sum(counts)
    assert through == len(counts) - 1


def test_what_is_merged_while_it_waits_stays_apart_by_stage() -> None:
    outbox = Outbox()
    for second in range(2 * CAPACITY):
        outbox.add(second, (interval(second, 1, stage=second % 3), interval(second, 2, stage=3)))
    totals: dict[int, int] = {}
    while len(outbox):
        for part in (part for frame in send_all(outbox) for part in frame.intervals):
            totals[part.stage] = totals.get(part.stage, 0) + part.operations
        outbox.acknowledge(outbox.next_seq)
    assert totals == {0: 200, 1: 200, 2: 200, 3: 1200}


def test_resolution_is_lost_evenly() -> None:
    outbox = filled(4 * CAPACITY)
    spans = []
    while len(outbox):
        spans += [part.last - part.first + 1 for frame in send_all(outbox) for part in frame.intervals]
        outbox.acknowledge(outbox.next_seq)
    assert max(spans) <= 8


class OutboxAndCoordinator(RuleBasedStateMachine):
    """An outbox and a real run, joined by a link that loses, repeats and reorders frames and acknowledgements.

    Window and capacity are small, so that few steps fill both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("agent.core.outbox.WINDOW", 4)
        self.patch.setattr("agent.core.outbox.CAPACITY", 6)
        self.outbox = Outbox()
        self.coordinator = RunBench(fleet_plan(duration_s=10_000.0, lease_s=10_000.0))
        self.coordinator.running("a")
        self.frames: list[MetricsFrame] = []
        self.acks: list[int] = []
        self.added = self.operations = 0

    @rule(counts=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def report(self, counts: list[int]) -> None:
        for count in counts:
            self.outbox.add(self.added, (interval(self.added, count),) if count else ())
            self.added += 1
            self.operations += count
            self.coordinator.now_ns += NS_PER_S

    @rule(at_most=st.integers(1, 4), lost=st.booleans())
    def send(self, at_most: int, lost: bool) -> None:
        for _ in range(at_most):
            frame = self.outbox.next_frame()
            if frame is None:
                return
            self.frames += [] if lost else [frame]

    @precondition(lambda self: self.frames)
    @rule(data=st.data(), repeated=st.booleans(), ack_lost=st.booleans())
    def arrive(self, data: st.DataObject, repeated: bool, ack_lost: bool) -> None:
        at = data.draw(st.integers(0, len(self.frames) - 1))
        frame = self.frames[at] if repeated else self.frames.pop(at)
        [ack] = said(self.coordinator.says("a", frame), FrameAck)
        assert ack.next_seq == len(self.accepted)
        self.acks += [] if ack_lost else [ack.next_seq]

    @precondition(lambda self: self.acks)
    @rule(data=st.data(), repeated=st.booleans())
    def acknowledge(self, data: st.DataObject, repeated: bool) -> None:
        at = data.draw(st.integers(0, len(self.acks) - 1))
        self.outbox.acknowledge(self.acks[at] if repeated else self.acks.pop(at))

    @rule(both_ways=st.booleans())
    def lose_the_link(self, both_ways: bool) -> None:
        """What was under way is gone, or arrives although the agent takes it for lost."""
        if both_ways:
            self.frames.clear()
            self.acks.clear()
        self.outbox.rewind()

    @property
    def accepted(self) -> list[MetricsFrame]:
        return [record.frame for record in self.coordinator.records if isinstance(record, FrameAccepted)]

    @invariant()
    def nothing_counts_twice_and_memory_is_bounded(self) -> None:
        assert len(self.outbox) <= 4 + 6
        assert [frame.seq for frame in self.accepted] == list(range(len(self.accepted)))
        counted = sum(part.operations for frame in self.accepted for part in frame.intervals)
        assert counted <= self.operations
        assert self.outbox.first_unacknowledged <= len(self.accepted)

    def teardown(self) -> None:
        """A link that works again brings all of it."""
        try:
            self._deliver_everything()
        finally:
            self.patch.undo()

    def _deliver_everything(self) -> None:
        self.lose_the_link(True)
        for _ in range(len(self.outbox)):
            while (frame := self.outbox.next_frame()) is not None:
                [ack] = said(self.coordinator.says("a", frame), FrameAck)
                self.outbox.acknowledge(ack.next_seq)
        counted = sum(part.operations for frame in self.accepted for part in frame.intervals)
        assert counted == self.operations == fold(self.coordinator.records).totals.operations
        assert len(self.accepted) == self.outbox.next_seq


TestOutboxAndCoordinator = OutboxAndCoordinator.TestCase
TestOutboxAndCoordinator.settings = tried(50, steps=30)


# -- what is too large for one message

_WIDEST = Histogram.from_values(bucket_bounds(np.arange(BUCKETS))[0].repeat(2))
"""A value in every bucket: no histogram is larger."""


def wide_interval(commands: int, pools: int = 2) -> IntervalMetrics:
    """A second whose commands took any time that there is."""
    command = CommandMetrics(ok=2, service=_WIDEST, response=_WIDEST, failed=_WIDEST)
    names = [f"COMMAND {number}" for number in range(commands)]
    pool = PoolMetrics(commands=dict.fromkeys(names, command), checkout_wait=_WIDEST, late_sends=3)
    part = interval(7, 1)
    return msgspec.structs.replace(part, pools={f"pool {number}": pool for number in range(pools)})


@pytest.mark.parametrize("commands", [1, 5])
def test_what_is_too_large_for_one_message_leaves_in_several_and_nothing_is_lost(commands: int) -> None:
    whole = wide_interval(commands)
    outbox = Outbox()
    outbox.add(7, (interval(6, 1), whole))
    frames = send_all(outbox)
    messages = [codec.encode(Envelope(run_id="r" * 128, incarnation="i" * 64, message=frame)) for frame in frames]
    assert max(map(len, messages)) < MAX_MESSAGE_BYTES
    assert len(messages) > 2 * commands
    parts = [part for frame in frames for part in frame.intervals]
    assert parts[0] == interval(6, 1)
    assert merge_intervals(parts[1:], Merge.CONSECUTIVE) == whole
    assert [frame.through for frame in frames] == [-1] * (len(frames) - 1) + [7]
    assert outbox.all_sealed


def test_more_intervals_than_a_frame_may_have_leave_in_several() -> None:
    outbox = Outbox()
    outbox.add(9, tuple(interval(second % 10, 1) for second in range(MAX_INTERVALS + 1)))
    assert [len(frame.intervals) for frame in send_all(outbox)] == [MAX_INTERVALS, 1]


def test_parts_of_a_large_report_that_merge_with_their_neighbours_still_fit() -> None:
    outbox = Outbox()
    for second in range(WINDOW + CAPACITY + 5):
        outbox.add(second, (msgspec.structs.replace(wide_interval(2, 1), first=second, last=second),))
        if second < WINDOW:
            send_all(outbox)
    outbox.acknowledge(outbox.next_seq)
    assert outbox.next_frame() is not None
    throughs = []
    while frames := send_all(outbox):
        assert max(len(codec.pack(frame)) for frame in frames) < MAX_MESSAGE_BYTES
        throughs += [frame.through for frame in frames]
        outbox.acknowledge(outbox.next_seq)
    assert max(throughs) == WINDOW + CAPACITY + 4
    assert FRAME_BYTES < MAX_MESSAGE_BYTES

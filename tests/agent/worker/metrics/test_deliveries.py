from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.deliveries import (
    UNTIMED,
    CollectedDeliveries,
    DeliveryClassifier,
    DeliveryEvent,
    DeliveryRecord,
    add_up,
    pack_delivery,
)
from common.metrics.histogram import Histogram
from common.metrics.intervals import DeliveryMetrics, merge_deliveries
from common.plan.schema import Load
from common.plan.timeline import timeline
from common.pubsub_header import HEADER_BYTES, HeaderReader, HeaderWriter
from common.units import NS_PER_S
from tests.support.stages import stage

T0 = 10**15
BLANK = bytes(HEADER_BYTES)
STAGED = timeline(Load(stages=(stage(1.5), stage(1))))

rows = st.tuples(
    st.integers(-1, 5).map(lambda s: T0 + s * NS_PER_S // 2),
    st.sampled_from(list(DeliveryEvent)),
    st.sampled_from([0, 3, NS_PER_S]),
)


def place(at_ns: int, what: DeliveryEvent, value: int) -> tuple[int, int]:
    """The second in which a row happened, and the stage in which its message was sent."""
    sent_ns = at_ns - (value if what is DeliveryEvent.DELIVERED else 0)
    return max(0, at_ns - T0) // NS_PER_S, STAGED.at(sent_ns - T0)


def arrived(*messages: tuple[int, bytes]) -> DeliveryMetrics:
    """Metrics of these messages, which arrive at 100 ns on the connections with these numbers."""
    record = DeliveryRecord()
    arrivals = DeliveryClassifier(HeaderReader("run", "here"), record)
    for line, message in messages:
        arrivals.arrived(line, message, 100)
    return add_up(record.take())


@given(st.lists(rows, max_size=30), st.integers(0, 30))
def test_each_message_counts_in_one_second_and_stage_whenever_it_is_collected(
    each: list[tuple[int, DeliveryEvent, int]], cut: int
) -> None:
    record = DeliveryRecord()
    collected = CollectedDeliveries(record)
    released = []
    for part in (each[:cut], each[cut:]):
        for at_ns, what, value in part:
            record.add(pack_delivery(at_ns, what, value))
        collected.gather(T0, STAGED)
        for second, leg in sorted(collected.keys()):
            mine = [row for row in part if place(*row) == (second, leg)]
            metrics = collected.release((second, leg))
            assert metrics.delivered == sum(what is DeliveryEvent.DELIVERED for _, what, _ in mine)
            assert metrics.expected == sum(value for _, what, value in mine if what is DeliveryEvent.EXPECTED)
            released.append(metrics)
        assert collected.keys() == set()
    everything = add_up(np.array(each, dtype=np.int64).reshape(-1, 3))
    assert merge_deliveries(released) == everything


def test_the_latency_of_a_message_is_the_time_from_its_sending_to_its_arrival() -> None:
    metrics = arrived((0, HeaderWriter("run", "here", 1).write(BLANK, 40)))
    assert metrics == DeliveryMetrics(delivered=1, latency=Histogram.from_values(np.array([60])))


def test_a_message_of_another_host_is_delivered_but_not_timed() -> None:
    assert arrived((0, HeaderWriter("run", "there", 1).write(BLANK, 40))) == DeliveryMetrics(delivered=1)


def test_a_negative_latency_is_not_recorded() -> None:
    assert arrived((0, HeaderWriter("run", "here", 1).write(BLANK, 101))) == DeliveryMetrics(delivered=1)
    record = DeliveryRecord()
    record.add(pack_delivery(T0, DeliveryEvent.DELIVERED, UNTIMED))
    assert add_up(record.take()) == DeliveryMetrics(delivered=1)


def test_messages_of_other_runs_are_counted_separately() -> None:
    assert arrived((0, b"hello"), (0, HeaderWriter("other", "here", 1).write(BLANK, 1))) == DeliveryMetrics(foreign=2)


def test_a_message_that_a_retry_sent_twice_counts_once_per_connection() -> None:
    writer = HeaderWriter("run", "there", 1)
    first, second = writer.write(BLANK, 1), writer.write(BLANK, 1)
    metrics = arrived((0, first), (1, first), (0, first), (0, second), (1, second), (1, second))
    assert metrics == DeliveryMetrics(delivered=4, repeated=2)


def test_messages_of_several_senders_do_not_disturb_each_other() -> None:
    one, other = HeaderWriter("run", "there", 1), HeaderWriter("run", "there", 2)
    sent = [one.write(BLANK, 1), one.write(BLANK, 1), other.write(BLANK, 1)]
    assert arrived(*((0, message) for message in sent)) == DeliveryMetrics(delivered=3)

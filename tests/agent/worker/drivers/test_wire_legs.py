"""Loads of several legs with the wire driver. It takes the fast path during a whole closed leg."""

from __future__ import annotations

import pytest

from agent.worker.metrics.rows import COUNT, legs_of
from common.plan.schema import Load, Stage
from common.plan.timeline import timeline
from common.units import NS_PER_S, Count, PerSecond, Seconds
from tests.support.wire import MS, T0_NS, WireStage

OK = b"$5\r\nvalue\r\n"
CLOSED_OPEN_CLOSED = Load(
    stages=(
        Stage(name="a", duration_s=Seconds(1)),
        Stage(name="b", duration_s=Seconds(1), rate_per_s=PerSecond(10.0)),
        Stage(name="c", duration_s=Seconds(1)),
    )
)


def legs(stage: WireStage, load: Load) -> list[int]:
    rows = stage.record.take()
    return sorted(legs_of(rows, T0_NS, timeline(load)).repeat(rows[:, COUNT]).tolist())


@pytest.mark.parametrize("batch", [1, 3])
def test_each_operation_belongs_to_the_leg_in_which_it_began(batch: int) -> None:
    end_ns = T0_NS + 3 * NS_PER_S
    stage = WireStage(load=CLOSED_OPEN_CLOSED, end_ns=end_ns, batch=batch, block=30)
    stage.begin()
    while not stage.worker.is_done:
        stage.pump()
        if stage.connection().batch is not None:
            # The last batch of each closed leg ends in the next leg.
            stage.receive(OK * batch, after_ns=60 * MS)
        else:
            stage.now_ns += 10 * MS
        stage.check()
    found = legs(stage, CLOSED_OPEN_CLOSED)
    assert found.count(0) == 17 * batch
    # The open leg has ten operations in its second. All are sent, some late; the last batch is filled up.
    assert found.count(1) == 10
    assert found.count(2) > 0
    assert len(found) == stage.record.issued


def test_warmup_operations_do_not_count_as_requests() -> None:
    load = Load(requests=Count(7), warmup_s=Seconds(1))
    stage = WireStage(load=load, block=30)
    stage.begin()
    while not stage.worker.is_done:
        stage.pump()
        if stage.connection().batch is not None:
            stage.receive(OK, after_ns=100 * MS)
        stage.check()
    assert legs(stage, load) == [0] * 10 + [1] * 7


def test_an_earlier_end_inside_a_closed_leg_is_obeyed() -> None:
    stage = WireStage(load=CLOSED_OPEN_CLOSED, end_ns=T0_NS + 3 * NS_PER_S, block=30)
    stage.begin()
    stage.receive(OK, after_ns=MS)
    stage.span.end_at(T0_NS + 5 * MS)
    stage.receive(OK, after_ns=10 * MS)
    stage.check()
    assert stage.worker.is_done
    assert legs(stage, CLOSED_OPEN_CLOSED) == [0, 0]

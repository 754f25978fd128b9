"""Operations that the wire driver cannot send. Each one fails or counts as unsent; none is replaced by another."""

from __future__ import annotations

from collections import Counter
from itertools import chain, count, cycle
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.worker.drivers.wire.connection import BatchConnection
from common.plan.schema import Load
from common.serde import from_builtins
from tests.support.examples import examples
from tests.support.wire import MS, T0_NS, WireStage, keys_of, operation, slots_of

HERE, THERE = "127.0.0.1:7000", "127.0.0.1:7001"
SLOTS = slots_of(HERE, THERE)
GAPS = slots_of(HERE, "")
MINE, OTHERS = keys_of(SLOTS, HERE, 1)[0], keys_of(SLOTS, THERE, 1)[0]
A = b"$1\r\na\r\n"
PLAIN = pytest.mark.parametrize("is_plain", [True, False], ids=("drawn ahead", "one by one"))


def alternating() -> Any:
    """Operations for both nodes in turn; with GAPS every second one belongs to no node."""
    return (operation("GET", key) for key in cycle((MINE, OTHERS)))


def every(ms: int, count: int) -> list[int]:
    return [T0_NS + number * ms * MS for number in range(1, count + 1)]


def refuse(stage: WireStage, connection: BatchConnection) -> None:
    """Let the next connect of this connection fail."""
    for waiting in (stage.to_open, stage.reopening, stage.reopening_soon, stage.reopening_later):
        if connection in waiting:
            waiting.remove(connection)
    with stage.clock():
        stage.worker.refused(connection, redis.ConnectionError("refused"), stage.now_ns)


def answer_all(stage: WireStage, *, batch: int = 1) -> None:
    """Answer all batches in flight."""
    for connection in [
        connection for node in stage.router.nodes for connection in node.connections if connection.batch is not None
    ]:
        stage.receive(A * batch, on=connection)


def ended(stage: WireStage) -> tuple[int, dict[str, int]]:
    """(number of operations done, number of failures by class)."""
    done, failures = 0, Counter[str]()
    for command in stage.metrics().commands.values():
        done += command.ok
        failures.update(command.failures)
    return done, dict(failures)


@PLAIN
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("what", ["a node is down", "no node"])
def test_in_an_open_loop_an_operation_without_a_node_fails_when_it_is_due(
    is_plain: bool, batch: int, what: str
) -> None:
    slots = SLOTS if what == "a node is down" else GAPS
    stage = WireStage(
        alternating(), slots=slots, due=every(1, 400), end_ns=T0_NS + 1000 * MS, batch=batch, is_plain=is_plain
    )
    if slots is SLOTS:
        refuse(stage, stage.connection(THERE))
    stage.begin()
    for number in range(1, 401):
        stage.pump(after_ns=MS)
        answer_all(stage, batch=batch)
        assert stage.record.issued == number // batch * batch
    done, failures = ended(stage)
    assert failures == {"ConnectionError" if slots is SLOTS else "SlotNotCoveredError": 400 - done}
    assert abs(done - 200) <= 8 * batch
    assert stage.uncovered_refreshes >= (0 if slots is SLOTS else 100)
    assert stage.record.unsent == 0
    assert {bytes(command[1]).decode() for command in stage.sock(stage.connection(HERE)).commands()} == {MINE}


@PLAIN
@pytest.mark.parametrize("what", ["a node is down", "no node"])
def test_operations_without_a_node_count_as_requests(is_plain: bool, what: str) -> None:
    slots = SLOTS if what == "a node is down" else GAPS
    stage = WireStage(alternating(), slots=slots, quota=300, is_plain=is_plain)
    if slots is SLOTS:
        refuse(stage, stage.connection(THERE))
    stage.begin()
    while not stage.worker.is_done:
        answer_all(stage)
    done, failures = ended(stage)
    assert done + sum(failures.values()) == stage.record.issued == 300
    assert abs(done - 150) < 10


@pytest.mark.parametrize("batch", [1, 4])
def test_in_a_closed_loop_operations_without_a_node_fail_in_proportion(batch: int) -> None:
    stage = WireStage(alternating(), slots=GAPS, batch=batch, connections=2, block=64)
    stage.begin()
    for _ in range(1000):
        answer_all(stage, batch=batch)
    done, failures = ended(stage)
    assert done == 2000 * batch
    assert abs(failures["SlotNotCoveredError"] - done) <= 64 * batch


@PLAIN
def test_in_a_closed_loop_without_any_node_operations_fail_slowly(is_plain: bool) -> None:
    stage = WireStage(alternating(), slots=SLOTS, is_plain=is_plain)
    stage.begin()
    answer_all(stage)
    with stage.clock():
        stage.worker.update_topology([""] * len(SLOTS))
    answer_all(stage)
    before = stage.record.issued
    for _ in range(10):
        stage.check(after_ns=50 * MS)
    assert 5 <= stage.record.issued - before <= 20
    assert stage.uncovered_refreshes >= 5


@PLAIN
def test_operations_of_a_hanging_node_wait_and_fail_without_delaying_others(is_plain: bool) -> None:
    stage = WireStage(
        alternating(), slots=SLOTS, due=every(1, 300), end_ns=T0_NS + 1000 * MS, timeout_ns=100 * MS, is_plain=is_plain
    )
    stage.begin()
    here, there = stage.connection(HERE), stage.connection(THERE)
    for _ in range(90):
        stage.pump(after_ns=MS)
        if here.batch is not None:
            stage.receive(A, on=here)
    # The other node had only its own share.
    assert abs(len(stage.sock(here).commands()) - 45) < 10
    assert there.batch is not None
    stage.check(after_ns=100 * MS)
    stage.check()
    answer_all(stage)
    _, failures = ended(stage)
    assert set(failures) == {"TimeoutError"}
    assert failures["TimeoutError"] > 35
    assert stage.refreshes > 0
    # After it returns, it gets its share again.
    stage.reopen()
    before = len(stage.sock(there).commands())
    for _ in range(100):
        stage.pump(after_ns=MS)
        answer_all(stage)
    assert len(stage.sock(there).commands()) - before > 30


def test_operations_that_wait_for_a_busy_node_at_the_end_are_unsent() -> None:
    stage = WireStage(alternating(), slots=SLOTS, due=every(1, 100), end_ns=T0_NS + 90 * MS)
    stage.begin()
    here, there = stage.connection(HERE), stage.connection(THERE)
    for _ in range(95):
        stage.pump(after_ns=MS)
        if here.batch is not None:
            stage.receive(A, on=here)
    stage.check()
    assert not stage.worker.is_done
    stage.receive(A, on=there)
    assert stage.worker.is_done
    # 89 operations are due before the end.
    assert stage.record.issued + stage.record.unsent == 89
    assert abs(stage.record.unsent - 44) < 10


def test_an_unreachable_server_fails_only_the_operations_that_are_due() -> None:
    stage = WireStage(due=every(10, 50), end_ns=T0_NS + 1000 * MS)
    refuse(stage, stage.connection())
    with stage.clock():
        stage.worker.begin()
    for _ in range(20):
        stage.pump(after_ns=10 * MS)
    assert ended(stage) == (0, {"ConnectionError": 20})
    stage.reopen()
    for _ in range(30):
        stage.pump(after_ns=10 * MS)
        answer_all(stage)
    assert ended(stage) == (30, {})
    assert stage.record.issued == 50


def test_the_topology_is_read_when_a_node_reports_an_unserved_slot() -> None:
    stage = WireStage(alternating(), slots=SLOTS)
    stage.begin()
    stage.receive(b"-CLUSTERDOWN Hash slot not served\r\n", on=stage.connection(HERE))
    assert stage.uncovered_refreshes == 1


STEPS = st.sampled_from(["pass", "pass", "hear", "hear", "lose", "refuse", "open", "cover", "gaps", "one", "hang"])


@settings(max_examples=examples(60), deadline=None)
@given(
    steps=st.lists(STEPS, max_size=60),
    is_plain=st.booleans(),
    batch=st.integers(1, 3),
    load=st.sampled_from(["open", "quota", "legs"]),
)
def test_every_due_operation_is_done_or_fails_or_is_unsent_whatever_happens(
    steps: list[str], is_plain: bool, batch: int, load: str
) -> None:
    given_load: dict[str, Any] = {"open": {"due": every(3, 120)}, "quota": {"quota": 100}, "legs": {}}[load]
    if load == "legs":
        stages = [{"name": "a", "duration": "0.1s", "rate": "300/s"}, {"name": "b", "duration": "0.1s"}]
        given_load["load"] = from_builtins({"stages": [*stages, {**stages[0], "name": "c"}]}, Load)
    keys = keys_of(slots_of(*"abcdefgh"), "a", 500)
    drawn = (operation("GET", key) for key in chain(keys, (f"more:{number}" for number in count())))
    stage = WireStage(
        drawn, slots=SLOTS, connections=2, batch=batch, end_ns=T0_NS + 400 * MS, is_plain=is_plain, **given_load
    )
    stage.begin()
    sent: list[bytes] = []

    def connections(is_open: bool) -> list[BatchConnection]:
        return [each for node in stage.router.nodes for each in node.connections if each.is_open is is_open]

    def note(connection: BatchConnection) -> None:
        sent.extend(command[1] for command in stage.sock(connection).commands())
        stage.sock(connection).sent.clear()

    for step in steps:
        if step == "pass":
            stage.pump(after_ns=9 * MS)
        elif step == "hear":
            answer_all(stage, batch=batch)
        elif step in ("lose", "hang") and (up := connections(is_open=True)):
            note(up[0])
            if step == "lose":
                stage.receive(b"", on=up[0])
            else:
                stage.check(after_ns=1001 * MS if up[0].batch is not None and load == "quota" else MS)
        elif step == "refuse" and (down := [each for each in connections(is_open=False) if each not in stage.to_open]):
            refuse(stage, down[0])
        elif step == "open":
            for connection in connections(is_open=False):
                note(connection)
            stage.open()
            stage.reopen()
        elif step in ("cover", "gaps", "one"):
            with stage.clock():
                stage.worker.update_topology({"cover": SLOTS, "gaps": GAPS, "one": slots_of(THERE)}[step])
        stage.check()
    for connection in connections(is_open=False):
        note(connection)
    stage.reopen()
    stage.check(after_ns=max(0, T0_NS + 500 * MS - stage.now_ns))
    for _ in range(3):
        answer_all(stage, batch=batch)
    assert stage.worker.is_done
    for connection in connections(is_open=True):
        note(connection)
    rows = sum(row.count for row in stage.rows())
    assert rows == stage.record.issued
    assert len(set(sent)) == len(sent)
    if load == "open":
        assert rows + stage.record.unsent == 120
    elif load == "quota":
        assert rows <= 100

from __future__ import annotations

from collections import Counter
from itertools import count, repeat
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.requests import PackedRequestSource
from agent.worker.drivers.wire.routing import AHEAD, RequestRouter, TargetNode
from agent.worker.pacing.pacer import NO_DUE_TIME, Turn
from agent.worker.workload.encoding.stream import PackedStream, draw_packed
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from common.plan.schema import Workload
from common.redis_client.connections.cluster_topology import slot_of
from common.serde import from_builtins
from tests.agent.worker.drivers.wire.test_requests import keys
from tests.support.wire import FixedStream, operation, slots_of

NAMES = ("a:1", "b:1", "c:1")
SLOTS = slots_of(*NAMES)


class OpenConnection:
    """An open connection."""

    is_open, is_closing = True, False


class RouterStage:
    """A RequestRouter whose nodes are all up. It records the nodes added and the requests that failed."""

    def __init__(
        self,
        operations: Any = None,
        block: int = 32,
        batch: int = 1,
        batches: int | None = None,
        stream: PackedStream | None = None,
    ) -> None:
        self.added: list[str] = []
        self.fed = 0
        self.batch = batch
        self.failed: list[int] = []
        drawn = operations or (operation("GET", f"key:{number}") for number in count())
        source = PackedRequestSource(stream or cast(PackedStream, FixedStream(drawn, block)))
        self.router = RequestRouter(source, WireRecord([None, 5]), self.add, self.feed, self.fail, batch, batches)

    def add(self, node: TargetNode) -> None:
        node.connections.append(cast(Any, OpenConnection()))
        self.added.append(node.name)

    def feed(self) -> None:
        self.fed += 1

    def fail(self, node: TargetNode, count: int) -> None:
        for _ in range(count):
            self.failed += self.take_queued(node, self.batch) or []

    def take(self, name: str, wanted: int = 1) -> list[int] | None:
        """The keys of the next requests of a node; None if the node must wait."""
        node = self.router.node(name)
        if not self.router.ensure(node, wanted):
            return None
        return self.take_queued(node, wanted)

    def take_queued(self, node: TargetNode, wanted: int) -> list[int]:
        """The keys of the next queued requests of a node."""
        assert node.requests.advance(wanted, self.router._record)
        return keys(node.requests.take(Turn((NO_DUE_TIME,) * wanted))[1])


@settings(max_examples=30)
@given(turns=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), max_size=60))
def test_each_node_gets_all_requests_of_its_slots_in_drawing_order(turns: list[tuple[str, int]]) -> None:
    stage = RouterStage()
    stage.router.begin(SLOTS)
    assert stage.added == sorted(NAMES)
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for name, wanted in turns:
        found[name] += stage.take(name, wanted) or []
    for name, taken in found.items():
        mine = (number for number in count() if SLOTS[slot_of(b"key:%d" % number)] == name)
        assert taken == [next(mine) for _ in taken]


@pytest.mark.parametrize("speeds", [(1, 1, 1), (50, 1, 1), (1, 2, 9)], ids=str)
def test_nodes_of_different_speed_together_issue_what_the_plan_draws(speeds: tuple[int, ...]) -> None:
    raw = {"commands": [{"command": "GET"}], "keys": {"maximum": 5000, "distribution": "zipfian"}}
    mix = CommandMix(from_builtins(raw, Workload), 7)
    stage = RouterStage(stream=draw_packed(mix, 7, 0, block=1024))
    stage.router.begin(SLOTS)
    found: Counter[int] = Counter()
    for _ in range(4000):
        for name, speed in zip(NAMES, speeds, strict=True):
            for _ in range(speed):
                found.update(stage.take(name) or ())
    backlog = sum(node.requests.backlog for node in stage.router.nodes)
    assert backlog <= len(NAMES) * (AHEAD + 1024)
    stream = draw_operations(mix, 7, 0, block=1024)
    drawn = Counter(int(cast(bytes, next(stream)[1][1]).split(b":")[1]) for _ in range(found.total() + backlog))
    # Only drawn requests were issued, and the rest is still queued.
    assert found <= drawn
    assert (drawn - found).total() == backlog


def test_a_fast_node_waits_while_a_slow_node_has_a_long_queue() -> None:
    # Every 64th request belongs to one node, all others to another.
    here, there = NAMES[:2]
    mine = next(f"key:{n}" for n in count() if SLOTS[slot_of(b"key:%d" % n)] == here)
    others = next(f"key:{n}" for n in count() if SLOTS[slot_of(b"key:%d" % n)] == there)
    drawn = (operation("GET", mine if number % 64 == 0 else others) for number in count())
    stage = RouterStage(drawn, block=1024)
    stage.router.begin(SLOTS)
    issued = 0
    while stage.take(here) is not None:
        issued += 1
    assert issued * 63 <= AHEAD + 2 * 1024
    assert stage.router.is_waiting(stage.router.node(here))
    assert stage.router.node(there).requests.backlog <= AHEAD + 1024
    assert stage.fed == 0
    # The slow node catches up, and the router wakes the first one.
    while not stage.fed:
        assert stage.take(there) is not None
    while stage.router.node(there).requests.backlog > AHEAD // 2:
        stage.take(there)
    assert stage.take(here) is not None
    assert not stage.router.is_any_waiting


def steady_keys(stage: RouterStage, name: str, count: int) -> list[int]:
    """The keys of the next `count` batches of a node's steady load."""
    batches = [stage.router.node(name).next_batch() for _ in range(count)]
    return [key for batch in batches if batch is not None for key in keys(batch[1])]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("slots", [SLOTS, slots_of("a:1", "b:1", "")], ids=("a node is down", "no node"))
def test_in_a_steady_load_requests_of_a_lost_node_fail_in_proportion(slots: list[str], batch: int) -> None:
    stage = RouterStage(block=1024, batch=batch)
    stage.router.begin(slots)
    if slots is SLOTS:
        stage.router.set_error(stage.router.node("c:1"), ConnectionError("refused"))
    sent: list[int] = []
    for _ in range(3 * AHEAD // 2 // batch):
        sent += [*steady_keys(stage, "a:1", 1), *steady_keys(stage, "b:1", 1)]
        # Two short rounds, plus chance.
        assert abs(len(stage.failed) - len(sent) / 2) < 100 + 64 * batch + 2 * len(sent) ** 0.5
    stage.router.take_back()
    left = sum(place.requests.backlog for place in (*stage.router.nodes, stage.router.uncovered))
    assert (len(sent) + len(stage.failed) + left) % 1024 == 0
    assert left < 2 * 1024
    assert len({*sent, *stage.failed}) == len(sent) + len(stage.failed)
    assert all(slots[slot_of(b"key:%d" % key)] in ("", "c:1") for key in stage.failed)


def test_a_node_that_is_reachable_again_gets_its_requests() -> None:
    stage = RouterStage(block=1024)
    stage.router.begin(SLOTS)
    node = stage.router.node("c:1")
    stage.router.set_error(node, ConnectionError("refused"))
    steady_keys(stage, "a:1", 2000)
    failed = len(stage.failed)
    assert failed > 1000
    stage.router.clear_error(node)
    assert stage.router.failing == []
    steady_keys(stage, "a:1", 1000)
    assert len(stage.failed) == failed
    assert stage.take("c:1") is not None


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 7),
    steps=st.lists(st.sampled_from(["up", "down", "lose", "cover", "open", "closed", "end"]), min_size=5, max_size=40),
)
def test_every_drawn_request_is_sent_or_fails_or_stays_queued(batch: int, steps: list[str]) -> None:
    stage = RouterStage(block=64, batch=batch)
    router, done = stage.router, list[int]()
    router.begin(SLOTS)
    for step in steps:
        if step in ("up", "down"):
            (router.clear_error if step == "up" else lambda node: router.set_error(node, ConnectionError()))(
                router.nodes[0]
            )
        elif step in ("lose", "cover", "end"):
            router.update_slots({"lose": slots_of("a:1", "", "c:1"), "cover": SLOTS, "end": slots_of("b:1")}[step])
        elif step == "closed":
            for name in NAMES:
                if router.node(name).error is None:
                    done += steady_keys(stage, name, 20)
        else:
            router.take_back()
            for _ in range(50):
                place = router.next_node(batch)
                if place is not None:
                    router.assigned()
                    done += stage.take_queued(place, batch)
    router.take_back()
    left = [
        key
        for place in router._places
        for block in place.requests.remove_all(router._record)
        for key in keys(block.payload)
    ]
    assert sorted([*done, *stage.failed, *left]) == list(range(len(done) + len(stage.failed) + len(left)))


def test_workers_begin_with_different_nodes() -> None:
    orders = []
    for _ in range(2):
        stage = RouterStage(block=1024)
        stage.router.begin(SLOTS)
        order = []
        for _ in range(300):
            place = stage.router.next_node(1)
            assert place is not None
            stage.router.assigned()
            stage.take_queued(place, 1)
            order.append(place.name)
        orders.append(order)
    # A third of the turns agree by chance.
    assert sum(one == other for one, other in zip(*orders, strict=True)) < 170


def test_turns_go_to_nodes_in_proportion_to_their_requests() -> None:
    slots = slots_of("a:1", "a:1", "b:1", "")
    stage = RouterStage(block=1024)
    stage.router.begin(slots)
    found: Counter[str] = Counter()
    for number in range(1, 3001):
        place = stage.router.next_node(1)
        assert place is stage.router.next_node(1)
        assert place is not None
        stage.router.assigned()
        found["" if place is stage.router.uncovered else place.name] += 1
        (key,) = stage.take_queued(place, 1)
        assert slots[slot_of(b"key:%d" % key)] == place.name
        # From the beginning: turns of a node do not come in one run.
        assert abs(found["a:1"] - number / 2) < 10 + 3 * number**0.5
        assert abs(found[""] - number / 4) < 10 + 3 * number**0.5
    assert found.total() == 3000


def test_requests_of_unserved_slots_are_kept() -> None:
    stage = RouterStage()
    stage.router.begin(slots_of("a:1", ""))
    taken = stage.take("a:1", 20)
    assert taken is not None
    assert all(slot_of(b"key:%d" % number) % 2 == 0 for number in taken)
    assert stage.added == ["a:1"]
    kept = stage.take_queued(stage.router.uncovered, stage.router.uncovered.requests.backlog)
    node = stage.router.node("a:1")
    assert sorted([*taken, *kept, *stage.take_queued(node, node.requests.backlog)]) == [*range(64)]
    assert stage.router.failing == [stage.router.uncovered]


def test_requests_drawn_after_a_slot_move_go_to_the_new_node() -> None:
    stage = RouterStage((operation("GET", "key:5") for _ in repeat(None)), block=4)
    stage.router.begin(slots_of("a:1"))
    slot = slot_of(b"key:5")
    assert stage.take("a:1") == [5]
    stage.router.slot_moved(slot, "b:1")
    assert stage.added == ["a:1", "b:1"]
    for _ in range(3):
        assert stage.take("a:1") == [5]
    assert stage.take("b:1") == [5]


def test_an_update_reports_whether_a_slot_has_another_node() -> None:
    stage = RouterStage()
    stage.router.begin(SLOTS)
    assert not stage.router.update_slots(SLOTS)
    assert stage.router.update_slots(slots_of(*NAMES[:2]))
    assert stage.router.update_slots(SLOTS)
    assert stage.added == sorted(NAMES)


def test_requests_of_a_node_without_slots_go_to_its_heir() -> None:
    stage = RouterStage()
    stage.router.begin(SLOTS)
    stage.take(NAMES[0])
    leaving, heir = (stage.router.node(name) for name in NAMES[1:])
    waiting, had = leaving.requests.backlog, heir.requests.backlog
    leaving.push_turn(Turn((5,)))
    assert waiting > 0
    stage.router.update_slots(slots_of(NAMES[0], NAMES[2], NAMES[2]))
    assert (leaving.is_gone, leaving.has_special_work, leaving.requests.backlog) == (True, True, 0)
    assert [connection.is_closing for connection in leaving.connections] == [True]
    assert (heir.requests.backlog, heir.pop_turn()) == (had + waiting, Turn((5,)))
    stage.router.update_slots(SLOTS)
    assert not leaving.is_gone


def test_requests_of_slots_that_are_served_again_go_to_their_new_node() -> None:
    stage = RouterStage()
    stage.router.begin(slots_of("a:1", ""))
    stage.take("a:1")
    kept = stage.router.uncovered.requests.backlog
    assert kept > 0
    stage.router.update_slots(slots_of("a:1", "b:1"))
    assert (stage.router.uncovered.requests.backlog, stage.router.node("b:1").requests.backlog) == (0, kept)
    assert stage.router.failing == []


@pytest.mark.parametrize(("batch", "batches"), [(1, 10), (3, 4), (8, 1)])
def test_a_steady_load_has_the_planned_number_of_batches(batch: int, batches: int) -> None:
    stage = RouterStage(block=5, batch=batch, batches=batches)
    stage.router.begin(None)
    node = stage.router.node("")
    found = [each for each in (node.next_batch() for _ in range(batches + 5)) if each is not None]
    assert [key for each in found for key in keys(each[1])] == list(range(batch * batches))
    assert node.next_batch() is None


def test_a_fast_node_continues_when_slow_nodes_have_caught_up() -> None:
    here, there = NAMES[:2]
    slots = slots_of(here, there)
    stage = RouterStage(block=1024)
    stage.router.begin(slots)
    first, other = stage.router.node(here), stage.router.node(there)
    while first.next_batch() is not None:
        pass
    assert stage.router.is_waiting(first)
    for _ in range(AHEAD):
        assert other.next_batch() is not None
    assert stage.fed
    assert first.next_batch() is not None

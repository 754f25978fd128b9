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
from tests.support.wire import Dealt, operation, slots_of

NAMES = ("a:1", "b:1", "c:1")
SLOTS = slots_of(*NAMES)


class Up:
    """A connection that is open, or closing."""

    is_open, is_closing = True, False


class World:
    """RequestRouter whose nodes are all up, and what was asked of it."""

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
        source = PackedRequestSource(stream or cast(PackedStream, Dealt(drawn, block)))
        self.router = RequestRouter(source, WireRecord([None, 5]), self.add, self.feed, self.fail, batch, batches)

    def add(self, node: TargetNode) -> None:
        node.connections.append(cast(Any, Up()))
        self.added.append(node.name)

    def feed(self) -> None:
        self.fed += 1

    def fail(self, node: TargetNode, count: int) -> None:
        for _ in range(count):
            self.failed += self.took_of(node, self.batch) or []

    def took(self, name: str, wanted: int = 1) -> list[int] | None:
        """The keys of the next requests of a node; None where there are none for now."""
        node = self.router.node(name)
        if not self.router.ensure(node, wanted):
            return None
        return self.took_of(node, wanted)

    def took_of(self, node: TargetNode, wanted: int) -> list[int]:
        """The same, of those that lie ready."""
        assert node.requests.advance(wanted, self.router._record)
        return keys(node.requests.take(Turn((NO_DUE_TIME,) * wanted))[1])


@settings(max_examples=30)
@given(turns=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), max_size=60))
def test_each_node_gets_all_requests_of_its_slots_in_drawing_order(turns: list[tuple[str, int]]) -> None:
    world = World()
    world.router.begin(SLOTS)
    assert world.added == sorted(NAMES)
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for name, wanted in turns:
        found[name] += world.took(name, wanted) or []
    for name, taken in found.items():
        mine = (number for number in count() if SLOTS[slot_of(b"key:%d" % number)] == name)
        assert taken == [next(mine) for _ in taken]


@pytest.mark.parametrize("speeds", [(1, 1, 1), (50, 1, 1), (1, 2, 9)], ids=str)
def test_nodes_of_different_speed_together_issue_what_the_plan_draws(speeds: tuple[int, ...]) -> None:
    raw = {"commands": [{"command": "GET"}], "keys": {"maximum": 5000, "distribution": "zipfian"}}
    mix = CommandMix(from_builtins(raw, Workload), 7)
    world = World(stream=draw_packed(mix, 7, 0, block=1024))
    world.router.begin(SLOTS)
    found: Counter[int] = Counter()
    for _ in range(4000):
        for name, speed in zip(NAMES, speeds, strict=True):
            for _ in range(speed):
                found.update(world.took(name) or ())
    backlog = sum(node.requests.backlog for node in world.router.nodes)
    assert backlog <= len(NAMES) * (AHEAD + 1024)
    stream = draw_operations(mix, 7, 0, block=1024)
    drawn = Counter(int(cast(bytes, next(stream)[1][1]).split(b":")[1]) for _ in range(found.total() + backlog))
    # Nothing was issued that was not drawn, and what is left is what some have still to do.
    assert found <= drawn
    assert (drawn - found).total() == backlog


def test_a_fast_node_waits_while_a_slow_node_has_a_long_queue() -> None:
    # All but every 64th request is of one node.
    here, there = NAMES[:2]
    mine = next(f"key:{n}" for n in count() if SLOTS[slot_of(b"key:%d" % n)] == here)
    others = next(f"key:{n}" for n in count() if SLOTS[slot_of(b"key:%d" % n)] == there)
    drawn = (operation("GET", mine if number % 64 == 0 else others) for number in count())
    world = World(drawn, block=1024)
    world.router.begin(SLOTS)
    issued = 0
    while world.took(here) is not None:
        issued += 1
    assert issued * 63 <= AHEAD + 2 * 1024
    assert world.router.is_waiting(world.router.node(here))
    assert world.router.node(there).requests.backlog <= AHEAD + 1024
    assert world.fed == 0
    # The other one catches up, and the first is told.
    while not world.fed:
        assert world.took(there) is not None
    while world.router.node(there).requests.backlog > AHEAD // 2:
        world.took(there)
    assert world.took(here) is not None
    assert not world.router.is_any_waiting


def steadily(world: World, name: str, count: int) -> list[int]:
    """The keys of so many batches of a node's steady load."""
    batches = [world.router.node(name).next_batch() for _ in range(count)]
    return [key for batch in batches if batch is not None for key in keys(batch[1])]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("slots", [SLOTS, slots_of("a:1", "b:1", "")], ids=("a node is down", "no node"))
def test_in_a_steady_load_requests_of_a_lost_node_fail_in_proportion(slots: list[str], batch: int) -> None:
    world = World(block=1024, batch=batch)
    world.router.begin(slots)
    if slots is SLOTS:
        world.router.set_error(world.router.node("c:1"), ConnectionError("refused"))
    sent: list[int] = []
    for _ in range(3 * AHEAD // 2 // batch):
        sent += [*steadily(world, "a:1", 1), *steadily(world, "b:1", 1)]
        # As much as two short rounds, and by chance.
        assert abs(len(world.failed) - len(sent) / 2) < 100 + 64 * batch + 2 * len(sent) ** 0.5
    world.router.take_back()
    left = sum(place.requests.backlog for place in (*world.router.nodes, world.router.uncovered))
    assert (len(sent) + len(world.failed) + left) % 1024 == 0
    assert left < 2 * 1024
    assert len({*sent, *world.failed}) == len(sent) + len(world.failed)
    assert all(slots[slot_of(b"key:%d" % key)] in ("", "c:1") for key in world.failed)


def test_a_node_that_is_reachable_again_gets_its_requests() -> None:
    world = World(block=1024)
    world.router.begin(SLOTS)
    node = world.router.node("c:1")
    world.router.set_error(node, ConnectionError("refused"))
    steadily(world, "a:1", 2000)
    failed = len(world.failed)
    assert failed > 1000
    world.router.clear_error(node)
    assert world.router.failing == []
    steadily(world, "a:1", 1000)
    assert len(world.failed) == failed
    assert world.took("c:1") is not None


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 7),
    steps=st.lists(st.sampled_from(["up", "down", "lose", "cover", "open", "closed", "end"]), min_size=5, max_size=40),
)
def test_every_drawn_request_is_sent_or_fails_or_stays_queued(batch: int, steps: list[str]) -> None:
    world = World(block=64, batch=batch)
    router, done = world.router, list[int]()
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
                    done += steadily(world, name, 20)
        else:
            router.take_back()
            for _ in range(50):
                place = router.next_node(batch)
                if place is not None:
                    router.assigned()
                    done += world.took_of(place, batch)
    router.take_back()
    left = [
        key
        for place in router._places
        for block in place.requests.remove_all(router._record)
        for key in keys(block.payload)
    ]
    assert sorted([*done, *world.failed, *left]) == list(range(len(done) + len(world.failed) + len(left)))


def test_workers_begin_with_different_nodes() -> None:
    orders = []
    for _ in range(2):
        world = World(block=1024)
        world.router.begin(SLOTS)
        order = []
        for _ in range(300):
            place = world.router.next_node(1)
            assert place is not None
            world.router.assigned()
            world.took_of(place, 1)
            order.append(place.name)
        orders.append(order)
    # A third by chance.
    assert sum(one == other for one, other in zip(*orders, strict=True)) < 170


def test_turns_go_to_nodes_in_proportion_to_their_requests() -> None:
    slots = slots_of("a:1", "a:1", "b:1", "")
    world = World(block=1024)
    world.router.begin(slots)
    found: Counter[str] = Counter()
    for number in range(1, 3001):
        place = world.router.next_node(1)
        assert place is world.router.next_node(1)
        assert place is not None
        world.router.assigned()
        found["" if place is world.router.uncovered else place.name] += 1
        (key,) = world.took_of(place, 1)
        assert slots[slot_of(b"key:%d" % key)] == place.name
        # From the first ones on: nobody's turns come in one go.
        assert abs(found["a:1"] - number / 2) < 10 + 3 * number**0.5
        assert abs(found[""] - number / 4) < 10 + 3 * number**0.5
    assert found.total() == 3000


def test_requests_of_unserved_slots_are_kept() -> None:
    world = World()
    world.router.begin(slots_of("a:1", ""))
    taken = world.took("a:1", 20)
    assert taken is not None
    assert all(slot_of(b"key:%d" % number) % 2 == 0 for number in taken)
    assert world.added == ["a:1"]
    kept = world.took_of(world.router.uncovered, world.router.uncovered.requests.backlog)
    node = world.router.node("a:1")
    assert sorted([*taken, *kept, *world.took_of(node, node.requests.backlog)]) == [*range(64)]
    assert world.router.failing == [world.router.uncovered]


def test_requests_drawn_after_a_slot_move_go_to_the_new_node() -> None:
    world = World((operation("GET", "key:5") for _ in repeat(None)), block=4)
    world.router.begin(slots_of("a:1"))
    slot = slot_of(b"key:5")
    assert world.took("a:1") == [5]
    world.router.slot_moved(slot, "b:1")
    assert world.added == ["a:1", "b:1"]
    for _ in range(3):
        assert world.took("a:1") == [5]
    assert world.took("b:1") == [5]


def test_requests_of_a_node_without_slots_go_to_its_heir() -> None:
    world = World()
    world.router.begin(SLOTS)
    world.took(NAMES[0])
    leaving, heir = (world.router.node(name) for name in NAMES[1:])
    waiting, had = leaving.requests.backlog, heir.requests.backlog
    leaving.push_turn(Turn((5,)))
    assert waiting > 0
    world.router.update_slots(slots_of(NAMES[0], NAMES[2], NAMES[2]))
    assert (leaving.is_gone, leaving.has_special_work, leaving.requests.backlog) == (True, True, 0)
    assert [connection.is_closing for connection in leaving.connections] == [True]
    assert (heir.requests.backlog, heir.pop_turn()) == (had + waiting, Turn((5,)))
    world.router.update_slots(SLOTS)
    assert not leaving.is_gone


def test_requests_of_slots_that_are_served_again_go_to_their_new_node() -> None:
    world = World()
    world.router.begin(slots_of("a:1", ""))
    world.took("a:1")
    kept = world.router.uncovered.requests.backlog
    assert kept > 0
    world.router.update_slots(slots_of("a:1", "b:1"))
    assert (world.router.uncovered.requests.backlog, world.router.node("b:1").requests.backlog) == (0, kept)
    assert world.router.failing == []


@pytest.mark.parametrize(("batch", "batches"), [(1, 10), (3, 4), (8, 1)])
def test_a_steady_load_has_the_planned_number_of_batches(batch: int, batches: int) -> None:
    world = World(block=5, batch=batch, batches=batches)
    world.router.begin(None)
    node = world.router.node("")
    found = [each for each in (node.next_batch() for _ in range(batches + 5)) if each is not None]
    assert [key for each in found for key in keys(each[1])] == list(range(batch * batches))
    assert node.next_batch() is None


def test_a_fast_node_continues_when_slow_nodes_have_caught_up() -> None:
    here, there = NAMES[:2]
    slots = slots_of(here, there)
    world = World(block=1024)
    world.router.begin(slots)
    first, other = world.router.node(here), world.router.node(there)
    while first.next_batch() is not None:
        pass
    assert world.router.is_waiting(first)
    for _ in range(AHEAD):
        assert other.next_batch() is not None
    assert world.fed
    assert first.next_batch() is not None

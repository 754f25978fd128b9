from __future__ import annotations

from collections import Counter
from itertools import count, repeat
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.worker.mix import Mix
from agent.worker.operations import draw_operations
from agent.worker.packing import PackedStream, draw_packed
from agent.worker.wire.record import WireRecord
from agent.worker.wire.routes import AHEAD, Node, Routes
from agent.worker.wire.source import BlockSource
from common.plain import from_plain
from common.plan.schema import Workload
from common.target.slots import slot_of
from tests.agent.worker.wire.test_source import keys
from tests.support.wire import Dealt, operation, slots_of

NAMES = ("a:1", "b:1", "c:1")
SLOTS = slots_of(*NAMES)


class Up:
    """A connection that is open, or closing."""

    is_open, is_closing = True, False


class World:
    """Routes whose nodes are all up, and what was asked of it."""

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
        drawn = operations or (operation("GET", f"key:{number}") for number in count())
        source = BlockSource(stream or cast(PackedStream, Dealt(drawn, block)))
        self.routes = Routes(source, WireRecord([None, 5]), self.add, self.feed, batch, batches)

    def add(self, node: Node) -> None:
        node.channels.append(cast(Any, Up()))
        self.added.append(node.name)

    def feed(self) -> None:
        self.fed += 1

    def took(self, name: str, wanted: int = 1) -> list[int] | None:
        """The keys of the next requests of a node; None where there are none for now."""
        node = self.routes.node(name)
        if not self.routes.more(node, wanted):
            return None
        block, begin, end = node.feed.take(wanted)
        return keys(block.payload[block.offsets[begin] : block.offsets[end]])


def test_a_target_that_is_no_cluster_has_one_node_to_which_all_goes() -> None:
    world = World()
    world.routes.begin(None)
    assert not world.routes.is_cluster
    assert (world.added, [node.name for node in world.routes.nodes]) == ([""], [""])
    assert [world.took("", 5), world.took("", 3)] == [[0, 1, 2, 3, 4], [5, 6, 7]]


@settings(max_examples=30)
@given(turns=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), max_size=60))
def test_each_node_gets_the_requests_of_its_slots_all_of_them_in_the_order_drawn(turns: list[tuple[str, int]]) -> None:
    world = World()
    world.routes.begin(SLOTS)
    assert world.added == sorted(NAMES)
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for name, wanted in turns:
        found[name] += world.took(name, wanted) or []
    for name, taken in found.items():
        mine = (number for number in count() if SLOTS[slot_of(b"key:%d" % number)] == name)
        assert taken == [next(mine) for _ in taken]


@pytest.mark.parametrize("speeds", [(1, 1, 1), (50, 1, 1), (1, 2, 9)], ids=str)
def test_all_nodes_together_issue_what_the_plan_draws_however_quick_each_is(speeds: tuple[int, ...]) -> None:
    raw = {"commands": [{"command": "GET"}], "keys": {"maximum": 5000, "distribution": "zipfian"}}
    mix = Mix(from_plain(raw, Workload), 7)
    world = World(stream=draw_packed(mix, 7, 0, block=1024))
    world.routes.begin(SLOTS)
    found: Counter[int] = Counter()
    for _ in range(4000):
        for name, speed in zip(NAMES, speeds, strict=True):
            for _ in range(speed):
                found.update(world.took(name) or ())
    backlog = sum(node.feed.backlog for node in world.routes.nodes)
    assert backlog <= len(NAMES) * (AHEAD + 1024)
    stream = draw_operations(mix, 7, 0, block=1024)
    drawn = Counter(int(cast(bytes, next(stream)[1][1]).split(b":")[1]) for _ in range(found.total() + backlog))
    # Nothing was issued that was not drawn, and what is left is what some have still to do.
    assert found <= drawn
    assert (drawn - found).total() == backlog


def test_nobody_draws_while_another_one_has_much_left() -> None:
    # All but every 64th request is of one node.
    here, there = NAMES[:2]
    mine = next(f"key:{n}" for n in count() if SLOTS[slot_of(b"key:%d" % n)] == here)
    others = next(f"key:{n}" for n in count() if SLOTS[slot_of(b"key:%d" % n)] == there)
    drawn = (operation("GET", mine if number % 64 == 0 else others) for number in count())
    world = World(drawn, block=1024)
    world.routes.begin(SLOTS)
    issued = 0
    while world.took(here) is not None:
        issued += 1
    assert issued * 63 <= AHEAD + 2 * 1024
    assert world.routes.is_starved(world.routes.node(here))
    assert world.routes.node(there).feed.backlog <= AHEAD + 1024
    assert world.fed == 0
    # The other one catches up, and the first is told.
    while not world.fed:
        assert world.took(there) is not None
    while world.routes.node(there).feed.backlog > AHEAD // 2:
        world.took(there)
    assert world.took(here) is not None
    assert not world.routes.has_starved


def test_nobody_waits_for_a_node_that_is_down_and_what_was_drawn_for_it_is_forgotten() -> None:
    here, down = NAMES[:2]
    world = World(block=1024)
    world.routes.begin(SLOTS)
    for channel in world.routes.node(down).channels:
        channel.is_open = False
    third = NAMES[2]
    for _ in range(3 * AHEAD):
        assert world.took(here) is not None
        assert world.took(third) is not None
    assert world.routes.node(down).feed.backlog <= AHEAD + 2048


def test_a_node_without_slots_gets_nothing() -> None:
    world = World()
    world.routes.begin(slots_of("a:1"))
    world.routes.node("b:1")
    assert world.took("b:1") is None
    assert world.took("a:1") is not None


def test_slots_that_nobody_serves_are_left_out() -> None:
    world = World()
    world.routes.begin(slots_of("a:1", ""))
    taken = world.took("a:1", 20)
    assert taken is not None
    assert all(slot_of(b"key:%d" % number) % 2 == 0 for number in taken)
    assert world.added == ["a:1"]


def test_requests_that_are_drawn_after_a_slot_has_moved_go_to_its_new_node() -> None:
    world = World((operation("GET", "key:5") for _ in repeat(None)), block=4)
    world.routes.begin(slots_of("a:1"))
    slot = slot_of(b"key:5")
    assert world.took("a:1") == [5]
    assert world.routes.moved(slot, "b:1")
    assert not world.routes.moved(slot, "b:1")
    assert world.added == ["a:1", "b:1"]
    for _ in range(3):
        assert world.took("a:1") == [5]
    assert world.took("b:1") == [5]


def test_an_update_tells_whether_anything_has_changed() -> None:
    world = World()
    world.routes.begin(SLOTS)
    assert not world.routes.update(SLOTS)
    assert world.routes.update(slots_of(*NAMES[:2]))
    assert world.routes.update(SLOTS)
    assert world.added == sorted(NAMES)


def test_a_node_that_loses_all_its_slots_is_gone_with_what_waits_for_it() -> None:
    world = World()
    world.routes.begin(SLOTS)
    world.took(NAMES[0])
    leaving = world.routes.node(NAMES[1])
    assert leaving.feed.backlog > 0
    world.routes.update(slots_of(NAMES[0], NAMES[2]))
    assert (leaving.is_gone, leaving.is_special, leaving.feed.backlog) == (True, True, 0)
    assert [channel.is_closing for channel in leaving.channels] == [True]
    world.routes.update(SLOTS)
    assert not leaving.is_gone


@pytest.mark.parametrize(("batch", "batches"), [(1, 10), (3, 4), (8, 1)])
def test_a_steady_load_has_so_many_batches_and_then_no_more(batch: int, batches: int) -> None:
    world = World(block=5, batch=batch, batches=batches)
    world.routes.begin(None)
    node = world.routes.node("")
    found = [each for each in (node.next_batch() for _ in range(batches + 5)) if each is not None]
    assert [key for each in found for key in keys(each[1])] == list(range(batch * batches))
    assert node.next_batch() is None


def test_a_steady_load_of_a_node_that_waits_for_others_goes_on_when_these_have_caught_up() -> None:
    here, there = NAMES[:2]
    slots = slots_of(here, there)
    world = World(block=1024)
    world.routes.begin(slots)
    first, other = world.routes.node(here), world.routes.node(there)
    while first.next_batch() is not None:
        pass
    assert world.routes.is_starved(first)
    for _ in range(AHEAD):
        assert other.next_batch() is not None
    assert world.fed
    assert first.next_batch() is not None


def test_marks_say_whether_connections_have_anything_else_to_do() -> None:
    world = World()
    world.routes.begin(None)
    node = world.routes.node("")
    node.mark()
    assert not node.is_special
    node.channels[0].is_closing = True
    node.mark()
    assert node.is_special
    assert node.is_up
    assert np.array([each.is_up for each in world.routes.nodes]).all()

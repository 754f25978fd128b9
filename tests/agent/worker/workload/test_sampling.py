from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.worker.workload.mix import Mix
from agent.worker.workload.sampling import Drawing
from common.plan.schema import Workload
from common.serde import from_builtins


def drawing(*commands: str, tag: int = 0, **workload: Any) -> Drawing:
    raw = {"commands": [{"command": command} for command in commands], **workload}
    return Drawing(Mix(from_builtins(raw, Workload), 1, tag), 1, 0, 1)


def test_every_operation_of_a_block_belongs_to_one_command() -> None:
    block = drawing("GET", "SET", "MGET __keys(3)__").block(500)
    assert sorted(np.concatenate(block.places).tolist()) == list(range(500))
    for number, (place, rows) in enumerate(zip(block.places, block.rows, strict=True)):
        assert (block.picks[place] == number).all()
        assert rows.count == place.size
        assert rows.keys.shape == (place.size, (1, 1, 3)[number])


@pytest.mark.parametrize(("batch", "count", "whole"), [(0, 7, 7), (3, 7, 9), (3, 9, 9), (10, 7, 10)])
def test_a_block_holds_whole_batches(batch: int, count: int, whole: int) -> None:
    assert drawing("GET", tag=5, transaction=batch).whole(count) == whole


def test_numbers_are_drawn_once_only_for_those_who_use_them() -> None:
    one, other = drawing("GET"), drawing("GET")
    [first], [second] = one.block(20).rows, other.block(20).rows
    assert first.keys.tolist() == second.keys.tolist()
    assert first.rand_ints.shape == (20, 0)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.worker.workload.mix import CommandMix
from agent.worker.workload.sampling import OperationSampler
from common.plan.schema import Workload
from common.serde import from_builtins


def sampler(*commands: str, tag: int = 0, **workload: Any) -> OperationSampler:
    raw = {"commands": [{"command": command} for command in commands], **workload}
    return OperationSampler(CommandMix(from_builtins(raw, Workload), 1, tag), 1, 0, 1)


def test_every_operation_of_a_block_belongs_to_one_command() -> None:
    block = sampler("GET", "SET", "MGET __keys(3)__").block(500)
    assert sorted(np.concatenate(block.positions).tolist()) == list(range(500))
    for number, (place, rows) in enumerate(zip(block.positions, block.numbers, strict=True)):
        assert (block.commands[place] == number).all()
        assert rows.count == place.size
        assert rows.keys.shape == (place.size, (1, 1, 3)[number])


@pytest.mark.parametrize(("batch", "count", "whole"), [(0, 7, 7), (3, 7, 9), (3, 9, 9), (10, 7, 10)])
def test_a_block_holds_whole_batches(batch: int, count: int, whole: int) -> None:
    assert sampler("GET", tag=5, transaction=batch).whole_batches(count) == whole


def test_numbers_are_drawn_once_only_for_those_who_use_them() -> None:
    one, other = sampler("GET"), sampler("GET")
    [first], [second] = one.block(20).numbers, other.block(20).numbers
    assert first.keys.tolist() == second.keys.tolist()
    assert first.rand_ints.shape == (20, 0)

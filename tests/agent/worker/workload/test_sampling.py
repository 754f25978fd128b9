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
    for number, (positions, numbers) in enumerate(zip(block.positions, block.numbers, strict=True)):
        assert (block.commands[positions] == number).all()
        assert numbers.count == positions.size
        assert numbers.keys.shape == (positions.size, (1, 1, 3)[number])


@pytest.mark.parametrize(("batch", "count", "whole"), [(0, 7, 7), (3, 7, 9), (3, 9, 9), (10, 7, 10)])
def test_a_block_has_whole_batches(batch: int, count: int, whole: int) -> None:
    assert sampler("GET", tag=5, transaction=batch).whole_batches(count) == whole

"""Command mixes, and the operations that a worker draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from agent.worker.workload.reply_effects import Operation
from common.plan.schema import Workload
from common.serde import from_builtins


def mix_of(*commands: str | dict[str, Any], tag: int = 0, **workload: Any) -> CommandMix:
    """A mix from commands in the form of a plan file. tag: keys per hash tag."""
    listed = [{"command": command} if isinstance(command, str) else command for command in commands]
    return CommandMix(from_builtins({"commands": listed, **workload}, Workload), 1, tag)


def stream(
    *commands: str | dict[str, Any], tag: int = 0, thread: int = 0, threads: int = 1, **workload: Any
) -> Iterator[Operation]:
    """The operations of one worker."""
    return draw_operations(mix_of(*commands, tag=tag, **workload), 1, thread, threads)


def arguments_of(operations: Iterator[Operation], count: int = 2000) -> list[tuple[str | bytes, ...]]:
    """The arguments of the next operations, after a check of their sizes."""
    found = []
    for _, arguments, size, _ in islice(operations, count):
        assert size == request_bytes(arguments)
        found.append(arguments)
    return found


def answer(operation: Operation, reply: Any) -> Any:
    """Give the operation its reply. Returns what the reply leads to."""
    on_reply = operation[3]
    assert on_reply is not None
    return on_reply(reply)

"""Examines raw replies one by one: after errors, in transactions, if replies matter, or if they came in several
reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.worker.drivers.wire.connection import ReadMark
from agent.worker.metrics.wire_sizes import Measure
from common.redis_client import failure_of


class ReplyParser:
    """Converts raw replies into what redis-py returns, and measures raw replies. Both by row of the mix."""

    def __init__(self, names: Sequence[str], callbacks: Mapping[str, Any], raw_measures: Sequence[Measure]) -> None:
        """names: the command of each row. callbacks: redis-py's response callbacks by command. raw_measures: by row,
        the bytes of a reply as hiredis returns it."""
        self._callbacks = [callbacks.get(name) for name in names]
        self._raw_measures = raw_measures

    def parse(self, row: int, raw: Any) -> Any:
        """What redis-py returns for a raw reply, or the error that it raises if it cannot convert the reply."""
        callback = self._callbacks[row]
        if callback is None or isinstance(raw, BaseException):
            return raw
        try:
            return callback(raw)
        except Exception as error:  # noqa: BLE001 - redis-py would raise it instead of returning a reply
            return error

    def raw_bytes(self, row: int, raw: Any) -> int:
        """Bytes of a raw reply."""
        return failure_of(raw).bytes_in if isinstance(raw, Exception) else self._raw_measures[row](raw)


def unwrap_transaction(replies: Sequence[Any]) -> tuple[list[Any], bool]:
    """(a reply for each command, whether the transaction was executed), from the replies to MULTI, the commands and
    EXEC. If the transaction was not executed, each command gets its first error, as in redis-py."""
    _, *queued, executed = replies
    if isinstance(executed, list):
        return executed, True
    error = next((reply for reply in (replies[0], *queued) if isinstance(reply, Exception)), executed)
    if not isinstance(error, Exception):
        error = ConnectionError(f"EXEC was answered with {error!r:.40}")
    return [error] * len(queued), False


def ends_of(sizes: Sequence[int], marks: Sequence[ReadMark], ended_ns: int) -> list[int]:
    """When each reply was complete. sizes: of the replies, in order. marks: one for each read except the last one,
    which ended at `ended_ns`."""
    ends, reached, left = [], 0, list(reversed(marks))
    for size in sizes:
        reached += size
        while left and left[-1][1] < reached:
            left.pop()
        ends.append(left[-1][0] if left else ended_ns)
    return ends

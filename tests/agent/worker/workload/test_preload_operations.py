from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.preload import preload_operations
from agent.worker.workload.reply_effects import Operation
from agent.worker.workload.values import is_intact
from common.plan.schema import Preload, Workload
from common.serde import from_builtins


def operations(
    entry: dict[str, Any], thread: int = 0, threads: int = 1, tag: int = 0, **workload: Any
) -> list[Operation]:
    made = preload_operations(
        from_builtins({"commands": [{"command": "GET"}], **workload}, Workload),
        from_builtins(entry, Preload),
        thread,
        threads,
        seed=1,
        per_hash_tag=tag,
    )
    return list(made)


@given(low=st.integers(0, 100), size=st.integers(1, 1500), threads=st.integers(1, 7), times=st.integers(1, 3))
def test_all_threads_together_issue_each_key_so_many_times(low: int, size: int, threads: int, times: int) -> None:
    keys = {"prefix": "k", "minimum": low, "maximum": low + size - 1}
    parts = [operations({"times": times}, thread, threads, keys=keys) for thread in range(threads)]
    issued = Counter(arguments[1] for part in parts for _, arguments, _, _ in part)
    assert issued == {b"k%d" % number: times for number in range(low, low + size)}
    counts = [len(part) // times for part in parts]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("tag", [0, 7])
def test_what_is_written_is_what_the_mix_would_write(tag: int) -> None:
    workload = {
        "keys": {"maximum": 40},
        "values": {"minimum": 60, "maximum": 90, "verify": True},
        "expiry": {"minimum": "5s", "maximum": "5s"},
    }
    for _, arguments, size, follow in operations({}, tag=tag, **workload):
        assert (arguments[0], arguments[3:]) == ("SET", (b"EX", b"5"))
        assert isinstance(arguments[1], bytes)
        assert isinstance(arguments[2], bytes)
        assert arguments[1].startswith(b"stampede:{" if tag else b"stampede:")
        assert 60 <= len(arguments[2]) <= 90
        assert is_intact(arguments[2], arguments[1])
        assert (size, follow) == (request_bytes(arguments), None)


def test_an_entry_may_have_a_command_and_keys_of_its_own() -> None:
    entry = {"command": "RPUSH __key__ n:__seq__", "key_prefix": "l", "key_maximum": 2, "times": 2}
    assert [arguments for _, arguments, _, _ in operations(entry)] == [
        ("RPUSH", b"l1", b"n:1"),
        ("RPUSH", b"l1", b"n:2"),
        ("RPUSH", b"l2", b"n:3"),
        ("RPUSH", b"l2", b"n:4"),
    ]

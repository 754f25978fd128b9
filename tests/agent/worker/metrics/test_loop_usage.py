from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.loop_usage import NO_TURNS, LoopRecord, pack_turn

turns = st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)), max_size=20)


@given(turns, turns)
def test_each_turn_is_taken_once_and_as_it_was_left(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    record = LoopRecord()
    for left in (first, second, []):
        for ended_ns, busy_ns in left:
            record.add(pack_turn(ended_ns, busy_ns))
        taken = record.take()
        assert [tuple(turn) for turn in taken.tolist()] == left
        assert (taken.shape[1], taken.dtype) == (NO_TURNS.shape[1], NO_TURNS.dtype)

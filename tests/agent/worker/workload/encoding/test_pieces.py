from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.workload.encoding.numbers import Frame, Framed
from agent.worker.workload.encoding.pieces import (
    SPOILED,
    Constant,
    Cuts,
    Decimals,
    Piece,
    decimals,
    lengths_of,
    texts,
    write_pieces,
)

EDGES = [10**power - off for power in range(1, 19) for off in (0, 1)]
NUMBERS = st.lists(st.one_of(st.integers(0, 10**9), st.integers(0, 2**62), st.sampled_from(EDGES)), max_size=30)


def written(pieces: list[Piece], count: int, before: int = SPOILED) -> list[bytes]:
    """What the pieces make of each of `count` requests, all but the first `before` bytes of it untouched by others."""
    lengths = lengths_of(pieces, count)
    ends = np.cumsum(lengths + before)
    buffer = np.full(int(lengths.sum()) + before * count, ord("!"), dtype=np.uint8)
    write_pieces(pieces, buffer, ends)
    return [buffer[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bytes_of_any_sizes_are_copied_and_nothing_beside_them(each: list[bytes]) -> None:
    assert written([texts(each)], len(each), before=0) == each
    assert written([texts(each), Constant(b"."), texts(each)], len(each), 0) == [each + b"." + each for each in each]


def test_large_cuts_are_copied_whole() -> None:
    source = np.frombuffer(np.random.default_rng(1).bytes(300_000), dtype=np.uint8)
    starts = np.arange(5) * 7
    for lengths in (200_000, np.full(5, 200_000), np.arange(5) + 131_070):
        cuts = Cuts(source, starts, lengths)
        expected = [
            source[start : start + length].tobytes()
            for start, length in zip(starts, np.broadcast_to(lengths, 5), strict=True)
        ]
        assert written([cuts], 5, before=0) == expected


@given(numbers=NUMBERS, least_digits=st.sampled_from([1, 5, 12, 20]))
def test_numbers_are_written_in_decimal(numbers: list[int], least_digits: int) -> None:
    drawn = np.array(numbers, dtype=np.int64)
    assert written([decimals(drawn, least_digits, SPOILED)], len(numbers)) == [
        b"%0*d" % (least_digits, number) for number in numbers
    ]


@given(st.lists(st.integers(-(2**62), 2**62), max_size=9))
def test_numbers_below_zero_are_written_too(numbers: list[int]) -> None:
    drawn = np.array(numbers, dtype=np.int64)
    assert written([decimals(drawn, 1, SPOILED)], len(numbers)) == [b"%d" % number for number in numbers]


@pytest.mark.parametrize(("number", "room", "kind"), [(7, 6, Cuts), (7, 7, Decimals), (10**8, 14, Cuts)])
def test_numbers_that_would_spoil_more_than_they_may_are_made_otherwise(number: int, room: int, kind: type) -> None:
    piece = decimals(np.array([number]), 1, room)
    assert type(piece) is kind
    assert written([piece], 1, before=room) == [b"%d" % number]


@given(
    numbers=st.lists(st.integers(0, 10**8 - 1), min_size=1, max_size=20),
    constant_bytes=st.integers(0, 1000),
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
)
def test_a_number_in_its_frame_has_its_length_before_it(
    numbers: list[int], constant_bytes: int, before: bytes, after: bytes
) -> None:
    piece = decimals(np.array(numbers), 1, SPOILED)
    assert isinstance(piece, Decimals)
    framed = Framed(Frame(constant_bytes, before, after), piece)
    assert written([Constant(b"<"), framed], len(numbers)) == [
        b"<%d%b%d%b" % (constant_bytes + len(str(number)), before, number, after) for number in numbers
    ]

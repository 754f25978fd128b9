from __future__ import annotations

from typing import Any

import pytest

from agent.worker.metrics.hits import HIT, MISS, hit_counter, hits_of, shown_by_nil
from common.commands import COMMANDS, parse_template


@pytest.mark.parametrize(
    ("text", "reply", "hits", "misses"),
    [
        ("GET __key__", b"", 1, 0),
        ("GET __key__", None, 0, 1),
        ("ZSCORE __key__ m", 0.0, 1, 0),
        ("ZRANK __key__ m", 0, 1, 0),
        ("HGETALL __key__", {}, 0, 1),
        ("SMEMBERS __key__", set(), 0, 1),
        ("XREAD STREAMS __key__ 0", [], 0, 1),
        ("LLEN __key__", 0, 0, 1),
        ("GETRANGE __key__ 0 1", b"", 0, 1),
        ("MGET __keys(3)__", [b"a", None, b""], 2, 1),
        ("HMGET __key__ a b", [None, None], 0, 2),
        ("SMISMEMBER __key__ a b c", [1, 0, 0], 1, 2),
        ("EXISTS __keys(3)__", 2, 2, 1),
        ("HEXISTS __key__ a", True, 1, 0),
        ("HEXISTS __key__ a", False, 0, 1),
        ("TTL __key__", -1, 1, 0),
        ("TTL __key__", -2, 0, 1),
        ("HTTL __key__ FIELDS 2 a b", [10, -2], 1, 1),
        ("TYPE __key__", b"none", 0, 1),
        ("JSON.GET __key__", None, 0, 1),
        ("JSON.GET __key__", b"{}", 1, 0),
        ("JSON.SET __key__ $ 1", b"OK", 0, 0),
        ("JSON.STRLEN __key__", 7, 0, 0),
        ("JSON.MGET __keys(2)__ $", [b"1", None], 1, 1),
        ("FT.FIND __key__", [b"1", b"2"], 1, 0),
        ("FT.FIND __key__", [], 0, 1),
        ("FT.FIND __key__", {b"a": 1}, 1, 0),
    ],
)
def test_a_reply_shows_what_was_found(text: str, reply: Any, hits: int, misses: int) -> None:
    count = hit_counter(parse_template(text))
    assert count is not None
    assert hits_of(count(reply)) == (hits, misses)


def test_hits_and_misses_add_up_as_one_number() -> None:
    assert hits_of(sum([7 * HIT, 3 * MISS, HIT + MISS])) == (8, 4)


def test_only_replies_longer_than_nil_are_told_from_nil_by_their_size() -> None:
    shown = {name for name, row in COMMANDS.items() if shown_by_nil(row.template)}
    assert {"GET", "HGET", "LPOP", "ZSCORE"} <= shown
    assert not shown & {"ZRANK", "LPOS", "TTL", "EXISTS", "LRANGE", "EVAL", "SET"}  # a reply may be ":10" or "*0"

from __future__ import annotations

import pytest

from common.commands import COMMANDS, Lookup, lookup_of, parse_template
from common.commands.lookups import _BY_NAME, looked_up


@pytest.mark.parametrize(
    ("text", "lookup", "count"),
    [
        ("GET __key__", Lookup.NIL, 1),
        ("MGET __keys(10)__", Lookup.EACH, 10),
        ("EXISTS __keys(3)__", Lookup.COUNT, 3),
        ("EXISTS a b", Lookup.COUNT, 2),
        ("SISMEMBER __key__ x", Lookup.COUNT, 1),
        ("JSON.MGET __keys(2)__ $", Lookup.ANY, 2),
        ("EVALSHA __sha(a)__ 1 __key__", Lookup.ANY, 1),
        ("OBJECT ENCODING __key__", Lookup.ANY, 1),
        ("CONFIG GET maxmemory", None, 0),
        ("SET __key__ __data__", None, 1),
        ("DEL __key__", None, 1),
    ],
)
def test_a_lookup_follows_from_the_command(text: str, lookup: Lookup | None, count: int) -> None:
    template = parse_template(text)
    assert (lookup_of(template), looked_up(template)) == (lookup, count)


def test_lookups_name_commands_of_the_table() -> None:
    assert _BY_NAME.keys() <= COMMANDS.keys()

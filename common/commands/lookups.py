"""Which replies show whether data was found.

A lookup is a read or a pop of a key, or of an item at a key (a field, a member, an index). Writes are no lookups, even
if the reply shows whether something was there.
"""

from __future__ import annotations

import enum

from common.commands.table import COMMANDS
from common.commands.template import KEY_PLACEHOLDERS, Template


class Lookup(enum.Enum):
    """How a reply shows what was found.

    NIL: nil is a miss, everything else a hit; only nil is as short as nil. VALUE: nil and an empty collection are
    misses. SIZE: 0 and an empty string are misses, too. EACH: one lookup per item, nil is a miss. EACH_FLAG: one lookup
    per item, 0 is a miss. COUNT: the reply is the number of keys or members that were found. STATE: -2 and "none" are
    misses, in a list for each item. ANY: the type of the reply decides, because the command is unknown. Nil and an
    empty array are misses, a string and an array are hits; an array with an item for each of several keys is one lookup
    per item. OK and numbers do not tell.
    """

    NIL = "nil"
    VALUE = "value"
    SIZE = "size"
    EACH = "each"
    EACH_FLAG = "each flag"
    COUNT = "count"
    STATE = "state"
    ANY = "any"


_BY_NAME: dict[str, Lookup] = {
    **dict.fromkeys(
        (
            *("DUMP", "GET", "GETDEL", "GETEX", "GETSET", "RANDOMKEY", "HGET", "GEODIST", "ZSCORE"),
            *("LINDEX", "LMOVE", "LMPOP", "LPOP", "RPOP", "RPOPLPUSH", "ZMPOP"),
            *("BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN"),
            *("XREAD", "XREADGROUP"),
        ),
        Lookup.NIL,
    ),
    **dict.fromkeys(
        (
            *("HGETALL", "HKEYS", "HRANDFIELD", "HVALS", "LPOS", "LRANGE", "SORT", "SORT_RO"),
            *("SMEMBERS", "SPOP", "SRANDMEMBER", "XRANGE", "XREVRANGE", "GEOSEARCH"),
            *("ZPOPMAX", "ZPOPMIN", "ZRANDMEMBER", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANK"),
            *("ZREVRANGE", "ZREVRANK"),
        ),
        Lookup.VALUE,
    ),
    **dict.fromkeys(("GETRANGE", "HLEN", "HSTRLEN", "LLEN", "SCARD", "STRLEN", "SUBSTR", "ZCARD"), Lookup.SIZE),
    **dict.fromkeys(("GEOHASH", "GEOPOS", "HMGET", "MGET", "ZMSCORE"), Lookup.EACH),
    "SMISMEMBER": Lookup.EACH_FLAG,
    **dict.fromkeys(("EXISTS", "HEXISTS", "SISMEMBER", "TOUCH"), Lookup.COUNT),
    **dict.fromkeys(("EXPIRETIME", "HTTL", "PEXPIRETIME", "PTTL", "TTL", "TYPE"), Lookup.STATE),
    **dict.fromkeys(("EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO"), Lookup.ANY),
}
_ONE_MEMBER = frozenset({"HEXISTS", "SISMEMBER"})


def lookup_of(template: Template) -> Lookup | None:
    """How the replies to a command show what was found; None if they do not. Of the commands that the table does not
    have, only those with `__key__` look something up."""
    found = _BY_NAME.get(template.name)
    if found is not None or template.name in COMMANDS:
        return found
    return Lookup.ANY if template.count(*KEY_PLACEHOLDERS) else None


def looked_up(template: Template) -> int:
    """How many keys or members a call whose reply is a COUNT looks up, or how many keys any other call names."""
    if _BY_NAME.get(template.name) is not Lookup.COUNT:
        return template.count(*KEY_PLACEHOLDERS)
    return 1 if template.name in _ONE_MEMBER else len(template.arguments) - 1

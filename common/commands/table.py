"""The command table: the commands that a plan may use by name, and their properties.

The templates of a group fit each other: HGET reads the fields that HSET writes. For any other command, or another form
of these, a plan gives a template.
"""

from __future__ import annotations

import difflib
import enum

import msgspec

from common.commands.template import Template, parse_template
from common.units import show


class KeyType(enum.Enum):
    """The type of value that a command expects at its keys, or writes there."""

    NOTHING = "no keys"
    ANYTHING = "anything"
    STRING = "string"
    NUMBER = "number"
    HASH = "hash"
    LIST = "list"
    SET = "set"
    SORTED_SET = "sorted set"
    STREAM = "stream"
    HYPERLOGLOG = "HyperLogLog"
    GEO = "geo"
    DUMP = "nothing yet"


class ReplyKind(enum.Enum):
    """The kind of a reply: the value of the key; the values of all keys, in order; a status ("+OK"), which redis-py
    returns like a string; anything else."""

    VALUE = "value"
    VALUES = "values"
    STATUS = "status"
    OTHER = "other"


class TimeoutArgument(msgspec.Struct, frozen=True):
    """Which argument of a blocking command is its timeout. place: its index (the command's name is 0), or the word
    that precedes it. in_ms: True for milliseconds, False for seconds."""

    place: int | str
    in_ms: bool = False

    def seconds(self, template: Template) -> float | None:
        """How long a call may wait, 0 for no limit; None if the template draws the timeout, or has no timeout."""
        arguments = template.arguments
        index = self.place if isinstance(self.place, int) else _index_after(self.place, template)
        if index is None or not -len(arguments) <= index < len(arguments):
            return None
        argument = arguments[index]
        try:
            number = float(argument) if isinstance(argument, bytes) else None
        except ValueError:
            return None  # not a number: the server will report it
        return number / 1000 if number is not None and self.in_ms else number


def _index_after(word: str, template: Template) -> int | None:
    """The index after the first argument that equals this word, ignoring case."""
    for index, argument in enumerate(template.arguments):
        if isinstance(argument, bytes) and argument.upper() == word.encode():
            return index + 1
    return None


class CommandSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    group: as in the documentation of Redis. writes: it may change the data. expiring: the template for a plan with an
    expiry. timeout: only for a blocking command. subscribes: it has no usual reply; messages follow. needs: what must
    exist before the command can be issued, as text; "" for nothing. routed: redis-py's cluster client can send it to
    one node.
    """

    template: Template
    group: str
    writes: bool
    summary: str
    key_type: KeyType
    reply: ReplyKind = ReplyKind.OTHER
    expiring: Template | None = None
    timeout: TimeoutArgument | None = None
    subscribes: bool = False
    needs: str = ""
    routed: bool = True


_GROUPS: dict[str, KeyType] = {
    "string": KeyType.STRING,
    "generic": KeyType.ANYTHING,
    "hash": KeyType.HASH,
    "list": KeyType.LIST,
    "set": KeyType.SET,
    "sortedset": KeyType.SORTED_SET,
    "stream": KeyType.STREAM,
    "bitmap": KeyType.STRING,
    "hyperloglog": KeyType.HYPERLOGLOG,
    "geo": KeyType.GEO,
    "pubsub": KeyType.NOTHING,
    "scripting": KeyType.STRING,
    "connection": KeyType.NOTHING,
    "server": KeyType.NOTHING,
}
"""The type of the keys of most commands in each group."""


def _row(
    template: str,
    group: str,
    summary: str,
    *,
    writes: bool = False,
    key_type: KeyType | None = None,
    reply: ReplyKind = ReplyKind.OTHER,
    expiring: str | None = None,
    timeout: TimeoutArgument | None = None,
    subscribes: bool = False,
    needs: str = "",
    routed: bool = True,
) -> CommandSpec:
    return CommandSpec(
        template=parse_template(template),
        group=group,
        writes=writes,
        summary=summary,
        key_type=key_type or _GROUPS[group],
        reply=reply,
        expiring=parse_template(expiring) if expiring else None,
        timeout=timeout,
        subscribes=subscribes,
        needs=needs,
        routed=routed,
    )


_VALUE, _VALUES, _STATUS = ReplyKind.VALUE, ReplyKind.VALUES, ReplyKind.STATUS
_FIELD, _MEMBER, _SCORE = "field:__rand(1,10)__", "member:__rand(1,1000)__", "__rand(1,1000000)__"
_LAST, _FIRST, _BLOCK = TimeoutArgument(-1), TimeoutArgument(1), TimeoutArgument("BLOCK", in_ms=True)
_GROUP = "a consumer group: XGROUP CREATE __key__ stampede 0 MKSTREAM in setup"
_IDS = "stream entries in the previous reply: only in `then`"
_COORDINATES = "__rand(-179,179)__.__rand(0,9999)__ __rand(-84,84)__.__rand(0,9999)__"
_READS = "'return redis.call(\"GET\", KEYS[1])'"
_WRITES = "'redis.call(\"SET\", KEYS[1], ARGV[1]) return 1'"

_ROWS: tuple[CommandSpec, ...] = (
    # The eight most common commands come first.
    _row("SET __key__ __data__", "string", "set a key to a value", writes=True, reply=_STATUS,
         expiring="SET __key__ __data__ EX __ttl__"),
    _row("GET __key__", "string", "read a key", reply=_VALUE),
    _row("INCR __key__", "string", "add one to a counter", writes=True, key_type=KeyType.NUMBER),
    _row("DEL __key__", "generic", "delete a key", writes=True),
    _row("LPUSH __key__ __data__", "list", "push a value to the head of a list", writes=True),
    _row("LPOP __key__", "list", "pop the head of a list", writes=True, reply=_VALUE),
    _row("LRANGE __key__ 0 9", "list", "read the first ten values of a list", reply=_VALUE),
    _row("PING", "connection", "check that the server answers", reply=_STATUS),

    _row("APPEND __key__ __data__", "string", "append to a value", writes=True),
    _row("DECR __key__", "string", "subtract one from a counter", writes=True, key_type=KeyType.NUMBER),
    _row("DECRBY __key__ __rand(1,100)__", "string", "subtract a number from a counter", writes=True,
         key_type=KeyType.NUMBER),
    _row("GETDEL __key__", "string", "read a key and delete it", writes=True, reply=_VALUE),
    _row("GETEX __key__ EX 60", "string", "read a key and set its expiry", writes=True, reply=_VALUE,
         expiring="GETEX __key__ EX __ttl__"),
    _row("GETRANGE __key__ 0 9", "string", "read the first ten bytes of a value"),
    _row("GETSET __key__ __data__", "string", "set a key and read its old value", writes=True, reply=_VALUE),
    _row("INCRBY __key__ __rand(1,100)__", "string", "add a number to a counter", writes=True, key_type=KeyType.NUMBER),
    _row("INCRBYFLOAT __key__ 0.5", "string", "add a fraction to a counter", writes=True, key_type=KeyType.NUMBER),
    _row("LCS __keys(2)__", "string", "find the longest common subsequence of two values"),
    _row("MGET __keys(10)__", "string", "read ten keys", reply=_VALUES),
    _row("MSET __pairs(10)__", "string", "set ten keys", writes=True, reply=_STATUS),
    _row("MSETNX __pairs(2)__", "string", "set two keys if neither exists", writes=True),
    _row("PSETEX __key__ 60000 __data__", "string", "set a key with an expiry in milliseconds", writes=True,
         reply=_STATUS),
    _row("SETEX __key__ 60 __data__", "string", "set a key with an expiry", writes=True, reply=_STATUS,
         expiring="SETEX __key__ __ttl__ __data__"),
    _row("SETNX __key__ __data__", "string", "set a key unless it exists", writes=True),
    _row("SETRANGE __key__ 0 __data__", "string", "overwrite the beginning of a value", writes=True),
    _row("STRLEN __key__", "string", "the length of a value"),
    _row("SUBSTR __key__ 0 9", "string", "read the first ten bytes of a value, by GETRANGE's old name"),

    _row("COPY __keys(2)__ REPLACE", "generic", "copy a key to another", writes=True),
    _row("DUMP __key__", "generic", "read a key in serialized form"),
    _row("EXISTS __keys(3)__", "generic", "how many of three keys exist"),
    _row("EXPIRE __key__ 60", "generic", "set a key's expiry", writes=True, expiring="EXPIRE __key__ __ttl__"),
    _row("EXPIREAT __key__ 4102444800", "generic", "set when a key expires", writes=True),
    _row("EXPIRETIME __key__", "generic", "when a key expires"),
    _row("PERSIST __key__", "generic", "remove a key's expiry", writes=True),
    _row("PEXPIRE __key__ 60000", "generic", "set a key's expiry in milliseconds", writes=True),
    _row("PEXPIREAT __key__ 4102444800000", "generic", "set when a key expires in milliseconds", writes=True),
    _row("PEXPIRETIME __key__", "generic", "when a key expires in milliseconds"),
    _row("PTTL __key__", "generic", "a key's time to live in milliseconds"),
    _row("RANDOMKEY", "generic", "the name of a random key", key_type=KeyType.NOTHING),
    _row("RENAME __keys(2)__", "generic", "rename a key", writes=True, reply=_STATUS,
         needs="an existing key, otherwise the reply is an error"),
    _row("RENAMENX __keys(2)__", "generic", "rename a key unless the new name exists", writes=True,
         needs="an existing key, otherwise the reply is an error"),
    _row("SCAN __cursor__ COUNT 100", "generic", "iterate over the names of all keys", key_type=KeyType.NOTHING,
         routed=False),
    _row("SORT __key__ ALPHA", "list", "read a list in sorted order", writes=True),
    _row("SORT_RO __key__ ALPHA", "list", "read a list in sorted order, without writing"),
    _row("TOUCH __keys(3)__", "generic", "update the last access time of three keys"),
    _row("TTL __key__", "generic", "a key's time to live in seconds"),
    _row("TYPE __key__", "generic", "the type of a key's value", reply=_STATUS),
    _row("UNLINK __keys(3)__", "generic", "delete three keys in the background", writes=True),

    _row(f"HDEL __key__ {_FIELD}", "hash", "delete a field", writes=True),
    _row(f"HEXISTS __key__ {_FIELD}", "hash", "whether a field exists"),
    _row(f"HEXPIRE __key__ 60 FIELDS 1 {_FIELD}", "hash", "set a field's expiry", writes=True),
    _row(f"HGET __key__ {_FIELD}", "hash", "read a field", reply=_VALUE),
    _row("HGETALL __key__", "hash", "read all fields and values"),
    _row(f"HINCRBY __key__ counter {_SCORE}", "hash", "add a number to a field", writes=True),
    _row("HINCRBYFLOAT __key__ fraction 0.5", "hash", "add a fraction to a field", writes=True),
    _row("HKEYS __key__", "hash", "read all fields"),
    _row("HLEN __key__", "hash", "how many fields there are"),
    _row(f"HMGET __key__ {_FIELD} {_FIELD} {_FIELD}", "hash", "read three fields"),
    _row(f"HMSET __key__ {_FIELD} __data__", "hash", "set fields, by HSET's old name", writes=True, reply=_STATUS),
    _row("HRANDFIELD __key__ 3", "hash", "read three random fields"),
    _row("HSCAN __key__ __cursor__ COUNT 100", "hash", "iterate over the fields of a hash"),
    _row(f"HSET __key__ {_FIELD} __data__", "hash", "set a field", writes=True),
    _row(f"HSETNX __key__ {_FIELD} __data__", "hash", "set a field unless it exists", writes=True),
    _row(f"HSTRLEN __key__ {_FIELD}", "hash", "the length of a field's value"),
    _row(f"HTTL __key__ FIELDS 1 {_FIELD}", "hash", "a field's time to live in seconds"),
    _row("HVALS __key__", "hash", "read all values"),

    _row("BLMOVE __keys(2)__ LEFT RIGHT 1", "list", "move a value between lists, or wait for one", writes=True,
         timeout=_LAST),
    _row("BLMPOP 1 2 __keys(2)__ LEFT COUNT 2", "list", "pop from the first list that has values, or wait",
         writes=True, timeout=_FIRST),
    _row("BLPOP __key__ 1", "list", "pop the head of a list, or wait for one", writes=True, timeout=_LAST),
    _row("BRPOP __key__ 1", "list", "pop the tail of a list, or wait for one", writes=True, timeout=_LAST),
    _row("BRPOPLPUSH __keys(2)__ 1", "list", "move a tail to a head, or wait for one", writes=True, timeout=_LAST),
    _row("LINDEX __key__ 0", "list", "read the head of a list", reply=_VALUE),
    _row("LINSERT __key__ BEFORE pivot __data__", "list", "insert before a value", writes=True),
    _row("LLEN __key__", "list", "the length of a list"),
    _row("LMOVE __keys(2)__ LEFT RIGHT", "list", "move a value between lists", writes=True),
    _row("LMPOP 2 __keys(2)__ LEFT COUNT 2", "list", "pop from the first list that has values", writes=True),
    _row("LPOS __key__ pivot", "list", "the position of a value"),
    _row("LPUSHX __key__ __data__", "list", "push to the head of a list that exists", writes=True),
    _row("LREM __key__ 1 pivot", "list", "remove a value", writes=True),
    _row("LSET __key__ 0 __data__", "list", "replace the head of a list", writes=True, reply=_STATUS,
         needs="an existing list, otherwise the reply is an error"),
    _row("LTRIM __key__ 0 999", "list", "trim a list to its first thousand values", writes=True, reply=_STATUS),
    _row("RPOP __key__", "list", "pop the tail of a list", writes=True, reply=_VALUE),
    _row("RPOPLPUSH __keys(2)__", "list", "move a tail to a head", writes=True),
    _row("RPUSH __key__ __data__", "list", "push a value to the tail of a list", writes=True),
    _row("RPUSHX __key__ __data__", "list", "push to the tail of a list that exists", writes=True),

    _row(f"SADD __key__ {_MEMBER}", "set", "add a member", writes=True),
    _row("SCARD __key__", "set", "how many members there are"),
    _row("SDIFF __keys(2)__", "set", "members of the first set that are not in the second"),
    _row("SDIFFSTORE __keys(3)__", "set", "store the difference of two sets", writes=True),
    _row("SINTER __keys(2)__", "set", "members of both sets"),
    _row("SINTERCARD 2 __keys(2)__", "set", "how many members two sets have in common"),
    _row("SINTERSTORE __keys(3)__", "set", "store the intersection of two sets", writes=True),
    _row(f"SISMEMBER __key__ {_MEMBER}", "set", "whether a member exists"),
    _row("SMEMBERS __key__", "set", "read all members"),
    _row(f"SMISMEMBER __key__ {_MEMBER} {_MEMBER}", "set", "whether two members exist"),
    _row(f"SMOVE __keys(2)__ {_MEMBER}", "set", "move a member to another set", writes=True),
    _row("SPOP __key__", "set", "pop a random member", writes=True),
    _row("SRANDMEMBER __key__", "set", "read a random member"),
    _row(f"SREM __key__ {_MEMBER}", "set", "remove a member", writes=True),
    _row("SSCAN __key__ __cursor__ COUNT 100", "set", "iterate over the members of a set"),
    _row("SUNION __keys(2)__", "set", "members of either set"),
    _row("SUNIONSTORE __keys(3)__", "set", "store the union of two sets", writes=True),

    _row("BZMPOP 1 1 __key__ MIN", "sortedset", "pop the lowest of the first set with members, or wait", writes=True,
         timeout=_FIRST),
    _row("BZPOPMAX __key__ 1", "sortedset", "pop the highest, or wait for one", writes=True, timeout=_LAST),
    _row("BZPOPMIN __key__ 1", "sortedset", "pop the lowest, or wait for one", writes=True, timeout=_LAST),
    _row(f"ZADD __key__ {_SCORE} {_MEMBER}", "sortedset", "add a member, or change its score", writes=True),
    _row("ZCARD __key__", "sortedset", "how many members there are"),
    _row("ZCOUNT __key__ 1 500000", "sortedset", "how many members have a score in a range"),
    _row("ZDIFF 2 __keys(2)__", "sortedset", "members of the first sorted set that are not in the second"),
    _row("ZDIFFSTORE __key__ 2 __keys(2)__", "sortedset", "store the difference of two sorted sets", writes=True),
    _row(f"ZINCRBY __key__ 1 {_MEMBER}", "sortedset", "add to a member's score", writes=True),
    _row("ZINTER 2 __keys(2)__", "sortedset", "members of both sorted sets"),
    _row("ZINTERCARD 2 __keys(2)__", "sortedset", "how many members two sorted sets have in common"),
    _row("ZINTERSTORE __key__ 2 __keys(2)__", "sortedset", "store the intersection of two sorted sets", writes=True),
    _row("ZLEXCOUNT __key__ - +", "sortedset", "how many members are in a range of names"),
    _row("ZMPOP 1 __key__ MIN", "sortedset", "pop the lowest of the first set with members", writes=True),
    _row(f"ZMSCORE __key__ {_MEMBER} {_MEMBER}", "sortedset", "the scores of two members"),
    _row("ZPOPMAX __key__", "sortedset", "pop the highest", writes=True),
    _row("ZPOPMIN __key__", "sortedset", "pop the lowest", writes=True),
    _row("ZRANDMEMBER __key__", "sortedset", "read a random member"),
    _row("ZRANGE __key__ 0 9", "sortedset", "read the ten lowest"),
    _row("ZRANGEBYLEX __key__ - + LIMIT 0 10", "sortedset", "read ten members in a range of names"),
    _row("ZRANGEBYSCORE __key__ 1 500000 LIMIT 0 10", "sortedset", "read ten members in a range of scores"),
    _row("ZRANGESTORE __keys(2)__ 0 9", "sortedset", "store the ten lowest", writes=True),
    _row(f"ZRANK __key__ {_MEMBER}", "sortedset", "the rank of a member"),
    _row(f"ZREM __key__ {_MEMBER}", "sortedset", "remove a member", writes=True),
    _row("ZREMRANGEBYRANK __key__ 0 -1001", "sortedset", "keep only the thousand highest", writes=True),
    _row("ZREMRANGEBYSCORE __key__ 0 1", "sortedset", "remove members in a range of scores", writes=True),
    _row("ZREVRANGE __key__ 0 9", "sortedset", "read the ten highest"),
    _row(f"ZREVRANK __key__ {_MEMBER}", "sortedset", "the rank of a member from the top"),
    _row("ZSCAN __key__ __cursor__ COUNT 100", "sortedset", "iterate over the members of a sorted set"),
    _row(f"ZSCORE __key__ {_MEMBER}", "sortedset", "the score of a member"),
    _row("ZUNION 2 __keys(2)__", "sortedset", "members of either sorted set"),
    _row("ZUNIONSTORE __key__ 2 __keys(2)__", "sortedset", "store the union of two sorted sets", writes=True),

    _row("XACK __key__ stampede __ids__", "stream", "acknowledge entries", writes=True, needs=_IDS),
    _row("XADD __key__ * data __data__", "stream", "append an entry", writes=True),
    _row("XAUTOCLAIM __key__ stampede worker:__thread__ 60000 0 COUNT 10", "stream",
         "claim entries that others left pending", writes=True, needs=_GROUP),
    _row("XCLAIM __key__ stampede worker:__thread__ 60000 __ids__", "stream", "claim these entries", writes=True,
         needs=_IDS),
    _row("XDEL __key__ __ids__", "stream", "delete entries", writes=True, needs=_IDS),
    _row("XLEN __key__", "stream", "how many entries there are"),
    _row("XPENDING __key__ stampede", "stream", "entries that were delivered but not acknowledged", needs=_GROUP),
    _row("XRANGE __key__ - + COUNT 10", "stream", "read the ten oldest entries"),
    _row("XREAD COUNT 10 BLOCK 1000 STREAMS __key__ 0", "stream", "read entries, or wait for one", timeout=_BLOCK),
    _row("XREADGROUP GROUP stampede worker:__thread__ COUNT 10 BLOCK 1000 STREAMS __key__ >", "stream",
         "read entries that are new to the group, or wait", writes=True, timeout=_BLOCK, needs=_GROUP),
    _row("XREVRANGE __key__ + - COUNT 10", "stream", "read the ten newest entries"),
    _row("XTRIM __key__ MAXLEN ~ 10000", "stream", "trim a stream to its newest entries, about ten thousand",
         writes=True),

    _row("BITCOUNT __key__", "bitmap", "how many bits are set"),
    _row("BITFIELD __key__ INCRBY u8 __rand(0,1000)__ 1", "bitmap", "add to a small number within a value",
         writes=True),
    _row("BITFIELD_RO __key__ GET u8 __rand(0,1000)__", "bitmap", "read a small number within a value"),
    _row("BITOP OR __keys(3)__", "bitmap", "store the bits of two values, combined by OR", writes=True),
    _row("BITPOS __key__ 1", "bitmap", "the position of the first set bit"),
    _row("GETBIT __key__ __rand(0,10000)__", "bitmap", "read a bit"),
    _row("SETBIT __key__ __rand(0,10000)__ 1", "bitmap", "set a bit", writes=True),

    _row("PFADD __key__ __data__", "hyperloglog", "count a value once", writes=True),
    _row("PFCOUNT __key__", "hyperloglog", "about how many values were counted"),
    _row("PFMERGE __keys(3)__", "hyperloglog", "store the union of two counts", writes=True, reply=_STATUS),

    _row(f"GEOADD __key__ {_COORDINATES} {_MEMBER}", "geo", "add a place", writes=True),
    _row(f"GEODIST __key__ {_MEMBER} {_MEMBER}", "geo", "the distance of two places"),
    _row(f"GEOHASH __key__ {_MEMBER}", "geo", "the geohash of a place"),
    _row(f"GEOPOS __key__ {_MEMBER}", "geo", "the position of a place"),
    _row("GEOSEARCH __key__ FROMLONLAT __rand(-179,179)__ __rand(-84,84)__ BYRADIUS 500 km COUNT 10", "geo",
         "places within 500 km"),
    _row("GEOSEARCHSTORE __keys(2)__ FROMLONLAT __rand(-179,179)__ __rand(-84,84)__ BYRADIUS 500 km COUNT 10", "geo",
         "store the places within 500 km", writes=True),

    _row("PUBLISH channel:__rand(1,10)__ __message__", "pubsub", "send to all subscribers of a channel"),
    _row("SPUBLISH channel:__rand(1,10)__ __message__", "pubsub", "send to all subscribers of a sharded channel"),
    _row("SUBSCRIBE channel:__rand(1,10)__", "pubsub", "receive the messages of a channel", subscribes=True),
    _row("SSUBSCRIBE channel:__rand(1,10)__", "pubsub", "receive the messages of a sharded channel",
         subscribes=True),

    _row(f"EVAL {_WRITES} 1 __key__ __data__", "scripting", "run a script that is in the call", writes=True),
    _row(f"EVAL_RO {_READS} 1 __key__", "scripting", "run a script that is in the call and only reads"),
    _row("EVALSHA __sha(main)__ 1 __key__ __data__", "scripting", "run a script by its digest", writes=True,
         needs="a script of the plan called main"),
    _row("EVALSHA_RO __sha(main)__ 1 __key__", "scripting", "run a script by its digest that only reads",
         needs="a script of the plan called main"),
    _row("FCALL stampede 1 __key__ __data__", "scripting", "call a function", writes=True,
         needs="a function called stampede: FUNCTION LOAD in setup"),
    _row("FCALL_RO stampede 1 __key__", "scripting", "call a function that only reads",
         needs="a function called stampede: FUNCTION LOAD in setup"),

    _row("ECHO __data__", "connection", "send a value, and get it back", routed=False),
    _row("DBSIZE", "server", "how many keys there are"),
    _row("LASTSAVE", "server", "when the data was last saved"),
    _row("LOLWUT", "server", "the version, as a picture", routed=False),
    _row("TIME", "server", "the server's clock"),
)  # fmt: skip

COMMANDS: dict[str, CommandSpec] = {row.template.name: row for row in _ROWS}
"""Every row by the name of its command."""

SUBSCRIBING = frozenset(name for name, row in COMMANDS.items() if row.subscribes)
"""Commands that subscribe. Each worker issues them on separate connections, which then receive messages."""

PUBLISHING = frozenset({"PUBLISH", "SPUBLISH"})
"""Commands that publish. The reply is the number of subscribers that received the message."""

_WAITING = {"WAIT": TimeoutArgument(-1, in_ms=True), "WAITAOF": TimeoutArgument(-1, in_ms=True)}
"""Blocking commands without a row."""


def find_command(text: str, expiring: bool = False) -> Template:
    """The template for a plan's `command`: a name of the table, a template, or "=NAME" for a command without arguments
    that is not in the table.

    expiring: the plan has an expiry. Raises ValueError for a single word that is not in the table, and like
    `parse_template`.
    """
    template = parse_template(text)
    if len(template.arguments) > 1:
        return template
    if template.name.startswith("=") and len(template.name) > 1:
        return parse_template(text.strip().removeprefix("="))
    row = COMMANDS.get(template.name)
    if row is not None:
        return row.expiring if expiring and row.expiring else row.template
    near = difflib.get_close_matches(template.name, COMMANDS, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"write ={template.name} if it takes no arguments"
    raise ValueError(
        f'expected a name of the command table, or a template such as "SET __key__ __data__", '
        f"got {show(text)}; {remedy}"
    )


def blocking_timeout_s(template: Template) -> float | None:
    """How many seconds a call of this template may wait, 0 for no limit; None if the command does not block, or the
    template draws the timeout."""
    row = COMMANDS.get(template.name)
    timeout = _WAITING.get(template.name) if row is None else row.timeout
    return timeout.seconds(template) if timeout else None

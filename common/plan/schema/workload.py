"""What is issued: commands, keys and values, and the data before and after the load."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from msgspec import Meta, field

from common.commands.splitting import as_text
from common.plan.schema.base import (
    DATA,
    WORKLOAD,
    AtLeastOne,
    Name,
    NameOrNone,
    NotNegative,
    Option,
    Section,
    Share,
    Weight,
    described,
    setting,
)
from common.plan.schema.short_forms import (
    both_ends,
    preload_switch,
    set_get_ratio,
    size_range,
    time_range,
    weighted_sizes,
)
from common.plan.schema.visibility import Stamps
from common.units import Bytes, Count, Seconds

DEFAULT_PROFILE = "basic_rw"
"""The built-in workload of a plan that names neither a profile nor commands."""


class When(enum.Enum):
    """The replies after which a following command is issued: all; replies with a value; replies without one."""

    ALWAYS = "always"
    HIT = "hit"
    MISS = "miss"


class Distribution(enum.Enum):
    """How key numbers are drawn from their range.

    SEQUENTIAL: each worker thread goes through the whole range in order. PARALLEL: each worker thread goes through its
    own part of the range in order. ZIPFIAN: number n has a probability proportional to 1 / n ** exponent. LATEST:
    zipfian, counted back from the newest key. HOTSPOT: the first numbers of the range, a share `hot_keys`, get a share
    `hot_operations` of the draws.
    """

    UNIFORM = "uniform"
    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"
    GAUSSIAN = "gaussian"
    ZIPFIAN = "zipfian"
    LATEST = "latest"
    HOTSPOT = "hotspot"


class CleanUp(enum.Enum):
    """What is deleted after the run: nothing, or every key that the plan may have written (by prefix and number)."""

    NONE = "none"
    KEYS = "keys"


class ValueKind(enum.Enum):
    """The bytes of values: any bytes; letters, digits, "-" and "_"; a JSON object with one field of such text."""

    BINARY = "binary"
    TEXT = "text"
    JSON = "json"


class Then(Section, frozen=True, kw_only=True):
    """A command that follows another one, on the same key. `__ids__` in it are the stream entries of the reply."""

    command: Annotated[str, described('a command of the table, or a template such as "XACK __key__ group __ids__"')]
    when: Annotated[When, described("which replies it follows: {choices}")] = When.ALWAYS
    name: Annotated[NameOrNone, described("label of its row in reports")] = ""


class Command(Section, frozen=True, kw_only=True):
    """One entry of the mix. It uses the workload's keys, overridden by its own settings."""

    heading: ClassVar[str] = WORKLOAD

    command: Annotated[
        str,
        described(
            'a command of the table, or a template such as "SET __key__ __data__"',
            Option(
                flag="--command",
                metavar="TEMPLATE",
                repeatable=True,
                parse=as_text,
                help='a command of the mix, such as GET or "SET __key__ __data__"; may be repeated',
            ),
        ),
    ]
    weight: Annotated[
        Weight,
        described(
            "how often it is drawn, relative to the other entries; 0 for never",
            Option(
                flag="--command-ratio",
                metavar="WEIGHT",
                repeatable=True,
                help="weight of the --command at the same position",
                default="1 each",
            ),
        ),
    ] = 1.0
    name: Annotated[
        NameOrNone,
        described(
            "label of its row in reports; commands of the same template and name share a row",
            Option(
                flag="--command-name",
                metavar="NAME",
                repeatable=True,
                help="label of the row of the --command at the same position",
                default="the command's name",
            ),
        ),
    ] = ""
    key_prefix: Annotated[str | None, described("its own `keys.prefix`")] = None
    key_minimum: Annotated[Count | None, described("its own `keys.minimum`")] = None
    key_maximum: Annotated[Count | None, described("its own `keys.maximum`")] = None
    key_distribution: Annotated[Distribution | None, described("its own `keys.distribution`")] = None
    then: Annotated[tuple[Then, ...], described("commands that follow each reply, on the same key")] = ()


def part_of_total(total: int, thread: int, threads: int) -> range:
    """One worker thread's part of 0..total-1. thread: its number among the fleet's `threads`. Parts are adjacent. The
    first parts may have one number more than the others.

    Keys and operations are divided in the same way, so a thread with as many operations as keys uses each key once.
    """
    each, rest = divmod(total, threads)
    begin = thread * each + min(thread, rest)
    return range(begin, begin + each + (thread < rest))


class Keys(Section, frozen=True, kw_only=True):
    """Keys are `prefix` followed by a whole number from minimum to maximum, both included."""

    heading: ClassVar[str] = DATA

    prefix: Annotated[str, setting("--key-prefix", help="what keys begin with")] = "stampede:"
    minimum: Annotated[Count, setting("--key-minimum", help="smallest key number")] = Count(1)
    maximum: Annotated[Count, setting("--key-maximum", help="largest key number, included")] = Count(1_000_000)
    distribution: Annotated[
        Distribution, setting("--key-distribution", metavar="KIND", help="how key numbers are drawn: {choices}")
    ] = Distribution.UNIFORM
    exponent: Annotated[float, Meta(ge=0, le=10), setting("--key-zipf-exp", help="exponent of zipfian and latest")] = (
        0.99
    )
    median: Annotated[
        Count | None, setting("--key-median", default="middle of the range", help="centre of gaussian")
    ] = None
    deviation: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        setting("--key-stddev", default="a sixth of the range", help="standard deviation of gaussian"),
    ] = None
    hot_keys: Annotated[
        Share, setting("--hot-keys", metavar="SHARE", help="share of the keys that hotspot prefers")
    ] = 0.2
    hot_operations: Annotated[
        Share, setting("--hot-operations", metavar="SHARE", help="share of the draws that are among the hot keys")
    ] = 0.8
    per_hash_tag: Annotated[
        NotNegative | None,
        setting(
            "--keys-per-hash-tag",
            default="as the plan needs",
            help="consecutive key numbers that share a slot of a cluster, by a hash tag; 0 for no hash tags",
        ),
    ] = None

    @property
    def numbers(self) -> range:
        """The numbers of all keys."""
        return range(int(self.minimum), int(self.maximum) + 1)

    def part(self, thread: int, threads: int) -> range:
        """One worker thread's part of the numbers, if the fleet's worker threads divide them."""
        own = part_of_total(len(self.numbers), thread, threads)
        return self.numbers[own.start : own.stop]


class SizeWeight(Section, frozen=True, kw_only=True):
    """One size of a weighted list."""

    size: Annotated[Bytes, described("size of a value")]
    weight: Annotated[Weight, described("how often it is drawn, relative to the other sizes")] = 1.0


class Values(Section, frozen=True, kw_only=True):
    """Value sizes are drawn uniformly from minimum to maximum, both included; or by weight from `sizes`."""

    heading: ClassVar[str] = DATA

    minimum_bytes: Annotated[Bytes, described("smallest size")] = field(default=Bytes(32), name="minimum")
    maximum_bytes: Annotated[Bytes, described("largest size, included")] = field(default=Bytes(32), name="maximum")
    sizes: Annotated[
        tuple[SizeWeight, ...],
        described(
            "sizes with weights",
            Option(
                flag="--data-size-list",
                metavar="SIZE:WEIGHT,...",
                parse=weighted_sizes,
                help="sizes drawn by weight from this list",
            ),
        ),
    ] = ()
    sizes_file: Annotated[
        str | None,
        setting("--data-size-file", metavar="FILE", help="sizes drawn from this file's lines of SIZE WEIGHT"),
    ] = None
    kind: Annotated[
        ValueKind,
        setting(
            "--data-kind", help="content of values: any bytes, letters and digits, or a JSON object (8 bytes or more)"
        ),
    ] = ValueKind.BINARY
    compressible: Annotated[
        Share,
        setting("--data-compressible", metavar="SHARE", help="share of each value that a compressor can remove"),
    ] = 0.0
    verify: Annotated[
        bool,
        setting("--data-verify", is_switch=True, help="values contain their key and a checksum, and reads check both"),
    ] = False


class Expiry(Section, frozen=True, kw_only=True):
    """Time to live, drawn uniformly from minimum to maximum in whole seconds. The table's `SET` passes it as EX; in
    templates it is `__ttl__`. Both 0: no time to live."""

    minimum_s: Annotated[Seconds, described("shortest time to live")] = field(default=Seconds(0), name="minimum")
    maximum_s: Annotated[Seconds, described("longest time to live")] = field(default=Seconds(0), name="maximum")


class Script(Section, frozen=True, kw_only=True):
    """A Lua script, loaded before the run. Templates use its digest: `EVALSHA __sha(name)__ ...`."""

    name: Annotated[Name, described("name in `__sha(name)__`")]
    lua: Annotated[str, described("the source")]


class Preload(Section, frozen=True, kw_only=True):
    """A command that is issued once for each key of the range before the run. It uses the workload's keys, overridden
    by its own settings."""

    command: Annotated[str, described("a command of the table that writes, or a template")] = "SET"
    key_prefix: Annotated[str | None, described("its own `keys.prefix`")] = None
    key_minimum: Annotated[Count | None, described("its own `keys.minimum`")] = None
    key_maximum: Annotated[Count | None, described("its own `keys.maximum`")] = None
    times: Annotated[AtLeastOne, described("how often for each key, such as to fill lists")] = 1


class PubSub(Section, frozen=True, kw_only=True):
    """SUBSCRIBE in a mix: each worker thread has a number of subscriptions, and replaces the oldest by a new one."""

    heading: ClassVar[str] = WORKLOAD

    channels_per_thread: Annotated[
        AtLeastOne, setting("--channels-per-thread", help="subscriptions of each worker thread at a time")
    ] = 10
    grace_s: Annotated[
        Seconds, setting("--pubsub-grace", help="longest wait for messages on their way at the end of the load")
    ] = field(default=Seconds(1.0), name="grace")


class Workload(Section, frozen=True, kw_only=True):
    """What is issued. In a loaded plan `commands` is never empty: loading fills in the profile's commands."""

    heading: ClassVar[str] = WORKLOAD

    profile: Annotated[
        str | None,
        setting(
            "--profile",
            metavar="NAME|FILE",
            default=DEFAULT_PROFILE,
            help='built-in workload ("coordinator profiles" lists them), or a YAML file of your own',
        ),
    ] = None
    commands: Annotated[
        tuple[Command, ...],
        described(
            "the mix",
            Option(
                flag="--ratio", metavar="SET:GET", parse=set_get_ratio, help="a mix of SET and GET with these weights"
            ),
        ),
    ] = ()
    keys: Annotated[Keys, described("keys of all commands")] = Keys()
    values: Annotated[
        Values,
        described(
            "values of all commands",
            Option(
                flag="--data-size",
                aliases=("-d",),
                heading=DATA,
                metavar="SIZE",
                parse=both_ends,
                default=str(Values().minimum_bytes),
                help="size of every value, such as 100 or 1KiB",
            ),
            Option(
                flag="--data-size-range",
                heading=DATA,
                metavar="MIN-MAX",
                parse=size_range,
                help="sizes drawn uniformly, both ends included",
            ),
        ),
    ] = Values()
    expiry: Annotated[
        Expiry,
        described(
            "time to live of keys",
            Option(
                flag="--expiry",
                heading=DATA,
                metavar="TIME",
                parse=both_ends,
                help="time to live of the keys that SET writes, in whole seconds; __ttl__ in templates",
            ),
            Option(
                flag="--expiry-range",
                heading=DATA,
                metavar="MIN-MAX",
                parse=time_range,
                help="times to live drawn uniformly",
            ),
        ),
    ] = Expiry()
    pipeline: Annotated[AtLeastOne, setting("--pipeline", help="commands per round trip")] = 1
    transaction: Annotated[NotNegative, setting("--transaction", help="commands per MULTI/EXEC; 0 for none")] = 0
    scripts: Annotated[tuple[Script, ...], described("Lua scripts that templates call by name")] = ()
    setup: Annotated[
        tuple[str, ...],
        described(
            "commands to issue before the run: once, or for each key of the range if they name `__key__`; the error "
            "BUSYGROUP is ignored",
            Option(
                flag="--setup",
                metavar="TEMPLATE",
                repeatable=True,
                parse=as_text,
                help="a command to issue before the run, for each key if it names __key__; may be repeated",
            ),
        ),
    ] = ()
    preload: Annotated[
        tuple[Preload, ...],
        described(
            "commands that fill the keys before the run",
            Option(
                flag="--preload",
                metavar="[on|off]",
                implied_value="on",
                parse=preload_switch,
                help="before the run, write each key once: by SET, unless plan or profile has a preload; off: do not",
            ),
        ),
    ] = ()
    pubsub: Annotated[PubSub, described("subscribers of the mix")] = PubSub()
    flush_before: Annotated[
        bool, setting("--flush-before", is_switch=True, help="empty the target before the run; needs --yes-flush too")
    ] = False
    clean_up: Annotated[
        CleanUp, setting("--clean-up", help="after the run, delete every key of the plan's prefixes and ranges")
    ] = CleanUp.NONE
    stamps: Annotated[
        Stamps | None, described("values that contain the time of their writing; set by `visibility`")
    ] = None

"""What is issued: commands, keys and values, and what is done before and after."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta, field

from common.plan.schema.base import AtLeastOne, Name, NotNegative, Section, Share, Weight
from common.units import Bytes, Count, Seconds


class When(enum.Enum):
    """Whether a following command is issued: after any reply; after one that held something; after one that did not."""

    ALWAYS = "always"
    HIT = "hit"
    MISS = "miss"


class Distribution(enum.Enum):
    """How key numbers are drawn from their range.

    sequential: each worker thread in order through the whole range. parallel: each in order through a part of its
    own. zipfian: the n-th number with a probability in proportion to 1 / n ** exponent. latest: zipfian, counted back
    from the newest key. hotspot: `hot_operations` of the draws among the first `hot_keys` of the range.
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
    """What the bytes of values are: any; letters, digits, "-" and "_"; a JSON document of one field of such text."""

    BINARY = "binary"
    TEXT = "text"
    JSON = "json"


class Then(Section, frozen=True, kw_only=True):
    """A command that follows another one, on the same key. `__ids__` in it are the stream entries of the reply."""

    command: str
    when: When = When.ALWAYS


class Command(Section, frozen=True, kw_only=True):
    """One entry of the mix. `command` is a name of the command table, or a template such as "SET __key__ __data__".

    Its keys are the workload's, but for what is said here. then: commands that follow each reply, on the same key.
    """

    command: str
    weight: Weight = 1.0
    key_prefix: str | None = None
    key_minimum: Count | None = None
    key_maximum: Count | None = None
    key_distribution: Distribution | None = None
    then: tuple[Then, ...] = ()


def deal(total: int, thread: int, threads: int) -> range:
    """The part of 0..total-1 that belongs to one of the fleet's worker threads. Parts are adjacent and of the same
    size, but for one number more in the first ones.

    Keys and operations are dealt in the same way, so a thread with as many operations as keys uses each key once.
    """
    each, rest = divmod(total, threads)
    begin = thread * each + min(thread, rest)
    return range(begin, begin + each + (thread < rest))


class Keys(Section, frozen=True, kw_only=True):
    """Keys are `prefix` followed by a whole number drawn from minimum..maximum, both included.

    exponent: of zipfian and latest. median, deviation: of gaussian, in key numbers; unset: the middle of the range,
    and a sixth of it. per_hash_tag: so many consecutive numbers share a slot of a cluster, by a hash tag
    (`prefix{tag}:number`); 0: no hash tags; unset: as the plan needs them.
    """

    prefix: str = "stampede:"
    minimum: Count = Count(1)
    maximum: Count = Count(1_000_000)
    distribution: Distribution = Distribution.UNIFORM
    exponent: Annotated[float, Meta(ge=0, le=10)] = 0.99
    median: Count | None = None
    deviation: Annotated[float, Meta(ge=0)] | None = None
    hot_keys: Share = 0.2
    hot_operations: Share = 0.8
    per_hash_tag: NotNegative | None = None

    @property
    def numbers(self) -> range:
        """The numbers of all keys."""
        return range(int(self.minimum), int(self.maximum) + 1)

    def part(self, thread: int, threads: int) -> range:
        """The numbers that belong to one of the fleet's worker threads, if each number belongs to one of them."""
        own = deal(len(self.numbers), thread, threads)
        return self.numbers[own.start : own.stop]


class SizeWeight(Section, frozen=True, kw_only=True):
    """One size of a weighted list."""

    size: Bytes
    weight: Weight = 1.0


class Values(Section, frozen=True, kw_only=True):
    """Value sizes in bytes, drawn uniformly from minimum..maximum, both included; `--data-size` sets both.

    sizes: drawn from this list by weight instead. sizes_file: lines of `size weight`, which take the place of `sizes`
    when the plan is loaded. kind: what their bytes are. compressible: the share of each value that a compressor takes
    away. verify: each value carries its key and a checksum, which is looked at whenever it is read.
    """

    minimum_bytes: Bytes = field(default=Bytes(32), name="minimum")
    maximum_bytes: Bytes = field(default=Bytes(32), name="maximum")
    sizes: tuple[SizeWeight, ...] = ()
    sizes_file: str | None = None
    kind: ValueKind = ValueKind.BINARY
    compressible: Share = 0.0
    verify: bool = False


class Expiry(Section, frozen=True, kw_only=True):
    """Time to live, drawn uniformly from minimum..maximum in whole seconds; `SET` of the table gets it as EX, templates
    name it as `__ttl__`. Both 0: none."""

    minimum_s: Seconds = field(default=Seconds(0), name="minimum")
    maximum_s: Seconds = field(default=Seconds(0), name="maximum")


class Script(Section, frozen=True, kw_only=True):
    """A Lua script, loaded before the run; a template names its digest as `__sha(name)__`: EVALSHA __sha(name)__ ..."""

    name: Name
    lua: str


class Preload(Section, frozen=True, kw_only=True):
    """A command that is issued once for each key of the range before the run; its keys are the workload's, but for what
    is said here. times: so often for each key, to fill lists and the like."""

    command: str = "SET"
    key_prefix: str | None = None
    key_minimum: Count | None = None
    key_maximum: Count | None = None
    times: AtLeastOne = 1


class PubSub(Section, frozen=True, kw_only=True):
    """SUBSCRIBE in a mix: each worker thread holds so many subscriptions at a time, and gives up the oldest for a new
    one. grace: how long after the load messages under way are waited for."""

    channels_per_thread: AtLeastOne = 10
    grace_s: Seconds = field(default=Seconds(1.0), name="grace")


class Workload(Section, frozen=True, kw_only=True):
    """What is issued. `profile` names the built-in workload whose keys lie under those given here; `sources` lays
    them there before this type is made, so `commands` is never empty in a plan that was loaded.

    pipeline: commands per round trip. transaction: commands per MULTI/EXEC; 0 for none. setup: commands issued once
    before the run, or once for each key of the range when they name `__key__`; an answer of BUSYGROUP is fine.
    flush_before: empty the target before the run, which also has to be confirmed on the command line.
    """

    profile: str | None = None
    commands: tuple[Command, ...] = ()
    keys: Keys = Keys()
    values: Values = Values()
    expiry: Expiry = Expiry()
    pipeline: AtLeastOne = 1
    transaction: NotNegative = 0
    scripts: tuple[Script, ...] = ()
    setup: tuple[str, ...] = ()
    preload: tuple[Preload, ...] = ()
    pubsub: PubSub = PubSub()
    flush_before: bool = False
    clean_up: CleanUp = CleanUp.NONE

"""Which keys there are: a prefix followed by a whole number from a range, and hash tags where slots matter.

With hash tags, G consecutive numbers share one: number n is `<prefix>{<n // G>}:<n>`. So keys of one command, and all
commands of one transaction, can be drawn from one slot of a cluster, whatever their prefixes are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agent.worker.metrics.wire_sizes import decimal_digits
from agent.worker.workload.encoding.key_slots import NumberSlots, hashed
from common.metrics.histogram import Ints
from common.redis_client import slot_of


class Keyspace:
    """Keys of numbers minimum..maximum, both included. per_hash_tag: G, 0 for keys without a tag.
    name: the same for keyspaces whose new keys are the same."""

    def __init__(self, prefix: str, minimum: int, maximum: int, per_hash_tag: int = 0) -> None:
        self.minimum, self.maximum, self.per_hash_tag = minimum, maximum, per_hash_tag
        self.name = (prefix, maximum)
        self.prefix = encoded = prefix.encode()
        escaped = encoded.replace(b"%", b"%%")
        self._form = escaped + (b"{%d}:%d" if per_hash_tag else b"%d")
        self._slots: NumberSlots | None = None
        self._fixed_bytes = len(encoded) + (3 if per_hash_tag else 0)

    def texts(self, numbers: Ints) -> Iterator[bytes]:
        """The keys of these numbers, made as they are asked for."""
        if self.per_hash_tag:
            tags = (numbers // self.per_hash_tag).tolist()
            return map(self._form.__mod__, zip(tags, numbers.tolist(), strict=True))
        return map(self._form.__mod__, numbers.tolist())

    def lengths(self, numbers: Ints) -> Ints:
        """How many bytes the keys of these numbers have."""
        lengths = decimal_digits(numbers) + self._fixed_bytes
        return lengths + decimal_digits(numbers // self.per_hash_tag) if self.per_hash_tag else lengths

    def slots(self, numbers: Ints) -> Ints:
        """The slots of a cluster that the keys of these numbers are in."""
        # Digits are no braces, so what counts of this key counts of all; their numbers are 0 of one digit here.
        sample = next(self.texts(np.zeros(1, dtype=np.int64)))
        part = hashed(sample)
        if part.stop <= len(self.prefix):
            return np.full(numbers.size, slot_of(sample))
        text = sample[part]
        if self.per_hash_tag and part.stop == len(sample):
            # All of a key with two numbers, which only odd prefixes bring about.
            return np.fromiter(map(slot_of, self.texts(numbers)), dtype=np.int64, count=numbers.size)
        if self._slots is None:
            self._slots = NumberSlots(text[:-1])
        return self._slots.of(numbers // self.per_hash_tag if self.per_hash_tag else numbers)

    def number(self, key: bytes) -> int:
        """The number of a key with a hash tag."""
        return int(key.rpartition(b":")[2])

    def tag(self, key: bytes) -> int:
        """The tag of a key with a hash tag."""
        return self.number(key) // self.per_hash_tag

    def siblings(self, generator: np.random.Generator, first: Ints, count: int) -> Ints:
        """For each first number, `count` numbers of its tag, the first among them; distinct as far as the tag has so
        many within the range. Shape (n, count)."""
        low, size = self._group(first // self.per_hash_tag)
        # The others follow the first in a circle, from anywhere; of a circle without the first there are size - 1.
        others = np.maximum(size - 1, 1)[:, None]
        begin = generator.integers(0, others)
        steps = (begin + np.arange(count - 1)) % others + (size > 1)[:, None]
        rest = low[:, None] + ((first - low)[:, None] + steps) % size[:, None]
        return np.concatenate([first[:, None], rest], axis=1)

    def within(self, generator: np.random.Generator, tags: Ints) -> Ints:
        """For each tag a number of it within the range, all alike."""
        low, size = self._group(tags)
        return low + generator.integers(0, size)

    def _group(self, tags: Ints) -> tuple[Ints, Ints]:
        """The smallest number of each tag within the range, and how many there are. Of a tag beyond the range, the
        range does not count: keys that are new lie there."""
        low = tags * self.per_hash_tag
        high = low + self.per_hash_tag - 1
        beyond = (low > self.maximum) | (high < self.minimum)
        low = np.where(beyond, low, np.maximum(low, self.minimum))
        high = np.where(beyond, high, np.minimum(high, self.maximum))
        return low, high - low + 1

"""Keys: a prefix followed by a whole number from a range, with a hash tag if keys must share a cluster slot.

With hash tags, G consecutive numbers share a tag: the key of n is `<prefix>{<n // G>}:<n>`. All keys with the same tag
lie in one slot of a cluster, even with different prefixes. So the keys of a command, or of a transaction, can be drawn
from one slot.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agent.worker.metrics.wire_sizes import decimal_digits
from agent.worker.workload.segments import GROUP, LAST_GROUP_DIGITS, digit_groups
from common.metrics.histogram import Ints
from common.redis_client import SLOTS, slot_of


class Keyspace:
    """The keys with numbers minimum..maximum, both included. per_hash_tag: G; 0 for keys without a tag.

    name: equal for keyspaces whose new keys are the same.
    """

    def __init__(self, prefix: str, minimum: int, maximum: int, per_hash_tag: int = 0) -> None:
        self.minimum, self.maximum, self.per_hash_tag = minimum, maximum, per_hash_tag
        self.name = (prefix, maximum)
        self.prefix = encoded = prefix.encode()
        escaped = encoded.replace(b"%", b"%%")
        self._form = escaped + (b"{%d}:%d" if per_hash_tag else b"%d")
        self._slots: _NumberSlots | None = None
        self._fixed_bytes = len(encoded) + (3 if per_hash_tag else 0)

    def texts(self, numbers: Ints) -> Iterator[bytes]:
        """The keys with these numbers, made lazily."""
        if self.per_hash_tag:
            tags = (numbers // self.per_hash_tag).tolist()
            return map(self._form.__mod__, zip(tags, numbers.tolist(), strict=True))
        return map(self._form.__mod__, numbers.tolist())

    def lengths(self, numbers: Ints) -> Ints:
        """Length in bytes of each of these keys."""
        lengths = decimal_digits(numbers) + self._fixed_bytes
        return lengths + decimal_digits(numbers // self.per_hash_tag) if self.per_hash_tag else lengths

    def slots(self, numbers: Ints) -> Ints:
        """The cluster slot of each of these keys."""
        # Only braces decide which part of a key is hashed. Digits are not braces, so one sample shows it for all keys.
        sample = next(self.texts(np.zeros(1, dtype=np.int64)))
        hashed = _hashed_part(sample)
        if hashed.stop <= len(self.prefix):
            return np.full(numbers.size, slot_of(sample))
        if self.per_hash_tag and hashed.stop == len(sample):
            # The braces in the prefix cause the whole key to be hashed, with both of its numbers.
            return np.fromiter(map(slot_of, self.texts(numbers)), dtype=np.int64, count=numbers.size)
        if self._slots is None:
            # The sample's number is a single 0.
            self._slots = _NumberSlots(sample[hashed][:-1])
        return self._slots.slots(numbers // self.per_hash_tag if self.per_hash_tag else numbers)

    def number(self, key: bytes) -> int:
        """The number of a key that has a hash tag."""
        return int(key.rpartition(b":")[2])

    def tag(self, key: bytes) -> int:
        """The tag of a key that has a hash tag."""
        return self.number(key) // self.per_hash_tag

    def siblings(self, generator: np.random.Generator, first: Ints, count: int) -> Ints:
        """For each first number, `count` numbers with its tag, beginning with the first number. They are different if
        the range has enough numbers with the tag. Shape (n, count)."""
        low, size = self._numbers_with_tag(first // self.per_hash_tag)
        # The tag's numbers form a circle. Start anywhere in the circle without the first number (size - 1 numbers), and
        # take consecutive ones.
        others = np.maximum(size - 1, 1)[:, None]
        begin = generator.integers(0, others)
        steps = (begin + np.arange(count - 1)) % others + (size > 1)[:, None]
        rest = low[:, None] + ((first - low)[:, None] + steps) % size[:, None]
        return np.concatenate([first[:, None], rest], axis=1)

    def within(self, generator: np.random.Generator, tags: Ints) -> Ints:
        """For each tag, one number within the range that has this tag, drawn uniformly."""
        low, size = self._numbers_with_tag(tags)
        return low + generator.integers(0, size)

    def _numbers_with_tag(self, tags: Ints) -> tuple[Ints, Ints]:
        """(the smallest number with each tag, how many numbers have the tag), within the range. A tag beyond the range
        belongs to new keys, so the range does not limit it."""
        low = tags * self.per_hash_tag
        high = low + self.per_hash_tag - 1
        beyond = (low > self.maximum) | (high < self.minimum)
        low = np.where(beyond, low, np.maximum(low, self.minimum))
        high = np.where(beyond, high, np.minimum(high, self.maximum))
        return low, high - low + 1


def _hashed_part(key: bytes) -> slice:
    """The part of a key that decides its slot: the text in the first braces if it is not empty, else the whole key."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1)
    return slice(begin + 1, end) if 0 <= begin < end - 1 else slice(0, len(key))


_Crcs = NDArray[np.uint16]

_CRC_OF_BYTE = np.array([crc_hqx(bytes([number]), 0) for number in range(256)], dtype=np.uint16)


class _NumberSlots:
    """Slots of texts that are a constant prefix and a number >= 0, by tables.

    A slot is a CRC (XMODEM: polynomial 0x1021, initial value 0), and a CRC with initial value 0 is linear: the CRC of a
    text is the exclusive or of the CRCs of its parts, each followed by zero bytes up to the end. The parts are the
    prefix with the number's first group of four digits, and each group after it. See `segments` on groups.
    """

    def __init__(self, prefix: bytes) -> None:
        with_zeros = np.array([crc_hqx(prefix + bytes(digits), 0) for digits in range(5)], dtype=np.uint16)
        first, following = _group_crcs()
        self._tables = [np.concatenate([first ^ with_zeros.take(LAST_GROUP_DIGITS[:GROUP]), following])]

    def slots(self, numbers: Ints) -> Ints:
        """The slot of each text; shape (count,)."""
        groups = digit_groups(numbers, max(1, -(-len(str(int(numbers.max(initial=0)))) // 4)))
        crcs: _Crcs = self._table(0).take(groups[0])
        for place, group in enumerate(groups[1:], 1):
            crcs ^= self._table(place).take(group)
        return (crcs % SLOTS).astype(np.int64)

    def _table(self, place: int) -> _Crcs:
        """CRC contribution of each group, by index, for the group at `place` from the end."""
        while place >= len(self._tables):
            table = self._tables[-1]
            for _ in range(4):
                table = (table << np.uint16(8)) ^ _CRC_OF_BYTE[table >> np.uint16(8)]  # one zero byte more
            table[0] = 0
            self._tables.append(table)
        return self._tables[place]


@cache
def _group_crcs() -> tuple[_Crcs, _Crcs]:
    """CRCs of the numbers with up to four digits: without and with leading zeros."""
    plain, padded = ([crc_hqx(form % number, 0) for number in range(GROUP)] for form in (b"%d", b"%04d"))
    return np.array(plain, dtype=np.uint16), np.array(padded, dtype=np.uint16)

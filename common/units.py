"""Parses and formats quantities: "30s" <-> 30.0, "10k/s" <-> 10000.0, "1MiB" <-> 1048576; and formats text for
messages.

Each quantity has its own type. So the type of a plan's field shows its unit, and plan files and the command line parse
it in the same way. Parsing raises ValueError with what was found and what would be right; `form` describes the accepted
texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Self

NS_PER_S = 1_000_000_000

# Exact, so that "29ms" is the same float as 0.029.
_SECONDS_PER_UNIT = {
    "ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "ms": Fraction(1, 10**3),
    "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600), "d": Fraction(86400),
}  # fmt: skip
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_BYTES_PER_UNIT = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "k": 2**10, "m": 2**20, "g": 2**30,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_NUMBER = r"(\d[\d_]{0,39}(?:\.\d{1,40})?|\.\d{1,40})"
_DURATION_PART = re.compile(_NUMBER + r"\s*(ns|us|µs|ms|s|m|h|d)", re.IGNORECASE)
_RATE = re.compile(_NUMBER + r"\s*([kmg]?)\s*(?:/\s*(s|sec|second|m|min|minute))?", re.IGNORECASE)
_SIZE = re.compile(_NUMBER + r"\s*([kmg]?i?b?)", re.IGNORECASE)
_COUNT = re.compile(_NUMBER + r"\s*([kmg]?)", re.IGNORECASE)


class Seconds(float):
    """A length of time in seconds; text such as "500ms", "30s", "1m30s", "2h"."""

    form: ClassVar[str] = 'a duration such as "30s", "500ms" or "1m30s"'

    @classmethod
    def parse(cls, value: object) -> Self:
        """Seconds from a number of seconds or a text with units. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _refused(cls.form, value)
        if isinstance(value, int | float):
            return cls._checked(_as_float(value), value)
        text = value.strip()
        try:
            return cls._checked(float(text), value)
        except ValueError:
            pass
        position = 0
        total = Fraction(0)
        while position < len(text):
            match = _DURATION_PART.match(text, position)
            if match is None:
                raise _refused(cls.form, value)
            unit = match[2].lower().replace("µ", "u")
            total += Fraction(match[1].replace("_", "")) * _SECONDS_PER_UNIT[unit]
            position = match.end()
        if not text:
            raise _refused(cls.form, value)
        return cls._checked(float(total), value)

    @classmethod
    def _checked(cls, seconds: float, found: object) -> Self:
        if not math.isfinite(seconds) or seconds < 0:
            raise _refused(cls.form, found)
        return cls(seconds)

    @property
    def ns(self) -> int:
        """The same length in whole nanoseconds."""
        return round(self * NS_PER_S)

    def __str__(self) -> str:
        return format_seconds(float(self))

    __repr__ = __str__


class SecondsOrOff(Seconds):
    """A length of time, or "off", which is 0."""

    form: ClassVar[str] = 'a duration such as "1s", or "off"'

    @classmethod
    def parse(cls, value: object) -> Self:
        """Seconds as `Seconds.parse` reads them; 0 for "off". Raises ValueError."""
        # YAML 1.1 reads an unquoted off as false.
        if value is False or (isinstance(value, str) and value.strip().lower() == "off"):
            return cls(0.0)
        return super().parse(value)

    def __str__(self) -> str:
        return super().__str__() if self else "off"

    __repr__ = __str__


class PerSecond(float):
    """A rate in events per second; text such as "50k/s", "2000", "600/m"."""

    form: ClassVar[str] = 'a rate above zero such as "50k/s" or 2000'

    @classmethod
    def parse(cls, value: object) -> Self:
        """Events per second from a number or a text with units. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _refused(cls.form, value)
        if isinstance(value, int | float):
            per_second = _as_float(value)
        else:
            match = _RATE.fullmatch(value.strip())
            if match is None:
                raise _refused(cls.form, value)
            per_minute = bool(match[3]) and match[3].lower().startswith("m")
            exact = Fraction(match[1].replace("_", "")) * _FACTORS[match[2].lower()] / (60 if per_minute else 1)
            per_second = float(exact)
        if not math.isfinite(per_second) or per_second <= 0:
            raise _refused(cls.form, value)
        return cls(per_second)

    def __str__(self) -> str:
        return format_count(float(self)) + "/s"

    __repr__ = __str__


class Percentile(float):
    """A percentile, such as 99.9."""

    form: ClassVar[str] = "a percentile above 0 and below 100 such as 99.9"

    @classmethod
    def parse(cls, value: object) -> Self:
        """A percentile from a number or its text. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _refused(cls.form, value)
        try:
            percentile = float(value)
        except (ValueError, OverflowError):
            raise _refused(cls.form, value) from None
        if not 0 < percentile < 100:
            raise _refused(cls.form, value)
        return cls(percentile)


class Bytes(int):
    """A size in bytes; text such as "100", "1KiB", "4kB". A bare k, m or g is binary, as kb is in redis.conf."""

    form: ClassVar[str] = 'a size such as 100, "1KiB" or "4MB"'

    @classmethod
    def parse(cls, value: object) -> Self:
        """Whole bytes from a number or a text with units. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _refused(cls.form, value)
        if isinstance(value, int):
            size = Fraction(value)
        else:
            match = _SIZE.fullmatch(value.strip())
            if match is None or match[2].lower() not in _BYTES_PER_UNIT:
                raise _refused(cls.form, value)
            size = Fraction(match[1].replace("_", "")) * _BYTES_PER_UNIT[match[2].lower()]
        if size < 0 or size.denominator != 1:
            raise _refused(cls.form, value)
        return cls(int(size))

    def __str__(self) -> str:
        return format_bytes(int(self))

    __repr__ = __str__


class Count(int):
    """A whole number; text such as "1000000", "1_000_000", "10M", "250k" (decimal)."""

    form: ClassVar[str] = 'a whole number such as 1000000, "250k" or "10M"'

    @classmethod
    def parse(cls, value: object) -> Self:
        """A whole number >= 0 from a number or a text with a factor. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _refused(cls.form, value)
        if isinstance(value, int):
            number = Fraction(value)
        else:
            match = _COUNT.fullmatch(value.strip())
            if match is None:
                raise _refused(cls.form, value)
            number = Fraction(match[1].replace("_", "")) * _FACTORS[match[2].lower()]
        if number < 0 or number.denominator != 1:
            raise _refused(cls.form, value)
        return cls(int(number))

    def __str__(self) -> str:
        return str(int(self))

    __repr__ = __str__


def _refused(form: str, found: object) -> ValueError:
    return ValueError(f"expected {form}, got {show(found)}")


def show(value: object) -> str:
    """A found value as an error message quotes it: one line, text in double quotes, at most 60 characters.

    Lists and mappings are not quoted, because with YAML aliases a small file can contain a huge list. Very long numbers
    are not quoted either, because Python refuses to print them.
    """
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    text = printable(str(value)[:60])
    if isinstance(value, str):
        text = f'"{text}"'
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """Text on one line. Characters that move a terminal's cursor or cannot be encoded are escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def printable_json(text: str) -> str:
    """The same JSON for a terminal: characters that cannot be printed are written as \\uXXXX, except line breaks."""
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True))


def clipped(text: str, longest: int = 1000) -> str:
    """Text of a peer, safe to show and to store: one line of at most `longest` characters."""
    return printable(text[:longest])[:longest]


def _ten_digits(value: float) -> str:
    """A number without an exponent: quantities are not parsed with one."""
    text = f"{value:.10g}"
    return f"{value:.12f}".rstrip("0").rstrip(".") if "e" in text else text


def _as_float(value: float) -> float:
    """A number as a float; infinity for whole numbers that are too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def counted(number: int, noun: str) -> str:
    """`(1, "worker process")` -> "1 worker process", `(1200, "key")` -> "1,200 keys": a count for people."""
    if number == 1:
        return f"1 {noun}"
    if re.search("(s|x|ch|sh)$", noun):
        plural = noun + "es"
    elif re.search("[^aeiou]y$", noun):
        plural = noun[:-1] + "ies"
    else:
        plural = noun + "s"
    return f"{number:,} {plural}"


MOST_LISTED = 8
"""Names that a message lists before it counts the others."""


def listed(names: Sequence[str], most: int = MOST_LISTED) -> str:
    """`["a", "b"]` -> "a, b". After the first `most` names, only the number of the others: "a, b and 7 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def format_seconds(seconds: float) -> str:
    """`30.0` -> "30s", `90.0` -> "1m30s", `0.5` -> "500ms"; text that `Seconds.parse` reads back."""
    if seconds == 0:
        return "0s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= scale or unit == "ns":
            break
    if unit != "s" or seconds < 60 or seconds != int(seconds):
        return f"{_ten_digits(seconds / scale)}{unit}"
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return "".join(f"{n}{u}" for n, u in ((hours, "h"), (minutes, "m"), (left, "s")) if n)


def format_count(value: float) -> str:
    """`50000` -> "50k", `1234.5` -> "1234.5"; text that `PerSecond.parse` reads back."""
    for suffix, factor in (("g", 10**9), ("m", 10**6), ("k", 10**3)):
        if value >= factor and (value / factor * 100).is_integer():
            return f"{_ten_digits(value / factor)}{suffix}"
    return _ten_digits(value)


def format_bytes(size: int) -> str:
    """`1024` -> "1KiB", `100` -> "100B"; exact, text that `Bytes.parse` reads back."""
    for suffix, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{suffix}"
    return f"{size}B"

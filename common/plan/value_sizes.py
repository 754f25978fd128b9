"""Sizes of values: constants and means, and files with a size and its weight on each line."""

from __future__ import annotations

import math
from typing import Any

from common.errors import PlanError
from common.plan.schema import Values
from common.units import Bytes, show

JSON_PREFIX, JSON_SUFFIX = b'{"v":"', b'"}'
"""The bytes before and after the text of a JSON value."""
JSON_BYTES = len(JSON_PREFIX) + len(JSON_SUFFIX)
CHECKSUM_BYTES = 10
"""Bytes of a verified value in addition to its key: a checksum of 8 hexadecimal digits, and two spaces."""
TEXT_BITS = 6
"""Random bits in each byte of a text value."""


def mean_value_bytes(values: Values) -> float:
    """The mean size of a value in bytes."""
    total = sum(entry.weight for entry in values.sizes)
    if total:
        return sum(entry.size * entry.weight for entry in values.sizes) / total
    return (values.minimum_bytes + values.maximum_bytes) / 2


def largest_value(values: Values) -> int:
    """The size in bytes of the largest value that can be drawn."""
    return max((int(entry.size) for entry in values.sizes if entry.weight > 0), default=int(values.maximum_bytes))


_SIZE_LINE = 'expected a size and its weight such as "1KiB 30"'


def parse_size_file(data: bytes, name: str) -> list[dict[str, Any]]:
    """Raw `sizes` from lines of `SIZE [WEIGHT]`; the weight is 1 if not given. Text after # is a comment.

    Raises PlanError with the number of the line.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise PlanError(f"{name}: expected lines of text, got a file that is not UTF-8") from error
    sizes = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{name}: line {number}"
        if len(words) > 2:
            raise PlanError(f"{where}: {_SIZE_LINE}, got {show(line.strip())}")
        try:
            size = Bytes.parse(words[0])
        except ValueError as error:
            raise PlanError(f"{where}: {error}") from error
        sizes.append({"size": int(size), "weight": _weight(words[1], where) if len(words) == 2 else 1.0})
    if not sizes:
        raise PlanError(f"{name}: {_SIZE_LINE} on each line, got none")
    return sizes


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not (weight >= 0 and math.isfinite(weight)):
        raise PlanError(f"{where}: expected a weight of 0 or more, got {show(text)}")
    return weight

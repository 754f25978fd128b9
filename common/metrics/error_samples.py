"""Samples of errors: one error of each kind with its message and its place, and how often this kind occurred. Pure.

Servers choose messages, so samples have limits. Errors beyond these count in the *rest* of their class: a sample
without command and message. So the counts of all samples of a class add up to the count of the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Annotated

import msgspec
from msgspec import Meta

from common.metrics.counts import MAX_NAME_LENGTH, MAX_NAMES, OTHER, Tally

SAMPLES_PER_CLASS, MAX_SAMPLES = 20, 128
"""Most samples of one class and of all classes, without the rest of each class."""
MAX_MESSAGE, MAX_PLACE = 200, 100
"""Most characters of a message, and of a key or an endpoint."""

_Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
_Message = Annotated[str, Meta(max_length=MAX_MESSAGE)]
_Place = Annotated[str, Meta(max_length=MAX_PLACE)]


class ErrorSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The errors of one class with the same command, endpoint and message.

    name: the class, as in counts of errors. message: one line. command: its row in reports. key, exception, cause: of
    the first of these errors: its key ("" without one), the class of redis-py's exception, and the error of the socket
    or system behind it. endpoint: the server that answered, or that could not be reached; "" if that is not known.
    first_ns, last_ns: when the first and the last one ended, after the start instant.
    """

    name: _Name
    message: _Message = ""
    command: _Name = ""
    key: _Place = ""
    endpoint: _Place = ""
    exception: _Name = ""
    cause: _Message = ""
    count: Tally = 1
    first_ns: Tally = 0
    last_ns: Tally = 0

    @property
    def is_rest(self) -> bool:
        """Whether it counts errors beyond the limits."""
        return not self.command

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """Errors of the same kind have one sample."""
        return self.name, self.command, self.endpoint, self.message

    def rest(self, name: str) -> ErrorSample:
        """The same errors without message and place. name: their class."""
        return ErrorSample(name=name, count=self.count, first_ns=self.first_ns, last_ns=self.last_ns)

    def with_more(self, others: ErrorSample) -> ErrorSample:
        """The errors of both."""
        return msgspec.structs.replace(
            self,
            count=self.count + others.count,
            first_ns=min(self.first_ns, others.first_ns),
            last_ns=max(self.last_ns, others.last_ns),
        )


Samples = Annotated[tuple[ErrorSample, ...], Meta(max_length=MAX_SAMPLES + MAX_NAMES)]
"""What `merge_samples` returns, also from a peer."""


def merge_samples(parts: Iterable[tuple[ErrorSample, ...]]) -> tuple[ErrorSample, ...]:
    """The errors of all parts, in the order in which their kinds first appear, within the limits."""
    filled = [part for part in parts if part]  # most are empty
    if len(filled) < 2:
        return filled[0] if filled else ()
    return merge_each(chain.from_iterable(filled))


def merge_each(samples: Iterable[ErrorSample]) -> tuple[ErrorSample, ...]:
    """One sample for each kind, within the limits."""
    found: dict[tuple[str, str, str, str], ErrorSample] = {}
    kinds_of_class: dict[str, int] = {}
    kinds = 0
    for sample in samples:
        known = found.get(sample.kind)
        if known is None:
            name = sample.name
            if name not in kinds_of_class and len(kinds_of_class) >= MAX_NAMES - 1:
                name = OTHER
            count = kinds_of_class.setdefault(name, 0)
            if sample.is_rest or name != sample.name or count >= SAMPLES_PER_CLASS or kinds >= MAX_SAMPLES:
                sample = sample.rest(name)
                known = found.get(sample.kind)
            else:
                kinds_of_class[name] += 1
                kinds += 1
        found[sample.kind] = sample if known is None else known.with_more(sample)
    return tuple(found.values())

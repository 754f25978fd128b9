"""Numbers for the outcomes of operations, and a sample of each kind of error. Bounded, whatever servers answer.

The rows of the hot path have room for a number only. So each kind of error (class, command, message) gets a number of
its own, with its sample; when and at which server the kind occurred follows from its rows. Beyond the limits of
`common.metrics.error_samples`, errors get the number of their class, which has no sample.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from common.metrics.counts import MAX_NAME_LENGTH, MAX_NAMES, OTHER
from common.metrics.error_samples import MAX_PLACE, MAX_SAMPLES, SAMPLES_PER_CLASS, ErrorSample
from common.redaction import hide_secrets
from common.redis_client import Failure, describe_failure
from common.units import clipped

DONE = (True, "")

LazyArguments: TypeAlias = Sequence[str | bytes] | Callable[[], Sequence[str | bytes]]
"""The arguments of an operation, or a function that returns them."""

_LONGEST_TEXT = 500
"""How many characters of an error reply distinguish it from others."""


@dataclass(frozen=True, slots=True)
class SampleTexts:
    """What is known of a kind of error, except when, where and how often it occurred. See `ErrorSample`. endpoint: the
    server of a target that is one server."""

    message: str
    key: str
    endpoint: str
    exception: str
    cause: str

    def sample(self, name: str, command: str, endpoint: str, count: int, first_ns: int, last_ns: int) -> ErrorSample:
        """The sample of `count` errors of this kind. endpoint: "" for the only server."""
        return ErrorSample(
            name=name,
            message=self.message,
            command=command[:MAX_NAME_LENGTH],
            key=self.key,
            endpoint=endpoint[:MAX_PLACE] or self.endpoint,
            exception=self.exception,
            cause=self.cause,
            count=count,
            first_ns=first_ns,
            last_ns=last_ns,
        )


class Outcomes:
    """Numbers the outcomes of operations. 0: done. Thread-safe. Used only for operations that were not done."""

    def __init__(self, key_positions: Sequence[int | None] = (), secrets: Sequence[str] = (), server: str = "") -> None:
        """key_positions: by row of the mix, the index of the key among the arguments; rows beyond have no samples.
        secrets: passwords, which no sample shows. server: of a target that is one server."""
        self._key_positions, self._secrets, self._server = key_positions, secrets, clipped(server, MAX_PLACE)
        self._lock = threading.Lock()
        self._class_numbers: dict[tuple[bool, str], int] = {}
        self._kinds: dict[tuple[bool, str, int, str], int] = {}
        self._kinds_of_class: Counter[int] = Counter()
        self.names: list[tuple[bool, str]] = [DONE]
        """By number: (whether there was a reply, error code or class)."""
        self.samples: list[SampleTexts | None] = [None]
        """By number; None for a class, and for 0."""
        self.classes: list[int] = [0]
        """By number: the number of its class."""

    def number(self, failure: Failure) -> int:
        """The number of this failure's class. A new class gets a new number."""
        with self._lock:
            return self._class_number(failure)

    def kind_number(self, failure: Failure, row: int, arguments: LazyArguments) -> int:
        """The number of this kind of failure, or of its class beyond the limits. row: of the mix. arguments: called, if
        they are lazy, for a new kind only."""
        kind = (failure.replied, failure.name, row, failure.text[:_LONGEST_TEXT])
        number = self._kinds.get(kind)
        if number is not None:
            return number
        with self._lock:
            of_class = self._class_number(failure)
            is_full = self._kinds_of_class[of_class] >= SAMPLES_PER_CLASS or len(self._kinds) >= MAX_SAMPLES
            if kind in self._kinds or is_full or row >= len(self._key_positions):
                return self._kinds.get(kind, of_class)
            self._kinds_of_class[of_class] += 1
            number = self._add(self.names[of_class], self._texts(failure, self._key_of(row, arguments)), of_class)
            # Only now: other threads look kinds up without the lock.
            self._kinds[kind] = number
            return number

    def _key_of(self, row: int, arguments: LazyArguments) -> str | bytes:
        position = self._key_positions[row]
        if position is None:
            return ""
        all_arguments = arguments() if callable(arguments) else arguments
        return all_arguments[position] if position < len(all_arguments) else ""

    def _class_number(self, failure: Failure) -> int:
        name = (failure.replied, failure.name[:MAX_NAME_LENGTH])
        if name not in self._class_numbers and len(self._class_numbers) >= MAX_NAMES - 1:
            name = (failure.replied, OTHER)
        if name not in self._class_numbers:
            self._class_numbers[name] = self._add(name, None, len(self.names))
        return self._class_numbers[name]

    def _add(self, name: tuple[bool, str], sample: SampleTexts | None, of_class: int) -> int:
        self.classes.append(of_class)
        self.samples.append(sample)
        self.names.append(name)
        return len(self.names) - 1

    def _texts(self, failure: Failure, key: str | bytes) -> SampleTexts:
        message, exception, cause = describe_failure(failure, lambda text: hide_secrets(text, self._secrets))
        return SampleTexts(message, key_text(key), self._server if failure.was_sent else "", exception, cause)


def key_text(key: str | bytes) -> str:
    """A key in one line."""
    return clipped(key if isinstance(key, str) else key[:MAX_PLACE].decode(errors="backslashreplace"), MAX_PLACE)

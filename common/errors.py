"""Every error that the programs raise on purpose, with its exit code.

The docstring of each class is its text in the reference of exit codes. 130 (interrupted) is not an error: the report is
written anyway. Messages are one line: what was found, where, and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

EXIT_OK = 0
EXIT_INTERRUPTED = 130


class StampedeError(Exception):
    """A bug in redis-stampede. Please report it, with the traceback in the file that the message names.

    Its subclasses are errors with other causes. `exit_code` is what the process returns.
    """

    exit_code: ClassVar[int] = 1


class UsageError(StampedeError):
    """A flag, an address or a file cannot be used as given."""

    exit_code = 2


class PlanError(StampedeError):
    """The plan is not valid."""

    exit_code = 3


class TargetError(StampedeError):
    """The target cannot be reached, does not speak RESP, refused us, or was lost during the run."""

    exit_code = 4


class FleetError(StampedeError):
    """Agents are missing, were lost beyond tolerance, or were refused."""

    exit_code = 5


class ProtocolError(FleetError):
    """A peer sent bytes or a message that the fleet protocol does not allow."""


class ThresholdError(StampedeError):
    """A threshold of the plan was not met."""

    exit_code = 6


class InvalidResultError(StampedeError):
    """The run ended, but its numbers cannot be trusted."""

    exit_code = 7


@contextmanager
def named(subject: str) -> Iterator[None]:
    """Errors begin with their subject, such as "scenario main"; "" changes nothing."""
    try:
        yield
    except StampedeError as error:
        if not subject:
            raise
        raise type(error)(f"{subject}: {error}") from error

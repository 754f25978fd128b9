"""Every error this program raises on purpose, and the exit code that each one means.

    StampedeError                 1   something of ours went wrong (a bug, unless a subclass says otherwise)
    ├── UsageError                2   a flag, an address or a file that cannot be used as given
    ├── PlanError                 3   the plan is not valid
    ├── TargetError               4   the target cannot be reached, refused us, or was lost during the run
    ├── FleetError                5   agents missing, lost beyond tolerance, or refused
    │   └── ProtocolError         5   a peer sent what the fleet protocol does not allow
    ├── ThresholdError            6   a threshold of the plan was not met
    └── InvalidResultError        7   the run ended, but its numbers cannot be trusted

130 (interrupted) is not an error: the report is written all the same.
Messages are one line: what was found, where, and what would be right.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_INTERRUPTED = 130


class StampedeError(Exception):
    """Root of the tree. `exit_code` is what the process returns when this reaches the command line."""

    exit_code: ClassVar[int] = 1


class UsageError(StampedeError):
    """A flag, an address or a file cannot be used as given."""

    exit_code = 2


class PlanError(StampedeError):
    """The plan is not valid: `where` (file or flag), `path` inside it, what was found and what would be accepted."""

    exit_code = 3


class TargetError(StampedeError):
    """The target cannot be reached, does not speak RESP, or refused us."""

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

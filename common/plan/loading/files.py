"""The one place where a plan touches the file system: whole small files or pipes, read once."""

from __future__ import annotations

from pathlib import Path

from common.errors import PlanError
from common.file_reading import WAIT_S, read_bounded
from common.units import show

LARGEST_BYTES = 1_000_000


def read_small_file(path: Path, where: str, wanted: str) -> bytes:
    """A file's bytes. Raises PlanError, a line of the form `where: expected wanted, got: why not`."""
    try:
        data = read_bounded(path, LARGEST_BYTES, WAIT_S)
    except OSError as error:
        raise PlanError(f"{where}: expected {wanted}, got: {error.strerror or error}") from error
    except ValueError as error:
        # A NUL in the name, or letters that the file system's encoding lacks.
        raise PlanError(f"{where}: expected {wanted}, got the impossible name {show(str(path))}") from error
    if len(data) > LARGEST_BYTES:
        raise PlanError(f"{where}: expected {wanted}, got more than {LARGEST_BYTES} bytes")
    return data

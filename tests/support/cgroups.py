"""Control groups with a CPU quota, on machines that let a test make them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.runs import wait_until

_PERIOD_US = 100_000
_MOUNTED = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup"))


@contextmanager
def quota_group(cores: float) -> Iterator[Path]:
    """A control group with a quota of this many cores. Processes join it through `cgroup.procs`.

    Skips the test if the machine allows no new groups: that takes root, and most containers forbid it."""
    try:
        group = _made(cores)
    except OSError as error:
        pytest.skip(f"NOTHING IS TESTED WITH A REAL CPU QUOTA: no control group can be made here ({error})")
    try:
        yield group
    finally:
        wait_until(lambda: _is_removed(group), f"{group} to be left by all its processes")


def set_quota(group: Path, cores: float) -> None:
    """Change the quota to this many cores."""
    quota_us = round(cores * _PERIOD_US)
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")


def _made(cores: float) -> Path:
    parent = next((folder for folder in _MOUNTED if (folder / "cgroup.procs").exists()), None)
    if parent is None:
        raise FileNotFoundError("no control groups are mounted in the usual places")
    group = parent / f"stampede-test-{uuid4().hex[:8]}"
    group.mkdir()
    try:
        set_quota(group, cores)
    except OSError:
        group.rmdir()
        raise
    return group


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True

"""The name of this machine, and its limits: cores, open files, threads and memory."""

from __future__ import annotations

import os
import resource
import socket
import uuid
from contextlib import suppress
from math import ceil
from pathlib import Path

import psutil

from common.cgroup import CpuGroups, least_limit

_KERNEL = Path("/proc/sys/kernel")
_BOOT_ID = _KERNEL / "random/boot_id"


def usable_cores() -> int:
    """How many cores this process can use: the cores that it may run on (a cpuset may exclude some), but no more than
    its CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = CpuGroups().quota_cores
    return cores if quota is None else min(cores, ceil(quota))


_FILES_AT_LEAST = (1 << 20, 1 << 16, 24_576, 10_240)
"""Limits of open files to try if the hard limit is refused: macOS reports no limit, but refuses this value."""


def raise_open_files_limit() -> None:
    """Raise the limit of open files of this process and its children to the hard limit. Each connection is an open
    file, and the soft limit is often 1024; the hard limit is the administrator's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, *_FILES_AT_LEAST):
        if soft == resource.RLIM_INFINITY or soft == limit:
            return
        if _is_above(limit, soft) and not _is_above(limit, hard):
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return


def _is_above(limit: int, other: int) -> bool:
    if other == resource.RLIM_INFINITY:
        return False
    return limit == resource.RLIM_INFINITY or limit > other


def open_files_limit() -> int | None:
    """How many files this process may open; None for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def open_files() -> int:
    """How many files this process has open."""
    with os.scandir("/dev/fd") as listed:
        return sum(1 for _ in listed) - 1  # without the listing itself


def threads_limit() -> int | None:
    """How many threads the user, this process's control group or the machine allows in total, whichever is least; None
    if unknown."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [None if soft == resource.RLIM_INFINITY else soft, least_limit("pids", "pids.max")]
    for name in ("threads-max", "pid_max"):
        with suppress(OSError, ValueError):
            limits.append(int((_KERNEL / name).read_text()))
    return min((limit for limit in limits if limit is not None), default=None)


def memory_bytes() -> int:
    """The memory of this machine, or the limit of this process's control group if that is less."""
    limit = least_limit("memory", "memory.max", "memory.limit_in_bytes")
    total: int = psutil.virtual_memory().total
    return total if limit is None else min(limit, total)


def this_host() -> str:
    """The host name of this machine."""
    return socket.gethostname()


def boot_id() -> str:
    """Identifies this machine and its current boot: monotonic clocks with the same id can be compared. Without one, as
    on macOS, the machine's name and network address."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"{this_host()} {uuid.getnode()}"

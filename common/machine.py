"""What this machine is called, and what it has to offer."""

from __future__ import annotations

import os
import socket
import uuid
from math import ceil
from pathlib import Path

from common.cgroup import CpuGroups

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def usable_cores() -> int:
    """How many cores this process can fill: those that it may run on, which under a cpuset are fewer than the machine
    has, but no more than a CPU quota allows, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = CpuGroups().quota_cores
    return cores if quota is None else min(cores, ceil(quota))


def this_host() -> str:
    """The name of this machine, for people."""
    return socket.gethostname()


def boot_id() -> str:
    """What this machine and the time since its last start are called: wherever it is the same, monotonic clocks can be
    compared. Where the system does not tell, as on macOS, the machine's name and network address stand in."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"{this_host()} {uuid.getnode()}"

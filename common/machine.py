"""What this machine is called, and what it has to offer."""

from __future__ import annotations

import os
import socket


def usable_cores() -> int:
    """Cores that this process may run on, which under a cpuset are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def this_host() -> str:
    """The name of this machine, for people."""
    return socket.gethostname()

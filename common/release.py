"""Which release this is, and on what it runs."""

from __future__ import annotations

import platform
from importlib.metadata import version

RELEASE = version("redis-stampede")


def about(program: str) -> str:
    """What `--version` prints: all that a report of a fault should name."""
    return f"{program} {RELEASE} (redis-stampede; Python {platform.python_version()}, redis-py {version('redis')})"

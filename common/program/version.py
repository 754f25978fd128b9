"""The versions of redis-stampede, Python and redis-py."""

from __future__ import annotations

import platform
from importlib.metadata import version

RELEASE = version("redis-stampede")


def about(program: str) -> str:
    """The text of `--version`: every version that a bug report should name."""
    return f"{program} {RELEASE} (redis-stampede; Python {platform.python_version()}, redis-py {version('redis')})"

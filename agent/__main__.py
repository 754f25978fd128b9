"""Entry point of the `agent` command; imports as little as it can, see `common.entry`."""

from __future__ import annotations

import sys

from common.entry import run_main


def main() -> int:
    """The exit code of this process's own command line."""
    return run_main("agent.cli")


if __name__ == "__main__":
    sys.exit(main())

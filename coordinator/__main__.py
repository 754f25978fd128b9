"""Entry point of the `coordinator` command; imports as little as it can, see `common.program.entry`."""

from __future__ import annotations

import sys

from common.program.entry import run_main


def main() -> int:
    """The exit code of this process's own command line."""
    return run_main("coordinator.cli")


if __name__ == "__main__":
    sys.exit(main())

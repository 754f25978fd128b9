"""Entry point of the `agent` command. Imports as little as possible, see `common.program.entry`."""

from __future__ import annotations

import sys

from common.program.entry import run_main


def main() -> int:
    """Run the command line of this process. Returns the exit code."""
    return run_main("agent.cli")


if __name__ == "__main__":
    sys.exit(main())

"""What `coordinator start` is told besides the plan: how this one run is held, not what it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.protocol.token_sources import TokenVariables

DEFAULT_BIND = "tcp://127.0.0.1:5555"
"""Where agents connect, unless it is said; a run with local agents alone takes a free port of the loopback."""

DEFAULT_ROUNDS, FEWEST_ROUNDS = 3, 2
"""Of a comparison of drivers. One round would tell nothing of how far the figures scatter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """bind: where agents connect, None unless it was said. out: holds a folder per run. resume: id of the run to go on
    with. token_file: from the command line; token_variables: what the environment says instead. quiet: no live view,
    only trouble. yes_flush: the target's data may go, if the plan says so."""

    bind: str | None = None
    out: Path = Path("runs")
    json: bool = False
    insecure: bool = False
    token_file: Path | None = None
    resume: str | None = None
    quiet: bool = False
    hide_histogram: bool = False
    yes_flush: bool = False
    token_variables: TokenVariables = field(default_factory=TokenVariables)

    @property
    def silent(self) -> bool:
        """Whether people see no report, only trouble: a program reads the JSON."""
        return self.json and self.quiet

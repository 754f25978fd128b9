"""The options of `coordinator start` that are not part of the plan: how to manage one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.protocol.token_sources import TokenVariables

DEFAULT_BIND = "tcp://127.0.0.1:5555"
"""Where agents connect by default. If all agents are local, the coordinator takes a free port on loopback instead."""

DEFAULT_ROUNDS, FEWEST_ROUNDS = 3, 2
"""Rounds of a comparison of drivers. A single round would not show how much the figures scatter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """bind: where agents connect; None if not given. out: folder of the run folders. json: print the report as JSON.
    resume: id of the run to resume. token_file: from the command line; token_variables: the same from the environment.
    quiet: no live view, only problems. yes_flush: the plan may empty the target's database."""

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
        """Whether stderr shows only problems, because a program reads the JSON."""
        return self.json and self.quiet

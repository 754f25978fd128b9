"""Refreshes the generated tables in docs/ or, with a run folder, the picture of a report. `scripts/docs` calls it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.journal_file import read_journal
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from scripts.reference.tables import DOCS, refresh

PICTURE = DOCS / "images" / "report.svg"
"""The picture of a report that README.md shows, drawn from the journal of a real run."""
WIDTH = 86


def draw(folder: Path) -> Path:
    """Draw the report of a run folder, as a terminal shows it. Returns the path of the picture."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True)
    print_summary(console, build_summary(fold(read_journal(folder / "journal"))), hide_histogram=True)
    svg = console.export_svg(title="coordinator start --embedded-server --local-agents 2", theme=MONOKAI)
    # rich loads a font from the web; any monospaced font will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    return PICTURE


if __name__ == "__main__":
    for page in [draw(Path(sys.argv[1]))] if len(sys.argv) > 1 else refresh():
        print(f"wrote {page}")

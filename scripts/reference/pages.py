"""Where the generated tables stand: between `<!-- table: NAME -->` and `<!-- end -->` in a page of docs/."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.reference.tables import TABLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_TABLE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text of a page with every table as the code has it now. Raises KeyError for a table with an unknown name."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{chr(10).join(TABLES[found[2]]())}\n\n{found[3]}", text)


def stale() -> dict[Path, str]:
    """Pages whose tables differ from the code, with the text that they should have."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    return {page: filled(text) for page, text in texts.items() if filled(text) != text}


def refresh() -> list[Path]:
    """Write the pages that are stale. Returns their paths, relative to the repository."""
    pages = stale()
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return [page.relative_to(ROOT) for page in pages]

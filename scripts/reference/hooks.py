"""Hooks of mkdocs: ARCHITECTURE.md and CONTRIBUTING.md are at the root of the repository, and pages of the site too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PAGES = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; for two of them, that of a file at the root with its links seen from docs/."""
    source = _PAGES.get(page.file.src_uri)
    return markdown if source is None else _from_root((_ROOT / source).read_text(encoding="utf-8"))


def _from_root(text: str) -> str:
    for page, source in _PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    return text.replace("](docs/", "](").replace("](README.md", "](index.md")

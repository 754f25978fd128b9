"""Hooks of mkdocs: ARCHITECTURE.md and CONTRIBUTING.md are at the root of the repository, and pages of the site too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PAGES = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; for two of them, that of a file at the root with its links seen from docs/."""
    source = _PAGES.get(page.file.src_uri)
    return markdown if source is None else _LINK.sub(_seen_from_docs, (_ROOT / source).read_text(encoding="utf-8"))


def _seen_from_docs(link: re.Match[str]) -> str:
    """The same link from docs/; its words alone if it leads out of the site."""
    words, target, anchor = link[1], link[2], link[3] or ""
    inside = {source: page for page, source in _PAGES.items()}.get(target, target.removeprefix("docs/"))
    return f"[{words}]({inside}{anchor})" if (_ROOT / "docs" / inside).exists() else words

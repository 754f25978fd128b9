"""A hook of mkdocs: the pages architecture.md and contributing.md show ARCHITECTURE.md and CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PAGES = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the text of two pages by the text of a file at the root, with adapted links."""
    source = _PAGES.get(page.file.src_uri)
    return markdown if source is None else _LINK.sub(_link_from_docs, (_ROOT / source).read_text(encoding="utf-8"))


def _link_from_docs(link: re.Match[str]) -> str:
    """The same link, relative to docs/; only the link's text if it leads out of the site."""
    text, target, anchor = link[1], link[2], link[3] or ""
    inside = {source: page for page, source in _PAGES.items()}.get(target, target.removeprefix("docs/"))
    return f"[{text}]({inside}{anchor})" if (_ROOT / "docs" / inside).exists() else text

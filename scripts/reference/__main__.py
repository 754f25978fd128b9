"""`scripts/docs` calls it: refresh the generated tables in docs/, or draw the picture of a report again."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.reference.pages import refresh
from scripts.reference.picture import draw

if __name__ == "__main__":
    for page in [draw(Path(sys.argv[1]))] if len(sys.argv) > 1 else refresh():
        print(f"wrote {page}")

"""The virtual environment of rivals that are Python packages. It keeps their dependencies apart from ours."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DIRECTORY = ROOT / ".venv-bench"
_TIMEOUT_S = 600


def _wanted() -> list[str]:
    # Our versions of redis-py and hiredis: the comparison is about Locust.
    return ["locust==2.47.0", "resp-benchmark==0.2.5", *(f"{name}=={version(name)}" for name in ("redis", "hiredis"))]


@cache
def set_up() -> tuple[Path, str]:
    """(folder of the rivals' programs, why they could not be installed). Makes the environment if it is missing or
    outdated; tries once per run."""
    binaries, made_from = _DIRECTORY / "bin", _DIRECTORY / "made-from"
    text = "\n".join([str(_DIRECTORY), sys.version, *_wanted()])
    if made_from.exists() and made_from.read_text() == text:
        return binaries, ""
    print("Setting up .venv-bench for Locust and resp-benchmark ...", file=sys.stderr)
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(_DIRECTORY)],
        [str(binaries / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *_wanted()],
    )
    for step in steps:
        try:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return binaries, f"not installed within {_TIMEOUT_S} s"
        except (OSError, subprocess.CalledProcessError) as error:
            words = str(getattr(error, "stderr", "") or error).strip()
            return binaries, f"not installed: {words.splitlines()[-1]}"
    made_from.write_text(text)
    return binaries, ""

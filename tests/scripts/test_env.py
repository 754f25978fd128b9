"""What `scripts/_env` says while it sets up `.venv`, with a Python that only pretends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PRETENDER = """#!/bin/sh
case "$*" in
    --version) echo "Python 3.99.0" ;;
    "-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip"*)
        echo "Obtaining file:///somewhere"
        echo "Collecting first==1.0 (from -c constraints.txt (line 1))"
        echo "  Downloading first-1.0.whl (12 kB)"
        echo "Processing /some/where/second-2.0.whl (from second==2.0)"
        echo "Installing collected packages: first, second"
        echo "complaint" >&2
        exit "$PIP_ENDS_WITH"
        ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "_env", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("# pinned\nfirst==1.0\nsecond==2.0\n")
    python = tmp_path / "pretender"
    python.write_text(PRETENDER)
    python.chmod(0o755)
    return tmp_path


def source(repository: Path, pip_ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    script = 'set -euo pipefail; source scripts/_env; echo "$BIN"'
    environment = os.environ | {"PYTHON": str(repository / "pretender"), "PIP_ENDS_WITH": str(pip_ends_with)}
    return subprocess.run(
        ["bash", "-c", script], cwd=repository, env=environment, capture_output=True, text=True, timeout=30
    )


def test_setting_up_says_each_step_and_the_next_time_nothing(repository: Path) -> None:
    first = source(repository)
    assert (first.returncode, first.stdout) == (0, f"{repository}/.venv/bin\n")
    said = first.stderr.splitlines()
    assert said[0].startswith("Setting up .venv, once")
    assert said[1:-1] == [
        "  1/2 an empty environment, of Python 3.99.0",
        "  2/2 the 2 packages that constraints.txt pins, which takes a minute or so",
        "      1 of 2: first==1.0",
        "      2 of 2: second-2.0.whl",
        "      unpacking them",
    ]
    assert said[-1].startswith("  done in ")
    again = source(repository)
    assert (again.returncode, again.stderr) == (0, "")


def test_a_set_up_that_failed_is_tried_again(repository: Path) -> None:
    failed = source(repository, pip_ends_with=1)
    assert failed.returncode != 0
    assert "complaint" in failed.stderr.splitlines()
    assert "error: pip could not install them" in failed.stderr
    assert "done in" not in failed.stderr
    assert source(repository).returncode == 0

"""The output of `scripts/_env` while it sets up `.venv`, with a fake Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FAKE_PYTHON = """#!/bin/sh
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
        exit "$PIP_EXIT_CODE"
        ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "_env", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("# pinned\nfirst==1.0\nsecond==2.0\n")
    python = tmp_path / "fake-python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return tmp_path


def source(repository: Path, pip_exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    script = 'set -euo pipefail; source scripts/_env; echo "$BIN"'
    environment = os.environ | {"PYTHON": str(repository / "fake-python"), "PIP_EXIT_CODE": str(pip_exit_code)}
    return subprocess.run(
        ["bash", "-c", script], cwd=repository, env=environment, capture_output=True, text=True, timeout=30
    )


def test_the_setup_prints_each_step_and_nothing_the_next_time(repository: Path) -> None:
    first = source(repository)
    assert (first.returncode, first.stdout) == (0, f"{repository}/.venv/bin\n")
    output = first.stderr.splitlines()
    assert output[0].startswith("Setting up .venv (once")
    assert output[1:-1] == [
        "  1/2 creating the environment with Python 3.99.0",
        "  2/2 installing 2 packages, which takes about a minute",
        "      1 of 2: first==1.0",
        "      2 of 2: second-2.0.whl",
        "      unpacking",
    ]
    assert output[-1].startswith("  done in ")
    again = source(repository)
    assert (again.returncode, again.stderr) == (0, "")


def test_a_failed_setup_is_tried_again(repository: Path) -> None:
    failed = source(repository, pip_exit_code=1)
    assert failed.returncode != 0
    assert "complaint" in failed.stderr.splitlines()
    assert "error: pip failed" in failed.stderr
    assert "done in" not in failed.stderr
    assert source(repository).returncode == 0

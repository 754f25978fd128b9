from __future__ import annotations

import subprocess
import sys

import pytest

from common.program.entry import run_main

INTERRUPTED_AT = """
import signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.argv = [{command!r}, *{arguments!r}]
from {command}.__main__ import main
sys.exit(main())
"""


def interrupted(command: str, module: str, *arguments: str, ignored: bool = False) -> tuple[int, str]:
    """(exit code, what it said) of a command to which Ctrl-C comes while it imports a module."""
    source = INTERRUPTED_AT.format(command=command, module=module, arguments=arguments)
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if ignored else []
    ended = subprocess.run([*shell, sys.executable, "-c", source], capture_output=True, text=True, timeout=30)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("command", ["agent", "coordinator"])
def test_ctrl_c_while_a_command_imports_ends_it_without_a_traceback(command: str) -> None:
    assert interrupted(command, "click") == (130, "")
    assert interrupted(command, f"{command}.cli") == (130, "")


def test_ctrl_c_that_a_shell_ignores_ends_nothing() -> None:
    code, said = interrupted("agent", "click", "--version", ignored=True)
    assert (code, said.startswith("agent")) == (0, True)


def test_an_uncaught_interrupt_ends_in_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.cli.main", main)
    assert run_main("agent.cli") == 130


@pytest.mark.parametrize(
    "arguments", [("coordinator", "--help"), ("coordinator", "start", "--help"), ("agent", "--help")]
)
def test_help_imports_no_library_that_only_runs_need(arguments: tuple[str, ...]) -> None:
    source = f"""
import sys
sys.argv = {list(arguments)!r}
from {arguments[0]}.__main__ import main
main()
print(sorted({{"numpy", "redis", "zmq", "cryptography", "psutil", "rich", "yaml"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"

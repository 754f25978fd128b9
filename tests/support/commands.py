"""The commands `coordinator` and `agent` as processes, with their own directory and home."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.clock import monotonic_ns
from common.units import NS_PER_S

PATIENCE_S = 60.0
"""Timeout of waits that must succeed on a busy machine, in seconds."""
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    args: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Running:
    """A running command. Its output goes to files, so it never blocks on a reader."""

    def __init__(self, args: tuple[str, ...], process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self.args, self.process = args, process
        self._stdout, self._stderr = stdout, stderr

    @property
    def stdout(self) -> str:
        """The output so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """The output so far."""
        return self._stderr.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the process and not to its children."""
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE_S) -> Finished:
        """Wait for its end. Raises AssertionError with its output after the timeout."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {timeout:g}s: {self._story()}") from None
        return Finished(self.args, code, self.stdout, self.stderr)

    def wait_for_text(self, text: str, timeout: float = PATIENCE_S) -> None:
        """Wait until `text` is on stdout or stderr. Raises AssertionError at the end of the command or the timeout."""
        give_up_ns = monotonic_ns() + int(timeout * NS_PER_S)
        while monotonic_ns() < give_up_ns:
            ended = self.process.poll() is not None
            if text in self.stdout or text in self.stderr:
                return
            assert not ended, f"ended before the output {text!r}: {self._story()}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_POLL_S)
        raise AssertionError(f"no output {text!r} within {timeout:g}s: {self._story()}")

    def kill_tree(self) -> None:
        """End the command and all processes that it started, if it still runs."""
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=5.0)
        self.process.wait()

    def _story(self) -> str:
        return f"{' '.join(self.args)}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class CommandLine:
    """Starts commands in `directory`, which also has their home, configuration and output."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[Running] = []
        self._said = directory / ".said"
        self._said.mkdir()
        home = directory / ".home"
        home.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("STAMPEDE_")}
        self.environment |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "COLUMNS": "140"}

    def start(self, program: str, *args: str, **environment: str) -> Running:
        """Start `coordinator` or `agent`, as installed beside this Python. environment: further variables."""
        return self._start((program, *args), (str(Path(sys.executable).parent / program), *args), environment)

    def start_shell(self, line: str, **environment: str) -> Running:
        """Start a line of bash."""
        return self._start(("bash", line), ("bash", "-c", line), environment)

    def _start(self, command: tuple[str, ...], arguments: tuple[str, ...], environment: dict[str, str]) -> Running:
        number = len(self.started)
        stdout, stderr = (self._said / f"{number}-{command[0]}.{stream}" for stream in ("stdout", "stderr"))
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                arguments,
                cwd=self.directory,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        running = Running(command, process, stdout, stderr)
        self.started.append(running)
        return running

    def coordinator(self, *args: str, timeout: float = PATIENCE_S, **environment: str) -> Finished:
        """Run `coordinator` with these arguments to its end."""
        return self.start("coordinator", *args, **environment).wait(timeout)

    def agent(self, *args: str, timeout: float = PATIENCE_S, **environment: str) -> Finished:
        """Run `agent` with these arguments to its end."""
        return self.start("agent", *args, **environment).wait(timeout)

    def close(self) -> None:
        """End all running commands, the last one first."""
        for running in reversed(self.started):
            running.kill_tree()

"""Real agents, all started at once on this machine: how long they take to the start of a run, and in which phases.

They run from compiled modules, as installed ones do, even where PYTHONDONTWRITEBYTECODE would have each agent compile
the sources again. Their memory is the proportional set size: what processes share counts once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import IO

import psutil

from common.clock import monotonic_ns
from common.protocol.token import coordinator_curve
from common.units import NS_PER_S
from coordinator.core.run import START_AHEAD_NS
from coordinator.journal.journal_file import read_journal
from coordinator.journal.records import RunStarted
from scripts.benchmark.contenders import BenchError
from scripts.benchmark.fleet import BenchmarkCoordinator
from scripts.benchmark.ground import Findings, Ground, Judged

MOST_REAL_S = 10.0
_LOAD_S = 5
_JOIN = ("join", "--once")
_PATIENCE_S, _PATIENCE_FOR_EACH_S = 60, 5
"""An agent takes half a second of CPU time to get ready; a busy machine, ten times as long."""
_SAMPLED = 8
"""Agents whose CPU time and memory are read: to read those of all would take longer than the run."""
_STEPS = {"imported": "agent: joining ", "joined": "agent: joined as ", "ordered": "agent: preparing "}
_RUNNING = "agent: running"


@dataclass(frozen=True, slots=True)
class Launch:
    """Seconds since the agents were launched. imported, joined, ordered: when the last agent had imported everything,
    was welcome, had its share. decided: when all were prepared, and the coordinator set the start instant. started:
    that instant. cpu_s: of all processes of an agent, until it ran. pss_bytes: their memory by then."""

    agents: int
    imported_s: float
    joined_s: float
    ordered_s: float
    decided_s: float
    started_s: float
    cpu_s: float
    pss_bytes: int

    @property
    def waited_s(self) -> float:
        """From the last hello to the start."""
        return self.started_s - self.joined_s


class RealAgent:
    """An `agent join`, and when it said what."""

    def __init__(self, name: str, endpoint: str, token_file: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.said: list[tuple[int, str]] = []
        command = [sys.executable, "-m", "agent.cli", *_JOIN, endpoint, "--token-file", str(token_file), "--name", name]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,))
        self._listener.start()

    def said_ns(self, beginning: str) -> int | None:
        """When it first said a line that begins like this."""
        return next((at_ns for at_ns, line in self.said if line.startswith(beginning)), None)

    @property
    def has_ended(self) -> bool:
        """Whether its process has."""
        return self._process.poll() is not None

    def usage(self) -> tuple[float, int]:
        """CPU time, and memory in bytes, of it and of its processes."""
        cpu_s, pss_bytes = 0.0, 0
        with suppress(psutil.Error):
            agent = psutil.Process(self._process.pid)
            for process in (agent, *agent.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                    memory = process.memory_full_info()
                    pss_bytes += getattr(memory, "pss", memory.uss)
        return cpu_s, pss_bytes

    def last_words(self) -> str:
        """How it stands, in a line."""
        code = self._process.poll()
        state = "it still runs" if code is None else f"it ended with {code}"
        return f"{self.name}: {state}, and said last: {self.said[-1][1] if self.said else 'nothing'}"

    def close(self) -> None:
        """End it, if it has not."""
        self._process.kill()
        self._process.wait()
        self._listener.join()

    def _listen(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.said.append((monotonic_ns(), line.rstrip()))


def real_section(ground: Ground) -> Findings:
    """The section `fleet` with --real. Raises BenchError."""
    agents = ground.options.real or 1
    print(f"{agents} real agents ...", file=sys.stderr)
    launch = launched(ground.server.url, agents)
    return Findings(
        [
            f"{agents} agents, in seconds after they were launched: the last had imported everything at "
            f"{launch.imported_s:.1f}, joined at {launch.joined_s:.1f}, and had its share at {launch.ordered_s:.1f};",
            f"all were prepared at {launch.decided_s:.1f}, and the run started at {launch.started_s:.1f};",
            f"each had used {launch.cpu_s:.2f} s of CPU time by then, and {launch.pss_bytes / 1e6:.0f} MB",
        ],
        {**asdict(launch), "hello_to_start_s": launch.waited_s},
        [
            Judged(
                f"{agents} real agents, from the last hello to the start",
                f"{launch.waited_s:.1f} s",
                f"at most {MOST_REAL_S:g} s",
                "ok" if launch.waited_s <= MOST_REAL_S else "BELOW",
            )
        ],
    )


def launched(url: str, agents: int) -> Launch:
    """Launch agents, and wait for the end of their run. Raises BenchError, which says how far the agents came."""
    patience_s = _PATIENCE_S + _PATIENCE_FOR_EACH_S * agents
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        token_file = folder / "token"
        coordinator_curve(token_file)  # makes it
        environment = _compiled(folder)
        coordinator = BenchmarkCoordinator(folder, token_file, url, agents, _LOAD_S, pools=None, wait_s=patience_s)
        stack.callback(coordinator.kill)
        endpoint = coordinator.endpoint()
        began_ns = monotonic_ns()
        fleet = []
        for number in range(agents):
            fleet.append(RealAgent(f"real-{number}", endpoint, token_file, environment))
            stack.callback(fleet[-1].close)
        while coordinator.runs(within_s=0.1) and any(agent.said_ns(_RUNNING) is None for agent in fleet):
            if any(agent.has_ended for agent in fleet):
                raise BenchError(_how_far(fleet, "an agent ended before the start"))
            if monotonic_ns() - began_ns > patience_s * NS_PER_S:
                raise BenchError(_how_far(fleet, f"not all ran within {patience_s} s"))
        usages = [agent.usage() for agent in fleet[:_SAMPLED]]
        try:
            coordinator.summary(_LOAD_S + patience_s)
        except BenchError as error:
            raise BenchError(_how_far(fleet, str(error))) from error
        [journal] = folder.glob("*/journal")
        [started] = [record for record in read_journal(journal) if isinstance(record, RunStarted)]
        last_s = {step: _last_s(fleet, beginning, began_ns) for step, beginning in _STEPS.items()}
    return Launch(
        agents=agents,
        imported_s=last_s["imported"],
        joined_s=last_s["joined"],
        ordered_s=last_s["ordered"],
        decided_s=(started.t0_ns - START_AHEAD_NS - began_ns) / NS_PER_S,
        started_s=(started.t0_ns - began_ns) / NS_PER_S,
        cpu_s=fmean(cpu_s for cpu_s, _ in usages),
        pss_bytes=round(fmean(pss_bytes for _, pss_bytes in usages)),
    )


def _compiled(folder: Path) -> dict[str, str]:
    """The environment for agents that find all modules compiled: they are compiled here, once."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    modules = "import agent.cli, agent.loop, agent.worker.process, common.protocol.token"
    subprocess.run([sys.executable, "-c", modules], env=environment, check=True)
    return environment


def _last_s(fleet: Sequence[RealAgent], beginning: str, began_ns: int) -> float:
    said_ns = [agent.said_ns(beginning) for agent in fleet]
    return (max(at_ns for at_ns in said_ns if at_ns is not None) - began_ns) / NS_PER_S


def _how_far(fleet: Sequence[RealAgent], why: str) -> str:
    """Why a fleet did not run, how many agents came to each step, and what those said last that came least far."""
    steps = {**_STEPS, "running": _RUNNING}
    reached = {step: [agent for agent in fleet if agent.said_ns(text) is not None] for step, text in steps.items()}
    counts = ", ".join(f"{len(those)} {step}" for step, those in reached.items())
    least = sorted(fleet, key=lambda agent: sum(agent in those for those in reached.values()))[:3]
    return "\n  ".join([f"bench: {why}", f"of {len(fleet)} agents: {counts}", *(one.last_words() for one in least)])

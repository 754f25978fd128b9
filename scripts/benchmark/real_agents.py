"""Real agents, all started at once on this machine: how long each phase takes until the run starts.

The modules are compiled first, as in an installation; with PYTHONDONTWRITEBYTECODE each agent would compile them again.
Memory is the proportional set size: memory that processes share counts once.
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
from scripts.benchmark.context import BenchContext, Findings, GoalResult
from scripts.benchmark.fleet import BenchmarkCoordinator

MAX_START_S = 10.0
_LOAD_S = 5
_TIMEOUT_S, _TIMEOUT_PER_AGENT_S = 60, 5
"""An agent needs half a second of CPU time to get ready; a busy machine takes ten times as long."""
_SAMPLED = 8
"""Number of agents whose CPU time and memory are read. Reading all agents takes longer than the run."""
_PHASES = {"imported": "agent: joining ", "joined": "agent: joined as ", "ordered": "agent: preparing "}
_RUNNING = "agent: running"


@dataclass(frozen=True, slots=True)
class Launch:
    """When each phase ended, in seconds since the launch. imported, joined, ordered: when the last agent had imported
    its modules, had received Welcome, had received its assignment. decided: when all agents were prepared, and the
    coordinator set the start instant. started: the start instant. cpu_s: CPU time of one agent with its processes until
    it ran. pss_bytes: their memory then."""

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
        """From the last Welcome to the start instant."""
        return self.started_s - self.joined_s


class RealAgent:
    """An `agent join`. lines: its output, with the monotonic time of each line."""

    def __init__(self, name: str, endpoint: str, token_file: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.lines: list[tuple[int, str]] = []
        command = [sys.executable, "-m", "agent.cli", "join", "--once", endpoint]
        command += ["--token-file", str(token_file), "--name", name]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()

    def first_ns(self, start: str) -> int | None:
        """The time of the first line that starts like this; None without such a line."""
        return next((at_ns for at_ns, line in self.lines if line.startswith(start)), None)

    @property
    def has_ended(self) -> bool:
        """Whether the agent's process has ended."""
        return self._process.poll() is not None

    def usage(self) -> tuple[float, int]:
        """(CPU seconds, bytes of memory) of the agent and all its processes."""
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

    def status(self) -> str:
        """Whether the agent runs, and its last line."""
        code = self._process.poll()
        state = "still runs" if code is None else f"ended with {code}"
        return f"{self.name} {state}; last line: {self.lines[-1][1] if self.lines else 'none'}"

    def close(self) -> None:
        """Kill the agent. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.lines.append((monotonic_ns(), line.rstrip()))


def real_section(context: BenchContext) -> Findings:
    """The section `fleet` with --real. Raises BenchError."""
    agents = context.options.real or 1
    print(f"{agents} real agents ...", file=sys.stderr)
    launch = launch_agents(context.server.url, agents)
    return Findings(
        [
            f"{agents} agents; seconds from the launch until the last agent had imported its modules: "
            f"{launch.imported_s:.1f}, had joined: {launch.joined_s:.1f}, had its assignment: {launch.ordered_s:.1f};",
            f"until all agents were prepared: {launch.decided_s:.1f}, until the run started: {launch.started_s:.1f};",
            f"until then each agent had used {launch.cpu_s:.2f} s of CPU time and {launch.pss_bytes / 1e6:.0f} MB",
        ],
        {**asdict(launch), "hello_to_start_s": launch.waited_s},
        [
            GoalResult(
                f"{agents} real agents, from the last Welcome to the start",
                f"{launch.waited_s:.1f} s",
                f"at most {MAX_START_S:g} s",
                "ok" if launch.waited_s <= MAX_START_S else "MISSED",
            )
        ],
    )


def launch_agents(url: str, agents: int) -> Launch:
    """Launch agents and wait for the end of their run. Raises BenchError with the phases that the agents reached."""
    timeout_s = _TIMEOUT_S + _TIMEOUT_PER_AGENT_S * agents
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        token_file = folder / "token"
        coordinator_curve(token_file)  # creates the file
        environment = _compiled_environment(folder)
        coordinator = BenchmarkCoordinator(folder, token_file, url, agents, _LOAD_S, pools=None, wait_s=timeout_s)
        stack.callback(coordinator.kill)
        endpoint = coordinator.endpoint()
        began_ns = monotonic_ns()
        fleet = []
        for number in range(agents):
            fleet.append(RealAgent(f"real-{number}", endpoint, token_file, environment))
            stack.callback(fleet[-1].close)
        while coordinator.runs(within_s=0.1) and any(agent.first_ns(_RUNNING) is None for agent in fleet):
            if any(agent.has_ended for agent in fleet):
                raise BenchError(_progress(fleet, "an agent ended before the start"))
            if monotonic_ns() - began_ns > timeout_s * NS_PER_S:
                raise BenchError(_progress(fleet, f"not all agents ran within {timeout_s} s"))
        usages = [agent.usage() for agent in fleet[:_SAMPLED]]
        try:
            coordinator.summary(_LOAD_S + timeout_s)
        except BenchError as error:
            raise BenchError(_progress(fleet, str(error))) from error
        [journal] = folder.glob("*/journal")
        [started] = [record for record in read_journal(journal) if isinstance(record, RunStarted)]
        last_s = {phase: _last_s(fleet, start, began_ns) for phase, start in _PHASES.items()}
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


def _compiled_environment(folder: Path) -> dict[str, str]:
    """Compile all modules of an agent, and return the environment in which agents find the compiled modules."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    modules = "import agent.cli, agent.loop, agent.worker.process, common.protocol.token"
    subprocess.run([sys.executable, "-c", modules], env=environment, check=True)
    return environment


def _last_s(fleet: Sequence[RealAgent], start: str, began_ns: int) -> float:
    """Seconds until the last agent printed a line that starts like this."""
    first_ns = [agent.first_ns(start) for agent in fleet]
    return (max(at_ns for at_ns in first_ns if at_ns is not None) - began_ns) / NS_PER_S


def _progress(fleet: Sequence[RealAgent], why: str) -> str:
    """An error text: why a fleet did not run, how many agents reached each phase, and the last lines of the slowest."""
    phases = {**_PHASES, "running": _RUNNING}
    reached = {
        phase: [agent for agent in fleet if agent.first_ns(start) is not None] for phase, start in phases.items()
    }
    counts = ", ".join(f"{len(agents)} {phase}" for phase, agents in reached.items())
    slowest = sorted(fleet, key=lambda agent: sum(agent in agents for agents in reached.values()))[:3]
    return "\n  ".join([f"bench: {why}", f"of {len(fleet)} agents: {counts}", *(agent.status() for agent in slowest)])

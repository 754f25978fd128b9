"""The section `fleet`: CPU and memory of the coordinator by number of agents. Runs only if named.

A real `coordinator start`, with journal and live lines, runs simulated agents in processes of their own
(`scripts.benchmark.simulated_agents`): real sockets, CURVE and the agent's real session. Each agent reports ten
different commands per second, sends frames at the pace that the coordinator sets, and loads nothing.

CPU is the CPU time of the coordinator's process, including ZeroMQ's I/O threads, from two seconds after the start
instant until the last frame is acknowledged, divided by the seconds reported. So a coordinator that falls behind does
not look cheaper. Other work on the machine hardly changes CPU time, but raises the latencies. The simulated agents
raise them too, because they share the cores.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from common.clock import monotonic_ns
from common.errors import EXIT_OK, InvalidResultError
from common.protocol.token import coordinator_curve
from common.units import NS_PER_S
from coordinator.core.run import START_AHEAD_NS
from scripts.benchmark.contenders import BenchError
from scripts.benchmark.context import BenchContext, Findings, GoalResult
from scripts.benchmark.simulated_agents import COMMANDS

MAX_CORE_SHARE = 0.35
MAX_ACK_MS = 200.0
MAX_START_MS = 250.0
MAX_GROWTH = 0.05
MAX_COST_RATIO = 1.25
"""Most CPU per agent in the largest fleet, relative to the smallest fleet of at least `_MIN_COMPARED` agents. In
smaller fleets the coordinator's fixed cost dominates."""
_MIN_COMPARED = 100
_AGENTS_PER_PROCESS = 125
_WARM_UP_S = 2
_SAMPLE_S = 0.25
_TIMEOUT_S = 120
_COORDINATOR = "import sys; from coordinator.cli import main; sys.exit(main())"
_LISTENING = re.compile(r"listening on (tcp://\S+)")
_IGNORED = re.compile(r"ignored messages and peers: (.*)")  # printed by the coordinator


@dataclass(frozen=True, slots=True)
class Sample:
    """CPU time and memory of the coordinator at one moment."""

    at_ns: int
    cpu_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class FleetCost:
    """What a fleet cost the coordinator. core: its CPU seconds per reported second. start_ms: from the coordinator's
    decision to start until the last agent received Start. rss_bytes: after the warm-up, in the middle, at the end.
    ignored: the coordinator's line about ignored messages and peers."""

    agents: int
    seconds: int
    core: float
    frames: int
    resent: int
    ack_p50_ms: float
    ack_p99_ms: float
    reply_p99_ms: float
    start_ms: float
    rss_bytes: tuple[int, int, int]
    ignored: str

    @property
    def per_agent(self) -> float:
        """Share of a core per agent."""
        return self.core / self.agents

    @property
    def growth(self) -> float:
        """Relative growth of memory from the end of the warm-up to the end of the run."""
        return self.rss_bytes[2] / self.rss_bytes[0] - 1


def fleet_section(context: BenchContext) -> Findings:
    """Measure each number of agents. A fleet whose run fails is reported as a missed goal."""
    costs: list[FleetCost] = []
    failed: list[GoalResult] = []
    for agents in context.options.agents:
        print(f"{agents} simulated agents for {context.options.fleet_seconds} s ...", file=sys.stderr)
        try:
            costs.append(fleet_cost(context.server.url, agents, context.options.fleet_seconds))
        except BenchError as error:
            failed.append(GoalResult(f"a coordinator of {agents} agents", str(error), "a run that ends", "MISSED"))
    if not costs:
        return Findings(["no fleet's run ended"], [], failed)
    return Findings(table(costs), [asdict(cost) for cost in costs], [*goal_results(costs), *failed])


def table(costs: list[FleetCost]) -> list[str]:
    """The printed table: one row per fleet."""
    head = (
        "agents",
        "of a core",
        "per agent",
        "ack p50",
        "ack p99",
        "heartbeat p99",
        "start",
        "memory in MB",
        "resent",
    )
    rows = [head, *map(_row, costs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return lines + [f"ignored with {cost.agents} agents: {cost.ignored}" for cost in costs if cost.ignored]


def _row(cost: FleetCost) -> tuple[str, ...]:
    return (
        str(cost.agents),
        f"{cost.core:.1%}",
        f"{cost.per_agent:.3%}",
        *(f"{ms:.0f} ms" for ms in (cost.ack_p50_ms, cost.ack_p99_ms, cost.reply_p99_ms, cost.start_ms)),
        ", ".join(f"{size / 1e6:.1f}" for size in cost.rss_bytes),
        str(cost.resent),
    )


def goal_results(costs: list[FleetCost]) -> Iterator[GoalResult]:
    """The largest fleet against its goals, and its cost per agent against a smaller fleet's."""
    largest = max(costs, key=lambda cost: cost.agents)
    subject = f"a coordinator of {largest.agents} agents"
    for what, found, limit, form in (
        ("CPU", largest.core, MAX_CORE_SHARE, "{:.0%} of a core"),
        ("acknowledgements, p99", largest.ack_p99_ms, MAX_ACK_MS, "{:.0f} ms"),
        ("until the last agent has Start", largest.start_ms, MAX_START_MS, "{:.0f} ms"),
        (f"growth of memory over {largest.seconds} s", largest.growth, MAX_GROWTH, "{:+.0%}"),
    ):
        verdict = "ok" if found <= limit else "MISSED"
        yield GoalResult(f"{subject}: {what}", form.format(found), f"at most {form.format(limit)}", verdict)
    comparable = [cost for cost in costs if cost.agents >= _MIN_COMPARED and cost is not largest]
    if comparable:
        smaller = min(comparable, key=lambda cost: cost.agents)
        ratio = largest.per_agent / smaller.per_agent
        what = f"CPU per agent with {largest.agents} agents against {smaller.agents}"
        verdict = "ok" if ratio <= MAX_COST_RATIO else "MISSED"
        yield GoalResult(what, f"{ratio:.2f} times", f"at most {MAX_COST_RATIO:.2f}", verdict)


def fleet_cost(url: str, agents: int, seconds: int) -> FleetCost:
    """Run one fleet. Raises BenchError if the run does not end, or if an operation is missing."""
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        token_file = folder / "token"
        coordinator_curve(token_file)  # creates the file
        coordinator = BenchmarkCoordinator(folder, token_file, url, agents, seconds, pools=agents)
        stack.callback(coordinator.kill)
        endpoint = coordinator.endpoint()
        simulators = []
        for first in range(0, agents, _AGENTS_PER_PROCESS):
            count = min(_AGENTS_PER_PROCESS, agents - first)
            command = [sys.executable, "-m", "scripts.benchmark.simulated_agents", endpoint, str(token_file)]
            simulator = stack.enter_context(
                subprocess.Popen([*command, str(first), str(count)], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(simulator.kill)
            simulators.append(simulator)
        summary = coordinator.summary(seconds + _TIMEOUT_S)
        measurements = [json.loads(simulator.communicate(timeout=_TIMEOUT_S)[0]) for simulator in simulators]
    return _cost(agents, seconds, coordinator, summary, measurements)


def _cost(
    agents: int, seconds: int, coordinator: BenchmarkCoordinator, summary: Any, measurements: list[dict[str, Any]]
) -> FleetCost:
    operations = sum(process["operations"] for process in measurements)
    if (counted := summary["totals"]["operations"]) != operations:
        raise BenchError(f"bench: {agents} agents reported {operations} operations, the coordinator {counted}")
    t0_ns = measurements[0]["t0_ns"]
    warm_s = min(_WARM_UP_S, seconds / 4)
    begin_ns, end_ns = t0_ns + round(warm_s * NS_PER_S), max(process["acked_at_ns"] for process in measurements)
    within = [sample for sample in coordinator.samples if begin_ns <= sample.at_ns <= end_ns]
    first, middle, last = within[0], within[len(within) // 2], within[-1]
    acks = sorted(ack_ns for process in measurements for ack_ns in process["ack_ns"])
    replies = sorted(reply_ns for process in measurements for reply_ns in process["reply_ns"])
    started_ns = max(at_ns for process in measurements for at_ns in process["started_ns"])
    return FleetCost(
        agents=agents,
        seconds=seconds,
        core=(last.cpu_s - first.cpu_s) / (seconds - warm_s),
        frames=sum(process["frames"] for process in measurements),
        resent=sum(process["resent"] for process in measurements),
        ack_p50_ms=_quantile(acks, 0.5) / 1e6,
        ack_p99_ms=_quantile(acks, 0.99) / 1e6,
        reply_p99_ms=_quantile(replies, 0.99) / 1e6,
        start_ms=(started_ns - (t0_ns - START_AHEAD_NS)) / 1e6,
        rss_bytes=(first.rss_bytes, middle.rss_bytes, last.rss_bytes),
        ignored=coordinator.ignored,
    )


def _quantile(ascending: list[int], q: float) -> int:
    return ascending[min(len(ascending) - 1, int(q * len(ascending)))] if ascending else 0


class BenchmarkCoordinator:
    """A `coordinator start` that waits for `agents` agents. Its CPU time and memory are sampled while it runs."""

    def __init__(
        self,
        folder: Path,
        token_file: Path,
        url: str,
        agents: int,
        seconds: int,
        pools: int | None,
        wait_s: int = _TIMEOUT_S,
    ) -> None:
        """pools: client instance pools; None for one per worker process. wait_s: how long agents may take to join."""
        self.samples: list[Sample] = []
        self.ignored = ""
        self._lines: list[str] = []
        self._listening = threading.Event()
        self._endpoint = ""
        command = [sys.executable, "-c", _COORDINATOR, "start", "--bind", "tcp://127.0.0.1:*", "--url", url]
        command += ["--token-file", str(token_file), "--out", str(folder), "--expect-agents", str(agents), "--json"]
        command += [] if pools is None else ["--client-pools", str(pools)]
        command += ["--threads-per-pool", "1", "--client-instances-per-pool", "1"]
        command += ["--max-connections", "1", "--duration", f"{seconds}s", "--wait", f"{wait_s}s"]
        command += [argument for name in COMMANDS for argument in ("--command", name)]
        self._stdout = folder / "stdout.json"
        with self._stdout.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stderr,)),
            threading.Thread(target=self._sample),
        ]
        for thread in self._threads:
            thread.start()

    def endpoint(self) -> str:
        """The endpoint of the coordinator. Raises BenchError if the coordinator does not listen."""
        self._listening.wait(_TIMEOUT_S)
        if not self._endpoint:
            self.kill()
            raise BenchError(f"bench: the coordinator does not listen: {self._last_line}")
        return self._endpoint

    def runs(self, within_s: float) -> bool:
        """Whether the coordinator still runs after this time; returns early if not."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return True
        return False

    def summary(self, within_s: float) -> Any:
        """Wait until the coordinator ends, and return its summary. Raises BenchError."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchError(
                f"the coordinator did not end within {within_s} s, at {self._latest_core_share:.0%} of a core: "
                f"{self._last_line}"
            ) from None
        for thread in self._threads:
            thread.join()
        # Simulated agents send nothing, so the server counts far less than the agents report: the result is invalid.
        if self._process.returncode not in (EXIT_OK, InvalidResultError.exit_code):
            raise BenchError(f"bench: the coordinator ended with {self._process.returncode}: {self._last_line}")
        return json.loads(self._stdout.read_text())

    def kill(self) -> None:
        """Kill the coordinator. Idempotent."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()

    @property
    def _latest_core_share(self) -> float:
        """Share of one core over the last 40 samples."""
        first, last = self.samples[max(0, len(self.samples) - 40)], self.samples[-1]
        return (last.cpu_s - first.cpu_s) * NS_PER_S / max(1, last.at_ns - first.at_ns)

    @property
    def _last_line(self) -> str:
        return self._lines[-1] if self._lines else "no output"

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.append(line.rstrip())
                if found := _LISTENING.search(line):
                    self._endpoint = found[1]
                    self._listening.set()
                if found := _IGNORED.search(line):
                    self.ignored = found[1].strip()
        self._listening.set()

    def _sample(self) -> None:
        process = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            try:
                times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:
                return
            self.samples.append(Sample(monotonic_ns(), times.user + times.system, memory.rss))
            try:
                self._process.wait(_SAMPLE_S)
            except subprocess.TimeoutExpired:
                continue

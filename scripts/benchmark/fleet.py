"""The section `fleet`: what a coordinator costs by the number of its agents. Not run unless it is named.

A `coordinator start` as people run it, with a journal and live lines, and simulated agents in processes of their own
(`scripts.benchmark.simulators`): real sockets, CURVE, the real session, ten commands a second each, frames as often as
the coordinator says, and no load. CPU is that of the coordinator's process, ZeroMQ's I/O threads included, from two
seconds after the start instant until the last frame is acknowledged, divided by the seconds that were reported: a
coordinator that falls behind does not look cheaper for it. CPU time hardly depends on what else the machine does; the
latencies do, because the simulators share its cores.
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
from scripts.benchmark.ground import Findings, Ground, Judged
from scripts.benchmark.simulators import COMMANDS

MOST_CORE = 0.35
MOST_ACK_MS = 200.0
MOST_START_MS = 250.0
FLAT = 0.05
LINEAR = 1.25
"""How much more an agent may cost in the largest fleet than in the smallest one of at least `_FEW` agents: below, what
a coordinator costs by itself is most of it."""
_FEW = 100
_AGENTS_PER_PROCESS = 125
_WARM_S = 2
_SAMPLE_S = 0.25
_PATIENCE_S = 120
_COORDINATOR = "import sys; from coordinator.cli import main; sys.exit(main())"
_LISTENING = re.compile(r"listening on (tcp://\S+)")
_SET_ASIDE = re.compile(r"messages and peers that were set aside: (.*)")


@dataclass(frozen=True, slots=True)
class Sample:
    """The coordinator at one moment."""

    at_ns: int
    cpu_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class FleetCost:
    """What one fleet cost. core: CPU time of the coordinator for each second that was reported. start_ms: from the
    coordinator's decision to the last agent's receipt of its start. rss_bytes: at the warm start, in the middle, at the
    end. set_aside: what the coordinator dropped, in its own words."""

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
    set_aside: str

    @property
    def per_agent(self) -> float:
        """Share of a core for each agent."""
        return self.core / self.agents

    @property
    def growth(self) -> float:
        """By which part memory grew from the warm start to the end."""
        return self.rss_bytes[2] / self.rss_bytes[0] - 1


def fleet_section(ground: Ground) -> Findings:
    """One row for each number of agents. A fleet that does not come to its end is reported too: it is a finding."""
    costs: list[FleetCost] = []
    failed: list[Judged] = []
    for agents in ground.options.agents:
        print(f"{agents} simulated agents for {ground.options.fleet_seconds} s ...", file=sys.stderr)
        try:
            costs.append(fleet_cost(ground.server.url, agents, ground.options.fleet_seconds))
        except BenchError as error:
            failed.append(Judged(f"a coordinator of {agents} agents", str(error), "a run that ends", "BELOW"))
    if not costs:
        return Findings(["no fleet came to its end"], [], failed)
    return Findings(table(costs), [asdict(cost) for cost in costs], [*judged(costs), *failed])


def table(costs: list[FleetCost]) -> list[str]:
    """For people."""
    head = (
        "agents",
        "of a core",
        "per agent",
        "ack p50",
        "ack p99",
        "heartbeat p99",
        "starts",
        "memory in MB",
        "resent",
    )
    rows = [head, *map(_row, costs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return lines + [f"set aside with {cost.agents} agents: {cost.set_aside}" for cost in costs if cost.set_aside]


def _row(cost: FleetCost) -> tuple[str, ...]:
    return (
        str(cost.agents),
        f"{cost.core:.1%}",
        f"{cost.per_agent:.3%}",
        *(f"{ms:.0f} ms" for ms in (cost.ack_p50_ms, cost.ack_p99_ms, cost.reply_p99_ms, cost.start_ms)),
        ", ".join(f"{size / 1e6:.1f}" for size in cost.rss_bytes),
        str(cost.resent),
    )


def judged(costs: list[FleetCost]) -> Iterator[Judged]:
    """The largest fleet against what is wanted, and against a smaller one."""
    largest = max(costs, key=lambda cost: cost.agents)
    whom = f"a coordinator of {largest.agents} agents"
    for what, found, limit, form in (
        ("CPU", largest.core, MOST_CORE, "{:.0%} of a core"),
        ("99% of acknowledgements", largest.ack_p99_ms, MOST_ACK_MS, "within {:.0f} ms"),
        ("all starts", largest.start_ms, MOST_START_MS, "within {:.0f} ms"),
        (f"memory over {largest.seconds} s", largest.growth, FLAT, "{:+.0%}"),
    ):
        verdict = "ok" if found <= limit else "BELOW"
        yield Judged(f"{whom}: {what}", form.format(found), f"at most {form.format(limit)}", verdict)
    several = [cost for cost in costs if cost.agents >= _FEW and cost is not largest]
    if several:
        smaller = min(several, key=lambda cost: cost.agents)
        ratio = largest.per_agent / smaller.per_agent
        what = f"CPU for each of {largest.agents} agents, against each of {smaller.agents}"
        yield Judged(what, f"{ratio:.2f} times", f"at most {LINEAR:.2f}", "ok" if ratio <= LINEAR else "BELOW")


def fleet_cost(url: str, agents: int, seconds: int) -> FleetCost:
    """Run one fleet. Raises BenchError when an agent did not come to its end, or an operation is missing."""
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        token_file = folder / "token"
        coordinator_curve(token_file)  # makes it
        coordinator = BenchmarkCoordinator(folder, token_file, url, agents, seconds, pools=agents)
        stack.callback(coordinator.kill)
        endpoint = coordinator.endpoint()
        simulators = []
        for first in range(0, agents, _AGENTS_PER_PROCESS):
            count = min(_AGENTS_PER_PROCESS, agents - first)
            command = [sys.executable, "-m", "scripts.benchmark.simulators", endpoint, str(token_file)]
            simulator = stack.enter_context(
                subprocess.Popen([*command, str(first), str(count)], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(simulator.kill)
            simulators.append(simulator)
        summary = coordinator.summary(seconds + _PATIENCE_S)
        tallies = [json.loads(simulator.communicate(timeout=_PATIENCE_S)[0]) for simulator in simulators]
    return _cost(agents, seconds, coordinator, summary, tallies)


def _cost(
    agents: int, seconds: int, coordinator: BenchmarkCoordinator, summary: Any, tallies: list[dict[str, Any]]
) -> FleetCost:
    operations = sum(tally["operations"] for tally in tallies)
    if (counted := summary["totals"]["operations"]) != operations:
        raise BenchError(f"bench: {agents} agents reported {operations} operations, the coordinator {counted}")
    t0_ns = tallies[0]["t0_ns"]
    warm_s = min(_WARM_S, seconds / 4)
    begin_ns, end_ns = t0_ns + round(warm_s * NS_PER_S), max(tally["acked_at_ns"] for tally in tallies)
    within = [sample for sample in coordinator.samples if begin_ns <= sample.at_ns <= end_ns]
    first, middle, last = within[0], within[len(within) // 2], within[-1]
    acks = sorted(ack_ns for tally in tallies for ack_ns in tally["ack_ns"])
    replies = sorted(reply_ns for tally in tallies for reply_ns in tally["reply_ns"])
    started_ns = max(at_ns for tally in tallies for at_ns in tally["started_ns"])
    return FleetCost(
        agents=agents,
        seconds=seconds,
        core=(last.cpu_s - first.cpu_s) / (seconds - warm_s),
        frames=sum(tally["frames"] for tally in tallies),
        resent=sum(tally["resent"] for tally in tallies),
        ack_p50_ms=_quantile(acks, 0.5) / 1e6,
        ack_p99_ms=_quantile(acks, 0.99) / 1e6,
        reply_p99_ms=_quantile(replies, 0.99) / 1e6,
        start_ms=(started_ns - (t0_ns - START_AHEAD_NS)) / 1e6,
        rss_bytes=(first.rss_bytes, middle.rss_bytes, last.rss_bytes),
        set_aside=coordinator.set_aside,
    )


def _quantile(ascending: list[int], q: float) -> int:
    return ascending[min(len(ascending) - 1, int(q * len(ascending)))] if ascending else 0


class BenchmarkCoordinator:
    """A `coordinator start` that waits for `agents` agents, measured while it runs."""

    def __init__(
        self,
        folder: Path,
        token_file: Path,
        url: str,
        agents: int,
        seconds: int,
        pools: int | None,
        wait_s: int = _PATIENCE_S,
    ) -> None:
        """pools: client instance pools; None for one for each worker process. wait_s: for the agents to join."""
        self.samples: list[Sample] = []
        self.set_aside = ""
        self._lines: list[str] = []
        self._listening = threading.Event()
        self._endpoint = ""
        command = [sys.executable, "-c", _COORDINATOR, "start", "--bind", "tcp://127.0.0.1:*", "--url", url]
        command += ["--token-file", str(token_file), "--out", str(folder), "--expect-agents", str(agents), "--json"]
        command += [] if pools is None else ["--client-pools", str(pools)]
        command += ["--threads-per-pool", "1", "--client-instances-per-pool", "1"]
        command += ["--max-connections", "1", "--duration", f"{seconds}s", "--wait", f"{wait_s}s"]
        command += [argument for name in COMMANDS for argument in ("--command", name)]
        self._written = folder / "written.json"
        with self._written.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        self._watchers = [
            threading.Thread(target=self._read, args=(self._process.stderr,)),
            threading.Thread(target=self._watch),
        ]
        for watcher in self._watchers:
            watcher.start()

    def endpoint(self) -> str:
        """Where it listens. Raises BenchError if it does not."""
        self._listening.wait(_PATIENCE_S)
        if not self._endpoint:
            self.kill()
            raise BenchError(f"bench: no coordinator: {self._last_words}")
        return self._endpoint

    def runs(self, within_s: float) -> bool:
        """Whether it still runs after this time."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return True
        return False

    def summary(self, within_s: float) -> Any:
        """Its summary, when it has ended. Raises BenchError."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchError(
                f"it did not end within {within_s} s, at {self._latest_core:.0%} of a core: {self._last_words}"
            ) from None
        for watcher in self._watchers:
            watcher.join()
        # Nobody loads the server, so its own counters are far below what the agents say: the result is invalid.
        if self._process.returncode not in (EXIT_OK, InvalidResultError.exit_code):
            raise BenchError(f"bench: the coordinator ended with {self._process.returncode}: {self._last_words}")
        return json.loads(self._written.read_text())

    def kill(self) -> None:
        """End it, if it has not."""
        self._process.kill()
        self._process.wait()
        for watcher in self._watchers:
            watcher.join()

    @property
    def _latest_core(self) -> float:
        """Of one core, in the last seconds."""
        first, last = self.samples[max(0, len(self.samples) - 40)], self.samples[-1]
        return (last.cpu_s - first.cpu_s) * NS_PER_S / max(1, last.at_ns - first.at_ns)

    @property
    def _last_words(self) -> str:
        return self._lines[-1] if self._lines else "it said nothing"

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.append(line.rstrip())
                if found := _LISTENING.search(line):
                    self._endpoint = found[1]
                    self._listening.set()
                if found := _SET_ASIDE.search(line):
                    self.set_aside = found[1].strip()
        self._listening.set()

    def _watch(self) -> None:
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

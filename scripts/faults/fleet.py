"""The fleet of a round: a real server, a coordinator, local agents, and remote agents, each behind its own relay."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import StampedeError
from common.plan.schema import Embedded
from common.protocol.token import coordinator_curve
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.embedded import open_embedded
from coordinator.journal.journal_file import read_journal
from scripts.faults import server_counts
from scripts.faults.processes import FleetProcess, is_running, local_agents_of
from scripts.faults.relay import HOST, Relay
from scripts.faults.round_specs import RoundSpec


@dataclass(slots=True)
class SoakAgent:
    """A remote agent, or a local agent, which has neither relay nor command. stopped_since_s: since when its process is
    stopped. unreachable_since_s: since when no message from the coordinator reaches the agent. calls: calls on its
    connections at the last check."""

    pid: int
    relay: Relay | None = None
    command: FleetProcess | None = None
    stopped_since_s: float | None = None
    unreachable_since_s: float | None = None
    calls: int | None = None

    @property
    def command_runs(self) -> bool:
        """Whether the agent is remote and its process runs."""
        return self.command is not None and self.command.code is None

    @property
    def is_free(self) -> bool:
        """Whether a remote agent has printed that it waits for another run."""
        return self.command is not None and "waiting for the next" in self.command.output

    @property
    def is_alive(self) -> bool:
        """Whether the agent's process runs."""
        return self.command_runs if self.command is not None else is_running(self.pid)


class SoakFleet:
    """Starts the processes of a round; `close` ends all of them. Times are seconds since this object was made.

    coordinator: the current one. coordinator_gone_since_s: since when no coordinator can send messages.
    """

    def __init__(self, spec: RoundSpec, directory: Path) -> None:
        """directory: for the output and files of all processes. It must exist and be empty."""
        self.spec, self.directory = spec, directory
        self._opened = contextlib.ExitStack()
        self.server = self._opened.enter_context(open_embedded(Embedded.STANDALONE))
        self.server_port = self.server.port
        self.client = self._opened.enter_context(
            redis.Redis(host=HOST, port=self.server_port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))
        )
        self.port = _free_port()
        self.token = directory / "token"
        self.out = directory / "runs"
        self.agents: list[SoakAgent] = []
        self.commands: list[FleetProcess] = []
        self.coordinator: FleetProcess | None = None
        self.coordinator_gone_since_s: float | None = None
        self._began_s = time.monotonic()
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("STAMPEDE_")}
        self._environment |= {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "COLUMNS": "140"}

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def endpoint(self) -> str:
        """The endpoint of the coordinator."""
        return f"tcp://{HOST}:{self.port}"

    # -- processes

    def prepare(self) -> None:
        """Create the token, the plan file, and a relay for each remote agent."""
        coordinator_curve(self.token)
        plan = self.spec.plan | {"target": {"url": self.server.url, "socket_timeout": "1500ms"}}
        (self.directory / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        self.agents = [SoakAgent(pid=0, relay=Relay(self.port, proxied=spec.proxied)) for spec in self.spec.agents]

    def start_agent(self, number: int) -> None:
        """Start a remote agent."""
        spec, agent = self.spec.agents[number], self.agents[number]
        assert agent.relay is not None
        args = ["agent", "join", agent.relay.endpoint, "--name", f"soak-{number}", "--token-file", str(self.token)]
        args += ["--processes", str(spec.processes), *(["--once"] if spec.once else [])]
        agent.command = self.start(args, f"agent-{number}", terminal=spec.terminal)
        agent.pid = agent.command.pid

    def start_coordinator(self, name: str, resume: str | None = None) -> None:
        """Start a coordinator with the round's plan. resume: the run to resume instead."""
        what = ["--resume", resume] if resume else [str(self.directory / "plan.yaml"), "--bind", self.endpoint]
        args = ["coordinator", "start", *what, "--out", str(self.out), "--token-file", str(self.token)]
        self.coordinator = self.start(args, name, terminal=self.spec.terminal)
        self.coordinator_gone_since_s = None

    def start(self, args: list[str], name: str, *, terminal: bool = False) -> FleetProcess:
        """Start a command whose output goes to `name`.log."""
        log = self.directory / f"{name}.log"
        command = FleetProcess(args, log, self._environment, self.directory, terminal=terminal)
        self.commands.append(command)
        return command

    def restart_server(self) -> None:
        """Start an empty server on the port of the killed one."""
        with patch("coordinator.embedded.servers._free_ports", lambda _count: [self.server_port]):
            self.server = self._opened.enter_context(open_embedded(Embedded.STANDALONE))

    def signal_server(self, number: int) -> None:
        """Send the server a signal. Raises AssertionError once it is killed."""
        assert self.server.pid is not None
        os.kill(self.server.pid, number)

    def find_local_agents(self) -> None:
        """Add local agents that the coordinator has started since the last call to `agents`."""
        if self.coordinator is not None and self.coordinator.code is None:
            known = {agent.pid for agent in self.agents}
            self.agents += [SoakAgent(pid) for pid in local_agents_of(self.coordinator.pid) if pid not in known]

    def close(self) -> None:
        """End everything: relays first, so that they disturb no process that is about to end; the server last."""
        for agent in self.agents:
            if agent.relay is not None:
                agent.relay.close()
        for command in self.commands:
            command.close()
        self._opened.close()

    # -- results

    @property
    def folders(self) -> list[Path]:
        """Folders of all runs that have a journal, the oldest first."""
        found = [path for path in self.out.glob("*") if (path / "journal").exists()] if self.out.exists() else []
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    @property
    def journal(self) -> Aggregate:
        """The folded journal of the last run so far."""
        for folder in reversed(self.folders):
            with contextlib.suppress(StampedeError, OSError):
                return fold(read_journal(folder / "journal"))
        return Aggregate()

    @property
    def is_open(self) -> bool:
        """Whether the last run has started and not ended."""
        journal = self.journal
        return journal.started is not None and journal.closed is None

    def calls(self) -> int | None:
        """The server's count of the plan's commands; None if the server does not answer."""
        for _ in range(20):
            with contextlib.suppress(redis.RedisError):
                return sum(server_counts.server_calls(self.client).values())
        return None


def _free_port() -> int:
    """A free port below the range that the system uses for outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((HOST, port))
            return port

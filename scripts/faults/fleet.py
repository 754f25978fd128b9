"""The fleet of a round: a real server, a coordinator, and agents, each behind a relay of its own or local."""

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
from scripts.faults import counts
from scripts.faults.draws import Draw
from scripts.faults.processes import FleetProcess, local_agents_of, runs
from scripts.faults.relay import HOST, Relay


@dataclass(slots=True)
class PlayedAgent:
    """An agent from elsewhere, or a local one, which has neither relay nor command. stopped_s, deaf_s: since when it
    does not run, or cannot hear its coordinator. calls: of its connections when they were last looked at."""

    pid: int
    relay: Relay | None = None
    command: FleetProcess | None = None
    stopped_s: float | None = None
    deaf_s: float | None = None
    calls: int | None = None

    @property
    def joins(self) -> bool:
        """It is a process that we started, and still runs."""
        return self.command is not None and self.command.code is None

    @property
    def is_free(self) -> bool:
        """It has said that it waits for a next run."""
        return self.command is not None and "waiting for the next" in self.command.said

    @property
    def is_there(self) -> bool:
        """It runs; of a process that we started, until the last of its threads has ended."""
        return self.joins if self.command is not None else runs(self.pid)


class SoakFleet:
    """Starts what a round needs. `close` ends all of it. Times are seconds since it was made.

    coordinator: the one that runs now; coordinator_gone_s: since when there is none that could speak.
    """

    def __init__(self, drawn: Draw, directory: Path) -> None:
        """directory: takes what everybody says and leaves; it must exist, and be empty."""
        self.drawn, self.directory = drawn, directory
        self._opened = contextlib.ExitStack()
        self.server = self._opened.enter_context(open_embedded(Embedded.STANDALONE))
        self.server_port = self.server.port
        self.asked = self._opened.enter_context(
            redis.Redis(host=HOST, port=self.server_port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))
        )
        self.port = _free_port()
        self.token = directory / "token"
        self.out = directory / "runs"
        self.agents: list[PlayedAgent] = []
        self.commands: list[FleetProcess] = []
        self.coordinator: FleetProcess | None = None
        self.coordinator_gone_s: float | None = None
        self._began_s = time.monotonic()
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("STAMPEDE_")}
        self._environment |= {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "COLUMNS": "140"}

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def endpoint(self) -> str:
        """Where the coordinator listens."""
        return f"tcp://{HOST}:{self.port}"

    # -- processes

    def prepare(self) -> None:
        """The token, the plan, and a relay for each agent from elsewhere."""
        coordinator_curve(self.token)
        plan = self.drawn.plan | {"target": {"url": self.server.url, "socket_timeout": "1500ms"}}
        (self.directory / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        self.agents = [PlayedAgent(pid=0, relay=Relay(self.port, proxied=drawn.proxied)) for drawn in self.drawn.agents]

    def start_agent(self, number: int) -> None:
        """An agent that joins from elsewhere."""
        drawn, agent = self.drawn.agents[number], self.agents[number]
        assert agent.relay is not None
        args = ["agent", "join", agent.relay.endpoint, "--name", f"soak-{number}", "--token-file", str(self.token)]
        args += ["--processes", str(drawn.processes), *(["--once"] if drawn.once else [])]
        agent.command = self.start(args, f"agent-{number}", terminal=drawn.terminal)
        agent.pid = agent.command.pid

    def start_coordinator(self, name: str, resume: str | None = None) -> None:
        """With the round's plan, or to go on with a run."""
        what = ["--resume", resume] if resume else [str(self.directory / "plan.yaml"), "--bind", self.endpoint]
        args = ["coordinator", "start", *what, "--out", str(self.out), "--token-file", str(self.token)]
        self.coordinator = self.start(args, name, terminal=self.drawn.terminal)
        self.coordinator_gone_s = None

    def start(self, args: list[str], name: str, *, terminal: bool = False) -> FleetProcess:
        """A command whose words go to `name`.log."""
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
        """Those that the coordinator has started since the last call."""
        if self.coordinator is not None and self.coordinator.code is None:
            known = {agent.pid for agent in self.agents}
            self.agents += [PlayedAgent(pid) for pid in local_agents_of(self.coordinator.pid) if pid not in known]

    def close(self) -> None:
        """Relays first, so that they disturb no process that ends later. The server last."""
        for agent in self.agents:
            if agent.relay is not None:
                agent.relay.close()
        for command in self.commands:
            command.close()
        self._opened.close()

    # -- what they leave

    @property
    def folders(self) -> list[Path]:
        """Of runs that began, the oldest first."""
        found = [path for path in self.out.glob("*") if (path / "journal").exists()] if self.out.exists() else []
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    @property
    def journal(self) -> Aggregate:
        """What is written down of the last run so far."""
        for folder in reversed(self.folders):
            with contextlib.suppress(StampedeError, OSError):
                return fold(read_journal(folder / "journal"))
        return Aggregate()

    @property
    def is_open(self) -> bool:
        """A run has begun, and has no end yet."""
        written = self.journal
        return written.started is not None and written.closed is None

    def calls(self) -> int | None:
        """The server's count; None if it does not answer."""
        for _ in range(20):
            with contextlib.suppress(redis.RedisError):
                return sum(counts.server_calls(self.asked).values())
        return None


def _free_port() -> int:
    """Below the ports that the system gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((HOST, port))
            return port

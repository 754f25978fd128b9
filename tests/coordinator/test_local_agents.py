from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from common.protocol.listener import Listener
from common.protocol.token import coordinator_curve
from common.protocol.transport import Context
from coordinator.local_agents import LocalAgents
from tests.support.runs import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_the_environment_of_local_agents_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAMPEDE_PASSWORD", "a word for the test")
    monkeypatch.setenv("HARMLESS", "kept")
    # There may be zombies of other tests.
    before = {child.pid for child in psutil.Process().children()}
    with LocalAgents() as agents:
        agents.start(
            1,
            "tcp://127.0.0.1:9",
            processes=1,
            token=None,
            wait_s=60,
            secret_variables=["STAMPEDE_PASSWORD", "NOT_SET"],
        )
        [child] = [child for child in psutil.Process().children() if child.pid not in before]
        assert "agent.cli" in child.cmdline()
        environment = child.environ()
    assert "STAMPEDE_PASSWORD" not in environment
    assert environment["HARMLESS"] == "kept"


def test_released_local_agents_outlive_the_coordinator() -> None:
    with LocalAgents() as agents:
        agents.start(1, "tcp://127.0.0.1:9", processes=1, token=None, wait_s=60)
        [process] = agents._processes
        agents.detach()
        assert list(agents.exited()) == []
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def test_local_agents_read_the_token_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = coordinator_curve(tmp_path / "token")
    monkeypatch.setenv("STAMPEDE_TOKEN_FILE", "/of/another/coordinator")
    with Context() as context, Listener(context, "tcp://127.0.0.1:*", curve) as listener, LocalAgents() as agents:
        agents.start(1, listener.endpoint, processes=1, token=(tmp_path / "token").read_text(), wait_s=60)
        assert wait_until(lambda: [*listener.receive()], "the hello of the agent")


def test_stopped_processes_of_an_agent_end_with_it() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with LocalAgents() as agents:
        agents.start(1, "tcp://127.0.0.1:9", processes=1, token=None, wait_s=60)
        [agent] = [child for child in psutil.Process().children() if child.pid not in before]
        # The fork server, which is in the process group of the agent.
        [child] = wait_until(agent.children, "the fork server")
        child.send_signal(signal.SIGSTOP)
        agent.kill()
        [exited] = wait_until(lambda: list(agents.exited()), "the end of the agent")
        assert exited.exit_code == -signal.SIGKILL
        wait_until(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the end of the fork server", 5
        )

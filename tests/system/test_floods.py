"""Hostile participants and other connections cannot disturb a run."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.support.commands import Running
from tests.support.runs import HOST, PATIENCE_S, Fleet, calls, wait_until
from tests.support.servers import Server

ROOT = Path(__file__).parent.parent.parent
LOAD = ("--duration", "5s", "--rate", "500", "--command", "GET")


def flooders(fleet: Fleet, go: Path, *names: str) -> Running:
    """Start processes that have the token. Processes with a name send a hello before they flood."""
    arguments = (sys.executable, "-m", "tests.support.flooder", fleet.endpoint, str(fleet.token), str(go), *names)
    return fleet.commands.start_shell(f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(arguments)}")


def test_flooding_participants_are_cut_and_named_and_the_run_stays_exact(fleet: Fleet, valkey: Server) -> None:
    go = fleet.commands.directory / "go"
    running = flooders(fleet, go, *["mallory"] * 2, *[""] * 6)
    coordinator = fleet.coordinator("--local-agents", "2", "--processes", "1", "--url", valkey.url, *LOAD)
    fleet.until_loading()
    go.touch()
    ended = fleet.end(coordinator)
    running.kill_tree()
    assert ended.code == 0, ended.finished.stderr
    ledger = ended.summary["ledger"]
    assert ledger["issued"] == ledger["counted"] == calls(valkey.client())["get"]
    assert ledger["unaccounted"] == 0
    assert "is lost" not in ended.finished.stderr
    said = ended.finished.stderr
    # Either may fill its queue first. After a cut, the address is slowed down.
    assert re.search(r"cut a connection of (agent mallory|a peer) at 127\.0\.0\.1:", said)
    assert " cut" in said.split("ignored messages and peers: ")[1]


def test_ctrl_c_ends_a_run_during_a_storm_of_foreign_connections(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.coordinator("--local-agents", "1", "--processes", "1", "--url", valkey.url, *LOAD)
    fleet.until_loading()
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection((HOST, fleet.port), timeout=1) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")

    threads = [threading.Thread(target=storm, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: "refused a peer" in coordinator.stderr, "refused connections", PATIENCE_S, coordinator)
        coordinator.signal(signal.SIGINT)
        ended = fleet.end(coordinator, timeout=30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert ended.code == 130
    ledger = ended.summary["ledger"]
    assert ledger["issued"] == ledger["counted"] == calls(valkey.client())["get"]

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psutil
import pytest
from multiprocess import resource_tracker

from agent.core.actions import FromWorker, WorkerExited
from agent.fork_server import _work
from agent.processes import Processes
from common.clock import boottime_ns, monotonic_ns
from common.errors import ProtocolError
from common.plan.schema import Command, Connections, Keys, Load, Plan, Pools, Target, Workload
from common.program.stderr_writer import StderrWriter
from common.protocol.codec import pack
from common.protocol.messages import (
    Assignment,
    Failed,
    FailureKind,
    Prepared,
    WorkerFinal,
    WorkerMessage,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S, Count, Seconds
from tests.support.runs import wait_until
from tests.support.servers import Server
from tests.support.workers import whole_of

pytestmark = pytest.mark.usefixtures("_tracker", "no_leaks")


@pytest.fixture(scope="module")
def _tracker() -> None:
    # Python starts one helper process and ends it at exit: start it before the check for leaks.
    resource_tracker.ensure_running()


class Heard:
    """Worker processes and their messages so far."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.events: list[FromWorker | WorkerExited] = []

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Receive until the condition is true."""

        def listened() -> Any:
            select.select(self.processes.filenos(), [], [], 0.01)
            self.events += self.processes.events()
            return condition()

        wait_until(listened, what)

    def said(self, number: int, kind: type[Any]) -> list[Any]:
        """Messages of this kind from this process."""
        said = [event.message for event in self.events if isinstance(event, FromWorker) and event.process == number]
        return [message for message in said if isinstance(message, kind)]

    @property
    def exits(self) -> dict[int, int | None]:
        """Exit codes by ended process."""
        return {event.process: event.exit_code for event in self.events if isinstance(event, WorkerExited)}

    def spawn(self, run_id: str, assignments: list[Assignment]) -> None:
        self.processes.spawn(run_id, assignments)
        self.processes.renew(boottime_ns() + 3600 * NS_PER_S)

    def all_prepared(self, count: int) -> None:
        self.until(lambda: all(self.said(number, Prepared) for number in range(count)), "all are prepared")

    def start(self) -> None:
        self.processes.order(WorkerStart(t0_ns=monotonic_ns()))


@pytest.fixture
def heard(_leak_check_first: None) -> Iterator[Heard]:
    with Processes() as processes:
        yield Heard(processes)


def plan_of(url: str, *, pools: int = 1, **load: Any) -> Plan:
    return Plan(
        target=Target(url=url),
        pools=(Pools(client_pools=pools, threads_per_pool=2, max_connections=2, connections=Connections.PREWARM),),
        workload=Workload(commands=(Command(command="SET"), Command(command="GET"))),
        load=Load(**(load or {"duration_s": Seconds(3600)})),
    )


def dealt(plan: Plan) -> list[Assignment]:
    """One assignment per pool."""
    whole = whole_of(plan)
    return [msgspec.structs.replace(whole, pools=(pool,)) for pool in whole.pools]


def calls_of(server: Server) -> int:
    stats: Any = server.client(decode_responses=True).info("commandstats")
    return sum(stats.get(name, {"calls": 0})["calls"] for name in ("cmdstat_set", "cmdstat_get"))


def test_processes_share_a_run_and_end_by_themselves(
    valkey: Server, heard: Heard, capfd: pytest.CaptureFixture[str]
) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url, pools=2, requests=Count(501))))
    heard.all_prepared(2)
    pids = heard.processes.pids()
    assert len({os.getpid(), *pids}) == 3
    heard.start()
    heard.until(lambda: len(heard.exits) == 2, "both have ended")
    assert heard.exits == {0: 0, 1: 0}
    finals = [heard.said(number, WorkerFinal) for number in range(2)]
    assert [len(final) for final in finals] == [1, 1]
    # Four threads: 126, 125, 125, 125.
    assert [final.issued for [final] in finals] == [251, 250]
    assert sum(
        interval.operations
        for number in range(2)
        for metrics in heard.said(number, WorkerMetrics)
        for interval in metrics.intervals
    ) == calls_of(valkey)
    assert calls_of(valkey) == 501
    assert (heard.processes.pids(), list(heard.processes.events())) == ([], [])
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert capfd.readouterr() == ("", "")


def test_a_killed_process_is_reported_and_the_others_continue(valkey: Server, heard: Heard) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url, pools=2)))
    heard.all_prepared(2)
    heard.start()
    heard.until(lambda: heard.said(0, WorkerMetrics), "the load runs")
    victim, other = heard.processes.pids()
    os.kill(victim, signal.SIGKILL)
    heard.until(lambda: heard.exits, "the death is noticed")
    assert heard.exits == {0: -signal.SIGKILL}
    assert heard.processes.pids() == [other]
    heard.processes.order(WorkerStop(drain=True))
    heard.until(lambda: len(heard.exits) == 2, "the other has ended")
    assert heard.exits[1] == 0
    [final] = heard.said(1, WorkerFinal)
    assert final.issued == final.counted > 0


def test_worker_processes_ignore_ctrl_c_and_sigterm(
    valkey: Server, heard: Heard, capfd: pytest.CaptureFixture[str]
) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url, duration_s=Seconds(1.2))))
    heard.all_prepared(1)
    [pid] = heard.processes.pids()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    heard.start()
    heard.until(lambda: heard.said(0, WorkerMetrics), "the load runs")
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    heard.until(lambda: heard.exits, "it has ended")
    assert heard.exits == {0: 0}
    [final] = heard.said(0, WorkerFinal)
    assert final.drained
    assert final.ran_ns >= 1_200_000_000
    assert capfd.readouterr().err == ""


def test_an_unexpected_error_is_one_line_without_a_traceback(
    valkey: Server, heard: Heard, capfd: pytest.CaptureFixture[str]
) -> None:
    # The rules of a plan refuse such a key range.
    plan = msgspec.structs.replace(
        plan_of(valkey.url), workload=Workload(commands=(Command(command="GET"),), keys=Keys(maximum=Count(1 << 63)))
    )
    heard.spawn("run", dealt(plan))
    heard.until(lambda: heard.exits, "it has ended")
    assert heard.exits == {0: 1}
    [failed] = heard.said(0, Failed)
    assert failed.kind is FailureKind.AGENT
    assert failed.reason.startswith("unexpected ")
    assert "\n" not in failed.reason
    assert capfd.readouterr() == ("", "")


def test_each_process_reports_a_target_that_refuses_connections(heard: Heard, refusing_url: str) -> None:
    heard.spawn("run", dealt(plan_of(refusing_url)))
    heard.until(lambda: heard.exits, "it has ended")
    assert heard.exits == {0: 0}
    [failed] = heard.said(0, Failed)
    assert failed.kind is FailureKind.TARGET
    assert "refused the connection" in failed.reason


def test_kill_ends_all_processes_at_once_and_may_be_called_twice(valkey: Server, heard: Heard) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url, pools=2)))
    heard.all_prepared(1)
    pids = heard.processes.pids()
    heard.processes.kill()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    heard.processes.kill()
    assert (heard.processes.pids(), list(heard.processes.events())) == ([], [])
    asking = valkey.client()
    wait_until(lambda: len(asking.client_list()) == 1, "no connection is left")


AGENT = """
import sys
import agent.worker.process
from agent.fork_server import ForkServer
from agent.processes import Processes
from common.clock import boottime_ns, monotonic_ns
from common.protocol.codec import unpack
from common.protocol.messages import Assignment

fork_server = ForkServer()
fork_server.start(copied=True)
processes = Processes(fork_server)
processes.spawn("run", [unpack(bytes.fromhex(sys.argv[1]), Assignment)])
processes.renew(boottime_ns() + 3600 * 10**9)
known = []
while True:
    if known != processes.pids():
        known = processes.pids()
        print(known[0], flush=True)
    for event in processes.events():
        print(type(event.message).__name__, flush=True)
        if len(sys.argv) > 2 and type(event.message).__name__ == "Prepared":
            from common.protocol.messages import WorkerStart
            processes.order(WorkerStart(t0_ns=monotonic_ns()))
"""


@pytest.mark.parametrize("running", [False, True])
def test_a_worker_process_ends_and_disconnects_when_its_agent_is_killed(valkey: Server, running: bool) -> None:
    [assignment] = dealt(plan_of(valkey.url))
    command = [sys.executable, "-c", AGENT, pack(assignment).hex(), *(["start"] if running else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        worker = psutil.Process(int(agent.stdout.readline()))
        awaited = "WorkerMetrics" if running else "Prepared"
        for line in agent.stdout:
            if line.strip() == awaited:
                break
        assert worker.is_running()
        family = psutil.Process(agent.pid).children(recursive=True)
        assert worker in family
        assert [process.cmdline() for process in family] == [command] * 2  # it and its fork server: copies of the agent
        agent.kill()
    asking = valkey.client()
    wait_until(lambda: len(asking.client_list()) == 1, "no connection is left")
    _, alive = psutil.wait_procs(family, timeout=10)  # the fork server too
    assert alive == []


def fork_server_of(pid: int) -> psutil.Process:
    parent = psutil.Process(pid).parent()
    assert parent is not None
    return parent


def test_worker_processes_are_forked_from_a_process_with_all_imports_and_no_threads(
    valkey: Server, heard: Heard
) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url, pools=2)))
    heard.all_prepared(2)
    one, other = heard.processes.pids()
    fork_server = fork_server_of(one)
    assert fork_server == fork_server_of(other)
    assert fork_server.parent() == psutil.Process()
    assert fork_server.num_threads() == 1
    images = [psutil.Process(pid).cmdline() for pid in (one, other)]
    assert images == [fork_server.cmdline()] * 2  # no program was started again
    heard.processes.kill()
    heard.events.clear()
    heard.spawn("again", dealt(plan_of(valkey.url)))
    heard.all_prepared(1)
    assert fork_server_of(heard.processes.pids()[0]) == fork_server


def test_a_killed_fork_server_leaves_its_worker_processes_alive_and_is_replaced(valkey: Server, heard: Heard) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url)))
    heard.all_prepared(1)
    [pid] = heard.processes.pids()
    fork_server = fork_server_of(pid)
    fork_server.kill()
    heard.start()
    heard.until(lambda: heard.said(0, WorkerMetrics), "the load runs")
    heard.processes.order(WorkerStop(drain=True))
    heard.until(lambda: heard.exits, "it has ended")
    assert heard.said(0, WorkerFinal)
    heard.events.clear()
    heard.spawn("again", dealt(plan_of(valkey.url)))
    heard.all_prepared(1)
    assert fork_server_of(heard.processes.pids()[0]) != fork_server


def test_a_process_that_is_cancelled_before_its_fork_is_never_forked(valkey: Server, heard: Heard) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url, pools=2)))
    assert heard.processes.pids() == []
    heard.processes.kill()
    heard.spawn("again", dealt(plan_of(valkey.url)))
    heard.all_prepared(1)
    [pid] = heard.processes.pids()
    assert [child.pid for child in fork_server_of(pid).children()] == [pid]


def test_closing_while_the_fork_server_still_imports_leaves_no_process() -> None:
    with Processes() as processes:
        processes.spawn("run", dealt(plan_of("redis://127.0.0.1:1")))


_IS_IT_A_COPY = """
import os, signal, sys, threading
import psutil
from agent.fork_server import ForkServer

if sys.argv[1] == "another":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
with ForkServer() as fork_server:
    fork_server.start(copied=True)
    child = fork_server.fork()
    while child.pid is None:
        fork_server.read_events(10)
    [server_process] = [each for each in psutil.Process().children() if psutil.Process(child.pid) in each.children()]
    server_process.send_signal(signal.SIGINT)
    again = fork_server.fork()
    while again.pid is None:
        fork_server.read_events(10)
    print(server_process.cmdline() == psutil.Process().cmdline(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.parametrize(("threads", "is_copy"), [("one", True), ("another", False)])
def test_only_an_agent_without_other_threads_is_forked(threads: str, is_copy: bool) -> None:
    command = [sys.executable, "-c", _IS_IT_A_COPY, threads]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == f"{is_copy} set()\n"


def test_the_loop_of_an_agent_imports_no_client_library_of_the_load() -> None:
    loaded = "import agent.loop, sys; print([name for name in ('redis', 'hiredis') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "[]\n"


def test_a_paused_worker_process_does_not_delay_the_renewals_of_others(valkey: Server, heard: Heard) -> None:
    heard.spawn("run", dealt(plan_of(valkey.url)))
    heard.all_prepared(1)
    [pid] = heard.processes.pids()
    os.kill(pid, signal.SIGSTOP)
    for number in range(5_000):  # far more than an unread pipe takes
        heard.processes.renew(boottime_ns() + 3600 * NS_PER_S + number)
    os.kill(pid, signal.SIGCONT)
    heard.processes.order(WorkerStop(drain=True))
    heard.until(lambda: heard.exits, "it has read all of them, and the stop behind them")
    assert heard.exits == {0: 0}


def test_a_worker_process_that_sends_garbage_fails_and_its_agent_continues(
    valkey: Server, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(_: bytes) -> WorkerMessage:
        raise ProtocolError("expected msgpack of a message")

    monkeypatch.setattr("agent.processes.codec.decode_from_worker", decode)
    heard.spawn("run", dealt(plan_of(valkey.url)))
    heard.until(lambda: heard.exits, "the process has ended")
    assert heard.exits == {0: -signal.SIGKILL}
    assert heard.said(0, Failed)[0].reason == "it sent invalid data: expected msgpack of a message"


def test_a_worker_process_does_not_block_on_its_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = []
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr("agent.worker.process.run_worker", lambda _: spoken.append(sys.stderr.buffer))
    _work(None)  # type: ignore[arg-type]
    [stderr] = spoken
    assert isinstance(stderr, StderrWriter)


_DIES_WITH_NEWS_UNREAD = """
import os, select, signal
from agent.fork_server import ForkServer

fork_server = ForkServer()
child = fork_server.fork()
select.select([fork_server.fileno()], [], [])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_agent_that_is_killed_during_a_fork_leaves_no_traceback() -> None:
    killed = subprocess.run([sys.executable, "-c", _DIES_WITH_NEWS_UNREAD], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stderr == ""  # it closes when all processes that it started have ended


_INTERRUPTED_AS_IT_STARTS = """
import os, signal
from agent.fork_server import ForkServer

signal.signal(signal.SIGINT, lambda *_: None)
fork_server = ForkServer()
fork_server.start()
os.killpg(0, signal.SIGINT)
child = fork_server.fork()
while child.pid is None and child.exit_code is None:
    fork_server.read_events(10)
print("forked" if child.pid else "not forked")
fork_server.close()
"""


def test_ctrl_c_does_not_end_the_fork_server_while_it_starts() -> None:
    command = [sys.executable, "-c", _INTERRUPTED_AS_IT_STARTS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)
    assert (ended.stdout, ended.stderr) == ("forked\n", "")

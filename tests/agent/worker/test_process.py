from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from agent.worker import pipe
from agent.worker.drivers.aio import TaskContext, run_asyncio_worker
from agent.worker.drivers.client import ThreadContext, run_client_worker
from agent.worker.drivers.wire.worker import WireWorker
from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.plan.loading import profiles
from common.plan.planned_commands import subscribes
from common.plan.rules.wire_rules import wire_commands_fit
from common.plan.schema import (
    Arrivals,
    Command,
    Connections,
    Driver,
    Keys,
    Plan,
    Preload,
    Retry,
    Target,
    Workload,
)
from common.protocol.messages import Failed, FailureKind, PreparationStep, Prepared, Preparing, WorkerFinal
from common.serde import from_builtins
from common.units import NS_PER_S, Count, PerSecond, Seconds
from coordinator.servers.setup_commands import set_up
from tests.support.plans import plan_with
from tests.support.runs import wait_until
from tests.support.servers import Server, SocketServer, wire_bytes_of_others
from tests.support.workers import WorkerThread

pytestmark = pytest.mark.usefixtures("no_leaks")

LATE_BY_CHANCE = 43
"""With this seed the only Poisson arrival in 0.4 s at 2/s is due after 0.3 s."""

NOTHING_DONE = WorkerFinal(issued=0, counted=0, transactions=0, start_skew_ns=0, drained=True)


@pytest.fixture(params=list(Driver), ids=lambda driver: driver.value, autouse=True)
def _each_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with each driver: for the agent they behave alike."""
    monkeypatch.setitem(PLANNED, "driver", request.param)


PLANNED: dict[str, Driver] = {}


def without_wire(because: str) -> Any:
    """Run the test with the other drivers only. because: why the wire driver has no part in it."""
    assert because
    drivers = [driver for driver in Driver if driver is not Driver.WIRE]
    return pytest.mark.parametrize("_each_driver", drivers, indirect=True, ids=lambda driver: driver.value)


def lends_clients() -> bool:
    """Whether the driver has checkouts, whose waits are counted."""
    return PLANNED["driver"] is not Driver.WIRE


def plan_of(url: str, *commands: str, **settings: Any) -> Plan:
    """A plan for the driver of the test."""
    settings = {"duration_s": Seconds(0.3), "retry": Retry(retries=0), **settings}
    if "requests" in settings:
        del settings["duration_s"]
    settings["driver"] = PLANNED["driver"]
    if settings["driver"] is Driver.ASYNCIO and "threads_per_pool" in settings:
        settings["tasks_per_pool"] = settings.pop("threads_per_pool")
    if settings["driver"] is Driver.WIRE:
        # All its connections carry load; a worker of another driver uses one at a time.
        settings.setdefault("max_connections", 1)

    return plan_with(url, *(commands or ("SET", "GET")), **settings)


def calls_of(server: Server) -> dict[str, int]:
    """Calls that the server counted, by command."""
    stats: Any = server.client(decode_responses=True).info("commandstats")
    return {name.removeprefix("cmdstat_").upper(): row["calls"] for name, row in stats.items()}


def connections_of(server: Server) -> int:
    """The number of open connections with the client name of the plan."""
    with server.client() as asking:
        return sum(client["name"] == "stampede" for client in asking.client_list())


# Counts


@pytest.mark.parametrize(("rate_per_s", "most"), [(1.0, 1), (1e9, 10**9)])
def test_a_run_by_duration_ends_on_time_at_any_rate_and_counts_unsent_operations(
    valkey: Server, worker: WorkerThread, rate_per_s: float, most: int
) -> None:
    report = worker.run(plan_of(valkey.url, duration_s=Seconds(0.5), rate_per_s=PerSecond(rate_per_s)))
    report.check_sums()
    unsent = sum(interval.unsent for metrics in report.metrics for interval in metrics.intervals)
    assert report.final.ran_ns == NS_PER_S // 2
    assert report.final.issued + unsent == pytest.approx(max(1, most * 0.5), rel=1e-4)
    assert report.final.drained


@pytest.mark.parametrize("requests", [1, 1003])
def test_a_run_issues_exactly_the_planned_number_of_requests(
    valkey: Server, worker: WorkerThread, requests: int
) -> None:
    plan = plan_of(valkey.url, requests=Count(requests), threads_per_pool=3, client_instances_per_pool=2)
    report = worker.run(plan)
    calls = calls_of(valkey)
    assert report.final.issued == requests
    assert report.all_commands.ok == requests == calls.get("SET", 0) + calls.get("GET", 0)
    assert report.pool.checkout_wait.count == (requests if lends_clients() else 0)
    assert report.final.drained


def test_a_run_by_duration_ends_on_time_and_counts_every_call(valkey: Server, worker: WorkerThread) -> None:
    t0_ns = worker.start_load(plan_of(valkey.url, duration_s=Seconds(0.4), threads_per_pool=2), in_s=0.05)
    report = worker.finish()
    ended_ns = monotonic_ns()
    report.check_sums()
    calls = calls_of(valkey)
    assert report.all_commands.ok == calls["SET"] + calls["GET"] == report.final.issued > 0
    assert 0.4 * NS_PER_S <= report.final.ran_ns <= ended_ns - t0_ns
    assert 0 <= report.final.start_skew_ns < report.final.ran_ns
    assert report.metrics[-1].through == 0


def test_the_cpu_time_of_the_load_is_reported(valkey: Server, worker: WorkerThread) -> None:
    report = worker.run(plan_of(valkey.url, duration_s=Seconds(1.3)))
    generator = report.total.generator
    # The watched time is exactly the time of the load.
    assert generator.watched_ns == report.final.ran_ns == round(1.3 * NS_PER_S)
    assert 0 < generator.busiest_cpu_ns <= generator.cpu_ns
    assert generator.core_share_max > 0
    has_loop = PLANNED["driver"] is not Driver.CLIENT
    assert (generator.loop_lag.count > 0) is (generator.busiest_loop_ns > 0) is has_loop


@pytest.mark.parametrize("name", [name for name in profiles.names() if not profiles.load(name).scenarios])
def test_each_built_in_profile_counts_as_the_server_counts(valkey: Server, worker: WorkerThread, name: str) -> None:
    workload = from_builtins({"workload": profiles.load(name).workload}, Plan).workload
    few = msgspec.structs.replace(workload.keys, maximum=min(workload.keys.maximum, Count(1_000)))
    workload = msgspec.structs.replace(workload, keys=few)
    # Not a multiple of any batch: the last batch is shorter.
    plan = plan_of(valkey.url, requests=Count(1003), threads_per_pool=2)
    plan = Plan(target=plan.target, pools=plan.pools, load=plan.load, workload=workload)
    if subscribes(workload) and not lends_clients():
        assert [path for path, _ in wire_commands_fit(plan)] == [("workload", "commands")]
        return
    # The coordinator does this before a run: consumer groups, scripts.
    set_up(plan, lambda _: None)
    worker.prepare(plan)
    preloaded = worker.receive_next(Prepared).preloaded
    assert (preloaded is not None) == bool(workload.preload)
    valkey.client().config_resetstat()
    worker.start()
    report = worker.finish()
    report.check_sums()
    calls = calls_of(valkey)
    assert report.all_commands.ok == report.final.issued == 1003
    assert {command: calls.get(command, 0) for command in report.pool.commands} == {
        command: metrics.ok for command, metrics in report.pool.commands.items()
    }
    batch = workload.transaction or 1
    # Two threads with 502 and 501 operations, or one loop.
    quotas = (502, 501) if lends_clients() else (1003,)
    batches = sum(-(-quota // batch) for quota in quotas)
    transactions = batches if workload.transaction else 0
    assert report.final.transactions == transactions == calls.get("MULTI", 0) == calls.get("EXEC", 0)
    round_trips = sum(-(-quota // (workload.pipeline * batch)) for quota in quotas)
    assert report.pool.checkout_wait.count == (round_trips if lends_clients() else 0)
    assert all(metrics.service.count == metrics.ok for metrics in report.pool.commands.values())


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("batch", [{}, {"pipeline": 4}, {"transaction": 5}])
def test_bytes_are_equal_to_those_that_the_server_counted(
    valkey: Server, worker: WorkerThread, protocol: int, batch: dict[str, int]
) -> None:
    asking = valkey.client()
    asking.set("text", "no list")
    plan = plan_of(
        valkey.url,
        *("SET", "GET", "DEL", "LPUSH text __data__", "LRANGE nothing 0 9", "LPUSH list __data__", "LRANGE list 0 9"),
        requests=Count(1001),
        keys=Keys(maximum=Count(50)),
        protocol=protocol,
        connections=Connections.PREWARM,
        max_connections=1,
        **batch,
    )
    worker.prepare(plan)
    worker.receive_next(Prepared)
    before = wire_bytes_of_others(asking)
    worker.start()
    report = worker.finish()
    after = wire_bytes_of_others(asking)
    commands = report.all_commands
    assert commands.errors.keys() == {"WRONGTYPE"}
    assert (after[0] - before[0], after[1] - before[1]) == (commands.bytes_out, commands.bytes_in)


# Pacing


@pytest.mark.parametrize("pipeline", [1, 3])
def test_in_an_open_loop_every_due_operation_is_sent_or_counts_as_unsent(
    valkey: Server, worker: WorkerThread, pipeline: int
) -> None:
    plan = plan_of(valkey.url, rate_per_s=PerSecond(400.0), threads_per_pool=2, pipeline=pipeline)
    report = worker.run(plan, in_s=0.05)
    commands = report.all_commands
    assert report.final.issued + report.total.unsent == 120
    assert commands.ok == commands.response.count == commands.service.count == report.pool.send_lag.count > 0
    assert commands.response.value_sum == commands.service.value_sum + report.pool.send_lag.value_sum
    assert commands.response.minimum >= commands.service.minimum


def test_a_stall_of_the_server_shows_in_the_response_time_of_all_delayed_operations(
    valkey: Server, worker: WorkerThread
) -> None:
    asking = valkey.client()
    plan = plan_of(valkey.url, rate_per_s=PerSecond(500.0), duration_s=Seconds(0.5), connections=Connections.PREWARM)
    worker.prepare(plan)
    worker.receive_next(Prepared)
    asking.client_pause(200)
    worker.start()
    report = worker.finish()
    report.check_sums()
    commands = report.all_commands
    assert report.final.issued + report.total.unsent == 250
    # One operation took about 200 ms; the 100 that were due meanwhile waited 100 ms on average.
    assert commands.service.maximum > 0.1 * NS_PER_S
    assert commands.response.value_sum - commands.service.value_sum > 3 * NS_PER_S


def test_the_start_skew_is_the_lag_of_the_first_operation_however_late_it_is_due(
    valkey: Server, worker: WorkerThread
) -> None:
    load = {"rate_per_s": PerSecond(2), "arrivals": Arrivals.POISSON, "duration_s": Seconds(0.4)}
    report = worker.run(msgspec.structs.replace(plan_of(valkey.url, "SET", **load), seed=LATE_BY_CHANCE))
    assert report.pool.send_lag.count == 1
    assert report.final.start_skew_ns == pytest.approx(report.pool.send_lag.minimum, rel=0.002)


def test_every_second_is_reported_when_it_is_over(valkey: Server, worker: WorkerThread) -> None:
    # The start instant is in the past: three seconds pass before the first operation.
    plan = plan_of(valkey.url, duration_s=Seconds(3.6))
    worker.start_load(plan, in_s=-3.4)
    report = worker.finish()
    report.check_sums()
    assert [interval.first for interval in report.intervals] == [0, 1, 2, 3]
    assert [interval.operations > 0 for interval in report.intervals] == [False, False, False, True]
    assert [metrics.through for metrics in report.metrics] == [2, 3]
    assert report.final.start_skew_ns >= 3.4 * NS_PER_S


# Connections


def test_prewarmed_connections_are_open_before_the_start_and_closed_at_the_end(
    valkey: Server, worker: WorkerThread
) -> None:
    plan = plan_of(
        valkey.url,
        client_pools=2,
        client_instances_per_pool=3,
        threads_per_pool=4,
        max_connections=5,
        connections=Connections.PREWARM,
    )
    worker.prepare(plan)
    *progress, prepared = worker.receive_until(Prepared)
    assert prepared == Prepared(processes=1, connections_open=30)
    assert progress
    assert progress[-1] == Preparing(step=PreparationStep.CONNECTIONS, done=30, total=30)
    assert connections_of(valkey) == 30
    worker.start()
    report = worker.finish()
    wait_until(lambda: connections_of(valkey) == 0, "no connection is left")
    assert report.pool.connections.opened == report.pool.connections.open_peak == 30
    assert report.pool.connections.drops == {}


def test_connections_are_closed_before_the_final_report(
    valkey: Server, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    close, pack = WorkerRun.close, pipe.pack

    def closing(run: WorkerRun) -> None:
        close(run)
        happened.append("closed")

    def packing(message: Any) -> bytes:
        happened.append(type(message).__name__)
        return pack(message)

    monkeypatch.setattr(WorkerRun, "close", closing)
    monkeypatch.setattr(pipe, "pack", packing)
    worker.run(plan_of(valkey.url, requests=Count(10)))
    assert "closed" in happened[: happened.index("WorkerFinal")]


@without_wire("all its connections carry load, and none is opened because it is needed")
def test_lazy_connections_are_opened_only_as_they_are_needed(valkey: Server, worker: WorkerThread) -> None:
    plan = plan_of(valkey.url, requests=Count(100), client_instances_per_pool=5, threads_per_pool=1)
    worker.prepare(plan)
    assert worker.receive_next(Prepared).connections_open == 0
    worker.start()
    assert worker.finish().pool.connections.opened == 1


def test_connections_that_need_more_files_than_may_be_opened_are_refused_before_the_load(
    valkey: Server, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.worker.run.open_files_limit", lambda: 300)
    worker.prepare(plan_of(valkey.url, max_connections=290, connections=Connections.PREWARM))
    *_, failed = worker.receive_until(Failed)
    assert failed.kind is FailureKind.AGENT
    assert failed.reason.startswith("a worker process may open 300 files (`ulimit -n`), but needs ")
    assert "290 connections" in failed.reason
    assert connections_of(valkey) == 0


# Failures


def test_error_replies_count_by_their_code_and_not_as_done(valkey: Server, worker: WorkerThread) -> None:
    valkey.client().set("text", "no list")
    report = worker.run(plan_of(valkey.url, "LPUSH text __data__", "EVALSHA 00 0", requests=Count(200)))
    commands = report.pool.commands
    wrong = commands["LPUSH"].errors["WRONGTYPE"]
    assert commands["LPUSH"].errors == {"WRONGTYPE": wrong}
    assert commands["EVALSHA"].errors == {"NOSCRIPT": 200 - wrong}
    assert (commands["LPUSH"].ok, commands["LPUSH"].service.count, commands["LPUSH"].failed.count) == (0, 0, wrong)
    reply = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    assert commands["LPUSH"].bytes_in == wrong * len(reply)


@pytest.mark.parametrize("batch", [{"pipeline": 4}, {"transaction": 4}])
def test_each_reply_of_a_batch_counts_separately(valkey: Server, worker: WorkerThread, batch: dict[str, int]) -> None:
    valkey.client().set("text", "no list")
    report = worker.run(plan_of(valkey.url, "LPUSH text __data__", "GET text", requests=Count(202), **batch))
    assert report.pool.commands["GET"].ok == calls_of(valkey)["GET"]
    assert report.pool.commands["GET"].error_count == 0
    assert report.pool.commands["LPUSH"].errors == {"WRONGTYPE": 202 - report.pool.commands["GET"].ok}


def test_a_refused_transaction_is_an_error_of_each_operation_and_nothing_is_done(
    valkey: Server, worker: WorkerThread
) -> None:
    # GET with two arguments is refused when it is queued; EXEC then aborts all.
    report = worker.run(plan_of(valkey.url, "GET a b", "GET a", requests=Count(50), transaction=5))
    assert report.all_commands.operations == 50
    assert report.all_commands.error_count > 0
    assert set(report.all_commands.errors) <= {"EXECABORT", "ERR"}


def test_a_killed_server_gives_failures_by_class_and_the_run_ends_on_time(valkey: Server, worker: WorkerThread) -> None:
    asking = valkey.client()
    t0_ns = worker.start_load(plan_of(valkey.url, duration_s=Seconds(0.6), threads_per_pool=2))
    wait_until(lambda: "cmdstat_get" in asking.info("commandstats"), "the load runs")
    valkey.kill()
    report = worker.finish()
    assert monotonic_ns() - t0_ns < 5 * NS_PER_S
    report.check_sums()
    assert report.all_commands.ok > 0
    assert report.all_commands.failures["ConnectionError"] > 2
    connections = report.pool.connections
    assert connections.failed_attempts > 0
    assert sum(connections.drops.values()) == connections.opened == 1
    assert worker.end() == 0


@pytest.mark.parametrize("batch", [{}, {"pipeline": 3}, {"transaction": 3}])
def test_a_silent_server_does_not_delay_the_end(valkey: Server, worker: WorkerThread, batch: dict[str, int]) -> None:
    asking = valkey.client()
    plan = plan_of(
        valkey.url,
        duration_s=Seconds(0.5),
        drain_s=Seconds(0.2),
        socket_timeout_s=Seconds(60),
        retry=Retry(retries=5),
        client_instances_per_pool=2,
        threads_per_pool=4,
        **batch,
    )
    t0_ns = worker.start_load(plan)
    wait_until(lambda: "cmdstat_get" in asking.info("commandstats"), "the load runs")
    valkey.pause()
    report = worker.finish()
    valkey.resume()
    assert 0.65 * NS_PER_S < monotonic_ns() - t0_ns < 4 * NS_PER_S
    report.check_sums()
    # Two threads or both connections waited for a reply. Two more threads waited for a client instance: they began
    # nothing.
    assert report.all_commands.failures == {"CutShort": 2 * (sum(batch.values()) or 1)}
    assert report.pool.connections.drops == {}


@without_wire("its plans have no checkout timeout: tests/common/plan/rules/test_wire_rules.py")
def test_a_checkout_timeout_is_a_failure_without_sent_bytes(valkey: Server, worker: WorkerThread) -> None:
    plan = plan_of(
        valkey.url,
        "BLPOP nothing 0.15",
        requests=Count(6),
        threads_per_pool=2,
        checkout_timeout_s=Seconds(0.02),
    )
    report = worker.run(plan)
    commands = report.all_commands
    timeouts = commands.failures["CheckoutTimeout"]
    assert commands.failures == {"CheckoutTimeout": timeouts}
    assert commands.operations == 6
    assert commands.ok == calls_of(valkey)["BLPOP"]
    assert commands.bytes_out == commands.ok * len(b"*3\r\n$5\r\nBLPOP\r\n$7\r\nnothing\r\n$4\r\n0.15\r\n")
    assert commands.failed.minimum >= 0.02 * NS_PER_S
    assert report.pool.checkout_wait.count == 6
    assert report.pool.checkout_wait.maximum >= 0.02 * NS_PER_S


@pytest.mark.parametrize("timeout_s", [0.2])
def test_a_silent_target_is_reported_before_any_connection_opens(
    silent_server: SocketServer, worker: WorkerThread, timeout_s: float
) -> None:
    worker.prepare(plan_of(silent_server.url, socket_timeout_s=Seconds(timeout_s)))
    failed = worker.receive_next(Failed)
    assert failed.kind is FailureKind.TARGET
    assert "did not answer" in failed.reason
    assert "\n" not in failed.reason
    assert worker.end() == 0


def test_a_mix_with_only_zero_weights_is_reported_in_one_line(worker: WorkerThread) -> None:
    plan = Plan(
        target=Target(url="redis://127.0.0.1:1"), workload=Workload(commands=(Command(command="GET", weight=0),))
    )
    worker.prepare(plan)
    failed = worker.receive_next(Failed)
    assert failed.kind is FailureKind.AGENT
    assert failed.reason.startswith("$.workload.commands: ")
    assert worker.end() == 0


def test_a_crashed_thread_is_reported_in_one_line_and_ends_the_process(
    valkey: Server, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("two\nlines")

    async def crash_in_a_task(*_: object) -> None:
        crash()

    monkeypatch.setattr("agent.worker.drivers.client.run_client_worker", crash)
    monkeypatch.setattr("agent.worker.drivers.aio.run_asyncio_worker", crash_in_a_task)
    monkeypatch.setattr("agent.worker.drivers.wire.worker.WireWorker.begin", crash)
    worker.start_load(plan_of(valkey.url, threads_per_pool=3, duration_s=Seconds(60)))
    failed = worker.receive_next(Failed)
    assert failed.kind is FailureKind.AGENT
    assert failed.reason.startswith("unexpected RuntimeError at crash:")
    assert failed.reason.endswith(": two lines")
    assert worker.end() == 1
    assert capfd.readouterr().err == ""


def test_a_crashed_thread_ends_the_other_threads(
    valkey: Server, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = threading.Lock()

    def crash() -> bool:
        if not first.acquire(blocking=False):
            return False
        raise RuntimeError("broken")

    async def crash_in_a_task(mine: TaskContext) -> None:
        if not crash():
            await run_asyncio_worker(mine)

    def crash_in_a_thread(mine: ThreadContext) -> None:
        if not crash():
            run_client_worker(mine)

    def crash_in_a_loop(mine: WireWorker) -> None:
        if not crash():
            begin(mine)

    begin = WireWorker.begin
    monkeypatch.setattr("agent.worker.drivers.client.run_client_worker", crash_in_a_thread)
    monkeypatch.setattr("agent.worker.drivers.aio.run_asyncio_worker", crash_in_a_task)
    monkeypatch.setattr("agent.worker.drivers.wire.worker.WireWorker.begin", crash_in_a_loop)
    settings: dict[str, Any] = {"threads_per_pool": 3, "client_instances_per_pool": 3}
    if PLANNED["driver"] is Driver.WIRE:
        settings = {"client_pools": 3}
    worker.start_load(plan_of(valkey.url, duration_s=Seconds(3600), **settings))
    assert worker.receive_next(Failed).reason.endswith("broken")
    assert worker.end() == 1
    for thread in threading.enumerate():
        if thread.name.startswith(("pool ", "wire ")):
            thread.join(5)
            assert not thread.is_alive()
    wait_until(lambda: connections_of(valkey) == 0, "no connection is left")


@pytest.mark.parametrize("when", ["first", "prepared"])
def test_a_malformed_order_is_reported_in_one_line_and_ends_the_process(
    valkey: Server, worker: WorkerThread, when: str
) -> None:
    if when == "prepared":
        worker.prepare(plan_of(valkey.url))
        worker.receive_next(Prepared)
    worker.send(b"\xc1 garbage")
    failed = worker.receive_next(Failed)
    assert failed.kind is FailureKind.AGENT
    assert "expected msgpack of" in failed.reason
    assert "\n" not in failed.reason
    assert worker.end() is not None


# Stopping


@pytest.mark.parametrize("drain", [True, False])
def test_a_stop_before_a_plan_ends_the_process_with_nothing_done(worker: WorkerThread, drain: bool) -> None:
    worker.stop(drain=drain)
    assert worker.receive() == NOTHING_DONE
    assert worker.end() == 0


def test_a_stop_instead_of_a_start_closes_all_connections(valkey: Server, worker: WorkerThread) -> None:
    worker.prepare(plan_of(valkey.url, connections=Connections.PREWARM, max_connections=5))
    worker.receive_next(Prepared)
    assert connections_of(valkey) == 5
    worker.stop()
    assert worker.receive() == NOTHING_DONE
    assert worker.end() == 0
    wait_until(lambda: connections_of(valkey) == 0, "no connection is left")


def test_a_stop_during_prewarming_ends_the_process_at_once(silent_server: SocketServer, worker: WorkerThread) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.worker.run.ping_target", lambda _: None)
        plan = plan_of(
            silent_server.url,
            connections=Connections.PREWARM,
            socket_timeout_s=Seconds(60),
            retry=Retry(retries=100),
        )
        worker.prepare(plan)
        assert worker.receive_next(Preparing).done == 0
        worker.stop()
        began_ns = monotonic_ns()
        assert worker.receive_next(WorkerFinal) == NOTHING_DONE
    assert monotonic_ns() - began_ns < 3 * NS_PER_S
    assert worker.end() == 0


MANY_KEYS: dict[str, Any] = {"preload": (Preload(),), "keys": Keys(maximum=Count(100_000_000))}


def preloading(worker: WorkerThread, server: Server) -> int:
    """Start a very long preload and pause the server during it. Returns the time, in ns."""
    worker.prepare(plan_of(server.url, socket_timeout_s=Seconds(60), **MANY_KEYS))
    while not (progress := worker.receive_next(Preparing)).done:
        assert (progress.step, progress.total) == (PreparationStep.PRELOAD, 100_000_000)
    server.pause()
    return monotonic_ns()


def test_a_stop_during_the_preload_ends_the_process_at_once(valkey: Server, worker: WorkerThread) -> None:
    began_ns = preloading(worker, valkey)
    worker.stop()
    assert worker.receive_next(WorkerFinal) == NOTHING_DONE
    assert worker.end() == 0
    assert monotonic_ns() - began_ns < 3 * NS_PER_S
    valkey.resume()
    wait_until(lambda: connections_of(valkey) == 0, "no connection is left")


def test_a_lost_agent_during_the_preload_ends_the_process_at_once(valkey: Server, worker: WorkerThread) -> None:
    began_ns = preloading(worker, valkey)
    worker.close_pipe()
    assert worker.end() == 1
    assert monotonic_ns() - began_ns < 3 * NS_PER_S
    valkey.resume()


def test_a_refused_preload_is_reported_as_an_error_of_the_target(valkey: Server, worker: WorkerThread) -> None:
    valkey.client().lpush("stampede:1", "x")
    worker.prepare(plan_of(valkey.url, preload=(Preload(command="INCR"),), keys=Keys(maximum=Count(5))))
    failed = worker.receive_next(Failed)
    assert failed.kind is FailureKind.TARGET
    assert "refused the preload: INCR stampede:1 was answered with WRONGTYPE" in failed.reason


@pytest.mark.parametrize("drain", [True, False])
def test_a_stop_during_the_load_ends_it_with_everything_counted(
    valkey: Server, worker: WorkerThread, drain: bool
) -> None:
    asking = valkey.client()
    worker.start_load(plan_of(valkey.url, duration_s=Seconds(3600), threads_per_pool=3))
    wait_until(lambda: "cmdstat_get" in asking.info("commandstats"), "the load runs")
    worker.stop(drain=drain)
    report = worker.finish()
    report.check_sums()
    calls = calls_of(valkey)
    commands = report.all_commands
    assert commands.ok <= calls.get("SET", 0) + calls["GET"] <= commands.operations
    # Without drain the operation in flight is cut short.
    assert commands.error_count == 0 if drain else commands.failures.get("CutShort", 0) <= 1
    assert report.final.drained
    assert report.final.ran_ns < 5 * NS_PER_S


def test_a_load_whose_lease_expires_ends_with_everything_counted(valkey: Server, worker: WorkerThread) -> None:
    worker.prepare(plan_of(valkey.url, duration_s=Seconds(3600), threads_per_pool=3), lease_s=2.0)
    worker.receive_next(Prepared)
    worker.start()
    report = worker.finish()
    report.check_sums()
    assert report.final.fenced
    assert report.final.drained
    assert report.final.ran_ns < 5 * NS_PER_S
    calls = calls_of(valkey)
    assert report.all_commands.ok == calls["SET"] + calls["GET"] == report.final.issued > 0
    assert worker.end() == 0


def test_a_load_with_an_expired_lease_does_not_begin(valkey: Server, worker: WorkerThread) -> None:
    worker.prepare(plan_of(valkey.url, duration_s=Seconds(3600)), lease_s=0.5)
    worker.receive_next(Prepared)
    over_ns = monotonic_ns() + NS_PER_S // 2
    wait_until(lambda: monotonic_ns() > over_ns, "the lease is over")
    worker.start()
    assert worker.receive_next(WorkerFinal) == msgspec.structs.replace(NOTHING_DONE, fenced=True)
    assert calls_of(valkey).keys().isdisjoint({"SET", "GET"})
    assert worker.end() == 0


def test_a_preload_whose_lease_expires_ends(valkey: Server, worker: WorkerThread) -> None:
    worker.prepare(plan_of(valkey.url, **MANY_KEYS), lease_s=0.5)
    failed = worker.receive_next(Failed)
    assert failed == Failed(
        kind=FailureKind.AGENT, reason="it stopped preparing, because its agent did not renew its lease"
    )
    assert worker.end() == 0
    wait_until(lambda: connections_of(valkey) == 0, "no connection is left")


def test_a_stop_before_the_start_instant_ends_the_process_with_nothing_done(
    valkey: Server, worker: WorkerThread
) -> None:
    worker.start_load(plan_of(valkey.url, duration_s=Seconds(3600), threads_per_pool=2), in_s=3600)
    worker.stop()
    final = worker.receive_next(WorkerFinal)
    assert (final.issued, final.counted, final.ran_ns, final.start_skew_ns) == (0, 0, 0, 0)
    assert worker.end() == 0


def test_a_stop_without_drain_cuts_operations_in_flight_short(valkey: Server, worker: WorkerThread) -> None:
    asking = valkey.client()
    plan = plan_of(
        valkey.url, "BLPOP nothing 0", duration_s=Seconds(3600), threads_per_pool=2, socket_timeout_s=Seconds(0)
    )
    worker.start_load(plan)
    wait_until(lambda: asking.info("clients")["blocked_clients"] == 1, "the load runs")
    worker.stop(drain=False)
    began_ns = monotonic_ns()
    report = worker.finish()
    assert monotonic_ns() - began_ns < 3 * NS_PER_S
    report.check_sums()
    assert report.all_commands.failures == {"CutShort": 1}


@pytest.mark.parametrize("when", ["first", "prepared", "running"])
def test_a_lost_agent_ends_the_process_and_closes_its_connections(
    valkey: Server, worker: WorkerThread, when: str
) -> None:
    if when != "first":
        worker.prepare(
            plan_of(valkey.url, connections=Connections.PREWARM, max_connections=3, duration_s=Seconds(3600))
        )
        worker.receive_next(Prepared)
    if when == "running":
        worker.start()
        wait_until(lambda: "GET" in calls_of(valkey), "the load runs")
    worker.close_pipe()
    assert worker.end() == 1
    wait_until(lambda: connections_of(valkey) == 0, "no connection is left")

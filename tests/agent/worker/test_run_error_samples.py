"""Samples of errors of every driver, single, in pipelines and in transactions, on real servers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from common.metrics.error_samples import ErrorSample
from common.metrics.intervals import merge_counts
from common.plan.schema import Driver, Keys, Retry, Target
from common.units import Count, Seconds
from tests.support.plans import plan_with
from tests.support.runs import wait_until
from tests.support.servers import Server
from tests.support.shapes import Group
from tests.support.workers import WorkerReport, WorkerThread

pytestmark = pytest.mark.usefixtures("no_leaks")

SETTINGS: dict[str, Any] = {
    "keys": Keys(prefix="{a}:", maximum=Count(20)),
    "retry": Retry(retries=0),
    "connect_timeout_s": Seconds(2),
}
BATCHES = ({}, {"pipeline": 4}, {"transaction": 4})


def samples_of(report: WorkerReport) -> tuple[ErrorSample, ...]:
    """The samples, whose counts must be those of the errors."""
    samples, found = report.pool.error_samples, Counter[str]()
    for sample in samples:
        found[sample.name] += sample.count
    assert found == merge_counts((report.all_commands.errors, report.all_commands.failures))
    assert all(0 <= sample.first_ns <= sample.last_ns for sample in samples)
    return samples


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("more", [(), ("SCAN __cursor__",)], ids=["drawn ahead", "one by one"])
def test_an_error_reply_has_its_message_command_key_and_endpoint(
    valkey: Server, worker: WorkerThread, driver: Driver, batch: dict[str, int], more: tuple[str, ...]
) -> None:
    for number in range(1, 21):
        valkey.client().lpush(f"{{a}}:{number}", "x")
    settings = {**SETTINGS, **batch, "driver": driver, "requests": Count(200)}
    report = worker.run(plan_with(valkey.url, "LPUSH", "GET", *more, **settings))
    [sample] = samples_of(report)
    assert (sample.name, sample.command, sample.exception) == ("WRONGTYPE", "GET", "ResponseError")
    assert sample.message == "WRONGTYPE Operation against a key holding the wrong kind of value"
    assert sample.key in {f"{{a}}:{number}" for number in range(1, 21)}
    assert sample.endpoint == f"127.0.0.1:{valkey.port}"
    assert sample.count == report.pool.commands["GET"].operations > 0


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_an_error_reply_in_a_cluster_names_the_node(
    cluster: Group, worker: WorkerThread, driver: Driver, batch: dict[str, int]
) -> None:
    plan = plan_with(cluster.url, "SET", "LPUSH", driver=driver, requests=Count(200), **batch, **SETTINGS)
    samples = samples_of(worker.run(plan))
    owners = {f"127.0.0.1:{node.port}" for node in cluster.nodes if node.ask("DBSIZE")}
    assert len(owners) == 1
    assert {sample.endpoint for sample in samples} == owners
    assert {sample.name for sample in samples} == {"WRONGTYPE"}


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_a_server_that_dies_has_samples_of_lost_and_of_refused_connections(
    valkey: Server, worker: WorkerThread, driver: Driver, batch: dict[str, int]
) -> None:
    client = valkey.client()
    worker.start_load(plan_with(valkey.url, "SET", driver=driver, duration_s=Seconds(3600), **batch, **SETTINGS))
    wait_until(lambda: client.dbsize() > 0, "the load has begun")
    valkey.kill()
    refused = wait_until(lambda: refused_in(worker.receive()), "connections are refused", 20)
    worker.stop()
    worker.finish()
    assert {sample.endpoint for sample in refused} == {f"127.0.0.1:{valkey.port}"}
    assert {(sample.exception, sample.command, sample.key[:4]) for sample in refused} == {
        ("ConnectionError", "SET", "{a}:")
    }


def refused_in(message: Any) -> list[ErrorSample]:
    """The samples of refused connections in a message of a worker."""
    pools = [pool for interval in getattr(message, "intervals", ()) for pool in interval.pools.values()]
    return [sample for pool in pools for sample in pool.error_samples if is_refused(sample)]


def is_refused(sample: ErrorSample) -> bool:
    """Whether a connection was refused. A sample of an error during the loss of a connection may have no cause."""
    return "Error 111 connecting" in sample.message and (not sample.cause or "[Errno 111]" in sample.cause)


@pytest.mark.parametrize("driver", [Driver.CLIENT, Driver.ASYNCIO])
def test_a_checkout_that_takes_too_long_has_a_sample_without_endpoint(
    valkey: Server, worker: WorkerThread, driver: Driver
) -> None:
    workers = {"threads_per_pool" if driver is Driver.CLIENT else "tasks_per_pool": 8}
    plan = plan_with(
        valkey.url, "BLPOP __key__ 0.05", driver=driver, requests=Count(40), client_instances_per_pool=1,
        checkout_timeout_s=Seconds(0.01), **workers, **SETTINGS,
    )  # fmt: skip
    samples = samples_of(worker.run(plan))
    [sample] = [each for each in samples if each.name == "CheckoutTimeout"]
    assert (sample.command, sample.endpoint) == ("BLPOP", "")
    assert sample.key.startswith("{a}:")
    assert sample.message == "no client instance came free in time"


@pytest.mark.parametrize("driver", Driver)
def test_a_password_is_in_no_sample(valkey_with_password: Server, worker: WorkerThread, driver: Driver) -> None:
    server = valkey_with_password
    secret = server.password or ""
    target = Target(url=server.url, password=secret)
    plan = plan_with(server.url, f"EVAL \"return redis.error_reply('SECRET {secret}')\" 0", driver=driver,
                     requests=Count(20), password=target.password, **SETTINGS)  # fmt: skip
    [sample] = samples_of(worker.run(plan))
    assert sample.name == "SECRET"
    assert secret not in repr(sample)

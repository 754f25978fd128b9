"""The other side of the comparison: a loop of redis-py calls and nothing else, a program of its own.

It does what a worker process does with the same plan, but for the numbers: no latency is taken, no command told from
another, no wait, error or byte counted. The value is always the same, and random keys are drawn in the cheapest way
that Python has. Clients are made with the plan's own settings.

    stdin: a job as JSON; when "ready" was printed, a line to begin; another one to end
    stdout: "ready"; at the end, how many operations were done
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle
from random import Random
from threading import Thread
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import FullJitterBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

_DRAWN_BEFORE = 1000


@dataclass(frozen=True)
class BareJob:
    """What to do. style: a key of `STYLES` or of `TASK_STYLES`, whose workers are tasks of one loop."""

    port: int
    style: str
    workers: int
    key_prefix: str
    first_key: int
    keys: int
    pipeline: int
    value_bytes: int
    protocol: int
    timeout_s: float
    retries: int
    retry_base_s: float
    retry_cap_s: float
    max_connections: int


class Switch:
    """Loops run as long as it is on."""

    __slots__ = ("is_on",)

    def __init__(self) -> None:
        self.is_on = True


def main() -> None:
    job = BareJob(**json.loads(sys.stdin.readline()))
    switch = Switch()
    counts: list[int] = []

    def work(client: redis.Redis) -> None:
        counts.append(STYLES[job.style](client, job, switch))

    async def work_in_tasks() -> None:
        # One style in all of them, and each ends by itself when the switch is off.
        counts.extend(await asyncio.gather(*(one_task() for _ in range(job.workers))))

    async def one_task() -> int:
        async with open_async_client(job) as client:
            return await TASK_STYLES[job.style](client, job, switch)

    # As many clients as the driver has; threads that share one are no quicker.
    if job.style in TASK_STYLES:
        threads = [Thread(target=lambda: asyncio.run(work_in_tasks()))]
    else:
        threads = [Thread(target=work, args=(open_client(job),)) for _ in range(job.workers)]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    switch.is_on = False
    for thread in threads:
        thread.join()
    if len(counts) < job.workers:
        sys.exit("a worker of the bare loop ended before its time")
    print(sum(counts), flush=True)


def open_client(job: BareJob) -> redis.Redis:
    return redis.Redis(retry=Retry(*_policy(job)), **_settings(job))


def open_async_client(job: BareJob) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(retry=AsyncRetry(*_policy(job)), **_settings(job))


def _policy(job: BareJob) -> tuple[FullJitterBackoff, int]:
    return FullJitterBackoff(job.retry_cap_s, job.retry_base_s), job.retries


def _settings(job: BareJob) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": job.port,
        "protocol": job.protocol,
        "socket_timeout": job.timeout_s,
        "socket_connect_timeout": job.timeout_s,
        "max_connections": job.max_connections,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _drawing(job: BareJob) -> tuple[bytes, int, int, bytes, Callable[[], float]]:
    return f"{job.key_prefix}%d".encode(), job.first_key, job.keys, os.urandom(job.value_bytes), Random().random


def by_methods(client: Any, job: BareJob, switch: Switch) -> int:
    """As an application calls: `client.set`, `client.get`."""
    form, first, count, value, draw = _drawing(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            client.get(key)
        else:
            client.set(key, value)
        done += 1
    return done


def by_execute(client: Any, job: BareJob, switch: Switch) -> int:
    """By the very call that the driver makes, which spares what is done in `set` and `get`."""
    form, first, count, value, draw = _drawing(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            client.execute_command("GET", key)
        else:
            client.execute_command("SET", key, value)
        done += 1
    return done


def by_execute_drawn_before(client: Any, job: BareJob, switch: Switch) -> int:
    """The least that there is: the same few operations again and again, so that even drawing them costs nothing."""
    form, first, count, value, draw = _drawing(job)
    operations = [
        ("GET", form % (first + int(draw() * count)))
        if draw() < 0.5
        else ("SET", form % (first + int(draw() * count)), value)
        for _ in range(_DRAWN_BEFORE)
    ]
    done = 0
    for operation in cycle(operations):
        client.execute_command(*operation)
        done += 1
        if not switch.is_on:
            break
    return done


def by_pipelines(client: Any, job: BareJob, switch: Switch) -> int:
    """`by_methods`, but so many calls to a pipeline."""
    form, first, count, value, draw = _drawing(job)
    done = 0
    while switch.is_on:
        pipeline = client.pipeline(transaction=False)
        for _ in range(job.pipeline):
            key = form % (first + int(draw() * count))
            if draw() < 0.5:
                pipeline.get(key)
            else:
                pipeline.set(key, value)
        done += len(pipeline.execute())
    return done


async def by_awaiting_methods(client: Any, job: BareJob, switch: Switch) -> int:
    """`by_methods`, with redis.asyncio."""
    form, first, count, value, draw = _drawing(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            await client.get(key)
        else:
            await client.set(key, value)
        done += 1
    return done


async def by_awaiting(client: Any, job: BareJob, switch: Switch) -> int:
    """`by_execute`, with redis.asyncio."""
    form, first, count, value, draw = _drawing(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            await client.execute_command("GET", key)
        else:
            await client.execute_command("SET", key, value)
        done += 1
    return done


STYLES: dict[str, Callable[[Any, BareJob, Switch], int]] = {
    "methods": by_methods,
    "pipelines": by_pipelines,
    "execute": by_execute,
    "execute drawn before": by_execute_drawn_before,
}
TASK_STYLES: dict[str, Callable[[Any, BareJob, Switch], Awaitable[int]]] = {
    "awaiting methods": by_awaiting_methods,
    "awaiting execute": by_awaiting,
}

if __name__ == "__main__":
    main()

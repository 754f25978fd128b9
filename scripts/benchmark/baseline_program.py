"""The baseline, as a program: a loop of redis-py calls and nothing else.

The loop sends the commands of the same plan as a worker process, but records nothing: no latency, no wait, no error,
no byte, no count by command. It always sends the same value, and draws random keys in Python's cheapest way. Clients
have the plan's settings.

    stdin: a job as JSON; after "ready", one line starts the loop, and another line stops it
    stdout: "ready"; at the end, the number of operations
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

_PREGENERATED = 1000


@dataclass(frozen=True)
class BaselineJob:
    """The load. style: a key of `STYLES` (workers are threads) or of `TASK_STYLES` (workers are tasks on one loop)."""

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
    """A flag that all workers share: they run while it is on."""

    __slots__ = ("is_on",)

    def __init__(self) -> None:
        self.is_on = True


def main() -> None:
    job = BaselineJob(**json.loads(sys.stdin.readline()))
    switch = Switch()
    counts: list[int] = []

    def work(client: redis.Redis) -> None:
        counts.append(STYLES[job.style](client, job, switch))

    async def work_in_tasks() -> None:
        counts.extend(await asyncio.gather(*(one_task() for _ in range(job.workers))))

    async def one_task() -> int:
        async with open_async_client(job) as client:
            return await TASK_STYLES[job.style](client, job, switch)

    # One client per worker, as in the driver. Sharing a client is not faster.
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
        sys.exit("a worker of the baseline failed")
    print(sum(counts), flush=True)


def open_client(job: BaselineJob) -> redis.Redis:
    return redis.Redis(retry=Retry(*_retry_policy(job)), **_settings(job))


def open_async_client(job: BaselineJob) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(retry=AsyncRetry(*_retry_policy(job)), **_settings(job))


def _retry_policy(job: BaselineJob) -> tuple[FullJitterBackoff, int]:
    return FullJitterBackoff(job.retry_cap_s, job.retry_base_s), job.retries


def _settings(job: BaselineJob) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": job.port,
        "protocol": job.protocol,
        "socket_timeout": job.timeout_s,
        "socket_connect_timeout": job.timeout_s,
        "max_connections": job.max_connections,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _draw_settings(job: BaselineJob) -> tuple[bytes, int, int, bytes, Callable[[], float]]:
    """(key format, first key, number of keys, value, random number in [0, 1))"""
    return f"{job.key_prefix}%d".encode(), job.first_key, job.keys, os.urandom(job.value_bytes), Random().random


def by_methods(client: Any, job: BaselineJob, switch: Switch) -> int:
    """Call `client.set` and `client.get`, as an application does."""
    form, first, count, value, draw = _draw_settings(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            client.get(key)
        else:
            client.set(key, value)
        done += 1
    return done


def by_execute(client: Any, job: BaselineJob, switch: Switch) -> int:
    """Call `execute_command`, as the driver does: without the work of `set` and `get`."""
    form, first, count, value, draw = _draw_settings(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            client.execute_command("GET", key)
        else:
            client.execute_command("SET", key, value)
        done += 1
    return done


def by_execute_pregenerated(client: Any, job: BaselineJob, switch: Switch) -> int:
    """The lower bound: `execute_command` on operations that were drawn before the start."""
    form, first, count, value, draw = _draw_settings(job)
    operations = [
        ("GET", form % (first + int(draw() * count)))
        if draw() < 0.5
        else ("SET", form % (first + int(draw() * count)), value)
        for _ in range(_PREGENERATED)
    ]
    done = 0
    for operation in cycle(operations):
        client.execute_command(*operation)
        done += 1
        if not switch.is_on:
            break
    return done


def by_pipelines(client: Any, job: BaselineJob, switch: Switch) -> int:
    """As `by_methods`, with `job.pipeline` calls per pipeline."""
    form, first, count, value, draw = _draw_settings(job)
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


async def by_awaiting_methods(client: Any, job: BaselineJob, switch: Switch) -> int:
    """As `by_methods`, with redis.asyncio."""
    form, first, count, value, draw = _draw_settings(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            await client.get(key)
        else:
            await client.set(key, value)
        done += 1
    return done


async def by_awaiting_execute(client: Any, job: BaselineJob, switch: Switch) -> int:
    """As `by_execute`, with redis.asyncio."""
    form, first, count, value, draw = _draw_settings(job)
    done = 0
    while switch.is_on:
        key = form % (first + int(draw() * count))
        if draw() < 0.5:
            await client.execute_command("GET", key)
        else:
            await client.execute_command("SET", key, value)
        done += 1
    return done


STYLES: dict[str, Callable[[Any, BaselineJob, Switch], int]] = {
    "methods": by_methods,
    "pipelines": by_pipelines,
    "execute": by_execute,
    "execute pregenerated": by_execute_pregenerated,
}
TASK_STYLES: dict[str, Callable[[Any, BaselineJob, Switch], Awaitable[int]]] = {
    "awaiting methods": by_awaiting_methods,
    "awaiting execute": by_awaiting_execute,
}

if __name__ == "__main__":
    main()

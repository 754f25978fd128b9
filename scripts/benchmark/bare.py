"""The other side of the comparison: a loop of redis-py calls and nothing else, a program of its own.

It does what a worker process does with the same plan, but for the numbers: no latency is taken, no command told from
another, no wait, error or byte counted. The value is always the same, and random keys are drawn in the cheapest way
that Python has. Clients are made with the plan's own settings.

    stdin: a job as JSON; when "ready" was printed, a line to begin; another one to end
    stdout: "ready"; at the end, how many operations were done
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from random import Random
from threading import Thread
from typing import Any

import redis
from redis.backoff import FullJitterBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

_DRAWN_BEFORE = 1000


@dataclass(frozen=True)
class Job:
    """What to do. style: a key of `STYLES`."""

    port: int
    style: str
    threads: int
    key_prefix: str
    keys: int
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
    job = Job(**json.loads(sys.stdin.readline()))
    switch = Switch()
    counts: list[int] = []

    def work(client: redis.Redis) -> None:
        counts.append(STYLES[job.style](client, job, switch))

    # As many clients as the driver has; threads that share one are no quicker.
    threads = [Thread(target=work, args=(open_client(job),)) for _ in range(job.threads)]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    switch.is_on = False
    for thread in threads:
        thread.join()
    if len(counts) < job.threads:
        sys.exit("a thread of the bare loop ended before its time")
    print(sum(counts), flush=True)


def open_client(job: Job) -> redis.Redis:
    return redis.Redis(
        host="127.0.0.1",
        port=job.port,
        protocol=job.protocol,
        socket_timeout=job.timeout_s,
        socket_connect_timeout=job.timeout_s,
        retry=Retry(FullJitterBackoff(job.retry_cap_s, job.retry_base_s), job.retries),
        max_connections=job.max_connections,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


def by_methods(client: Any, job: Job, switch: Switch) -> int:
    """As an application calls: `client.set`, `client.get`."""
    form, count, value, draw = f"{job.key_prefix}%d".encode(), job.keys, os.urandom(job.value_bytes), Random().random
    done = 0
    while switch.is_on:
        key = form % (1 + int(draw() * count))
        if draw() < 0.5:
            client.get(key)
        else:
            client.set(key, value)
        done += 1
    return done


def by_execute(client: Any, job: Job, switch: Switch) -> int:
    """By the very call that the driver makes, which spares what is done in `set` and `get`."""
    form, count, value, draw = f"{job.key_prefix}%d".encode(), job.keys, os.urandom(job.value_bytes), Random().random
    done = 0
    while switch.is_on:
        key = form % (1 + int(draw() * count))
        if draw() < 0.5:
            client.execute_command("GET", key)
        else:
            client.execute_command("SET", key, value)
        done += 1
    return done


def by_execute_drawn_before(client: Any, job: Job, switch: Switch) -> int:
    """The least that there is: the same few operations again and again, so that even drawing them costs nothing."""
    form, value, draw = f"{job.key_prefix}%d".encode(), os.urandom(job.value_bytes), Random()
    operations = [
        ("GET", form % draw.randint(1, job.keys))
        if draw.random() < 0.5
        else ("SET", form % draw.randint(1, job.keys), value)
        for _ in range(_DRAWN_BEFORE)
    ]
    done = 0
    for operation in cycle(operations):
        client.execute_command(*operation)
        done += 1
        if not switch.is_on:
            break
    return done


STYLES: dict[str, Callable[[Any, Job, Switch], int]] = {
    "methods": by_methods,
    "execute": by_execute,
    "execute drawn before": by_execute_drawn_before,
}

if __name__ == "__main__":
    main()

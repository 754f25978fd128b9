"""The other side of the comparison: a loop of redis-py calls and nothing else, a program of its own.

It does what a worker process does with the same plan, but for the numbers: no latency is taken, no command told from
another, no wait, error or byte counted. Keys and values are drawn before the start, so the loop does not even pay for
these. Clients are made with the plan's own settings.

    stdin: a job as JSON; when "ready" was printed, a line to begin; another one to end
    stdout: "ready"; at the end, how many operations were done
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from threading import Thread
from typing import Any

import redis
from redis.backoff import FullJitterBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

PREDRAWN = 10_000
"""Operations drawn for each thread, over which it goes again and again."""


@dataclass(frozen=True)
class Job:
    """What to do. style: a key of `STYLES`."""

    port: int
    style: str
    threads: int
    key_prefix: str
    key_maximum: int
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


Operation = tuple[bytes, bytes | None]
"""(key, value) of a SET, (key, None) of a GET."""


def main() -> None:
    job = Job(**json.loads(sys.stdin.readline()))
    switch = Switch()
    counts: list[int] = []

    def work(client: redis.Redis, operations: list[Operation]) -> None:
        counts.append(STYLES[job.style](client, cycle(operations), switch))

    # As many clients as the driver has; threads that share one are no quicker.
    threads = [
        Thread(target=work, args=(open_client(job), draw(job, random.Random(number)))) for number in range(job.threads)
    ]
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


def draw(job: Job, randomness: random.Random) -> list[Operation]:
    """About as many SETs as GETs."""
    values = os.urandom(job.value_bytes + (1 << 16))

    def value() -> bytes:
        start = randomness.randrange(1 << 16)
        return values[start : start + job.value_bytes]

    return [
        (
            f"{job.key_prefix}{randomness.randint(1, job.key_maximum)}".encode(),
            value() if randomness.random() < 0.5 else None,
        )
        for _ in range(PREDRAWN)
    ]


def by_methods(client: Any, operations: Iterator[Operation], switch: Switch) -> int:
    """As an application calls: `client.set`, `client.get`."""
    done = 0
    while switch.is_on:
        key, value = next(operations)
        if value is None:
            client.get(key)
        else:
            client.set(key, value)
        done += 1
    return done


def by_execute(client: Any, operations: Iterator[Operation], switch: Switch) -> int:
    """By the very call that the driver makes, which spares what is done in `set` and `get`."""
    done = 0
    while switch.is_on:
        key, value = next(operations)
        if value is None:
            client.execute_command("GET", key)
        else:
            client.execute_command("SET", key, value)
        done += 1
    return done


STYLES: dict[str, Callable[[Any, Iterator[Operation], Switch], int]] = {"methods": by_methods, "execute": by_execute}

if __name__ == "__main__":
    main()

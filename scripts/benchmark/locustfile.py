"""The locustfile of the comparison: a user with a redis-py client. Locust runs it in an environment of its own.

Each call is timed and reported to Locust as its documentation describes for clients that do not speak HTTP. The
variable STAMPEDE_BENCH has the job as JSON; at the end, the number of calls is written to the job's `count_file`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import redis
from locust import User, constant, events, task

_JOB = json.loads(os.environ["STAMPEDE_BENCH"])
_draw = Random().random
_key_format, _first, _keys = f"{_JOB['key_prefix']}%d", _JOB["first_key"], _JOB["keys"]
_value = os.urandom(_JOB["value_bytes"])


class RedisUser(User):  # type: ignore[misc]
    """Draws a key, calls, and reports the call to Locust."""

    wait_time = constant(0)

    def on_start(self) -> None:
        # No timeout: the benchmark pauses this process, see `turns`.
        self._redis = redis.Redis(host="127.0.0.1", port=_JOB["port"], protocol=_JOB["protocol"], socket_timeout=None)
        self._report = self.environment.events.request.fire

    @task  # type: ignore[untyped-decorator]
    def operate(self) -> None:
        key = _key_format % (_first + int(_draw() * _keys))
        error = None
        name = "GET" if _draw() < 0.5 else "SET"
        began = time.perf_counter()
        try:
            if name == "GET":
                self._redis.get(key)
            else:
                self._redis.set(key, _value)
        except redis.RedisError as raised:
            error = raised
        took_ms = (time.perf_counter() - began) * 1e3
        self._report(
            request_type="redis", name=name, response_time=took_ms, response_length=0, exception=error, context={}
        )


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def write_count(environment: Any, **_: Any) -> None:
    """Write the number of calls, failed ones included."""
    Path(_JOB["count_file"]).write_text(str(environment.stats.total.num_requests))

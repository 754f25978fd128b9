from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest
import redis

from agent.worker.drivers.wire.event_loop import BlockingCalls
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.units import NS_PER_S

pytestmark = pytest.mark.usefixtures("no_leaks")


class Stand:
    """A connector whose loop is the test: `turn` does what it was asked to call."""

    def __init__(self) -> None:
        self.cancellation = Cancellation()
        self._calls: Queue[Callable[[], None]] = Queue()
        self.connector = BlockingCalls(self.cancellation, self._calls.put)
        self.heard: list[tuple[str, Any]] = []

    def do(self, what: Callable[[], Any], pause_s: float = 0.0) -> None:
        self.connector.do(
            what,
            lambda result: self.heard.append(("then", result)),
            lambda error: self.heard.append(("otherwise", error)),
            pause_s,
        )

    def turn(self) -> None:
        self._calls.get(timeout=10)()

    @property
    def is_quiet(self) -> bool:
        return self._calls.empty()


@pytest.fixture
def stand(_leak_check_first: None) -> Iterator[Stand]:
    made = Stand()
    yield made
    made.cancellation.cancel()
    made.connector.end()
    made.connector.end()
    made.connector.wait(5)


def test_a_call_runs_on_a_thread_and_its_result_goes_to_the_loop(stand: Stand) -> None:
    stand.do(lambda: threading.current_thread().name)
    stand.turn()
    [(how, name)] = stand.heard
    assert how == "then"
    assert name.startswith("wire connector")


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), redis.RedisClusterException("odd"), OSError("deaf")])
def test_an_error_of_the_target_goes_to_the_error_callback(stand: Stand, error: Exception) -> None:
    def fail() -> None:
        raise error

    stand.do(fail)
    stand.turn()
    assert stand.heard == [("otherwise", error)]


def test_an_unexpected_error_is_raised_in_the_loop(stand: Stand) -> None:
    def stumble() -> None:
        raise RuntimeError("a pebble")

    stand.do(stumble)
    with pytest.raises(RuntimeError, match="a pebble"):
        stand.turn()
    assert stand.heard == []


def test_cancellation_ends_a_waiting_call_and_calls_nothing_back(stand: Stand) -> None:
    began = threading.Event()

    def hang() -> None:
        began.set()
        stand.cancellation.wait(3600)

    stand.do(hang)
    stand.do(lambda: 1, pause_s=3600)
    assert began.wait(10)
    began_ns = monotonic_ns()
    stand.cancellation.cancel()
    stand.connector.end()
    stand.connector.wait(10)
    assert monotonic_ns() - began_ns < 5 * NS_PER_S
    assert stand.is_quiet


@pytest.mark.parametrize("end", ["cut", "ended"])
def test_no_call_begins_after_the_end(stand: Stand, end: str) -> None:
    if end == "cut":
        stand.cancellation.cancel()
    else:
        stand.connector.end()
    stand.do(pytest.fail)
    stand.connector.wait(5)
    assert stand.is_quiet


def test_a_call_at_the_moment_of_the_end_does_not_crash() -> None:
    class Failure(Cancellation):
        """Has another thread end the connector in the very moment in which that looks whether it may begin."""

        @property
        def is_cancelled(self) -> bool:
            failure.start()
            failure.join(0.1)
            return False

    connector = BlockingCalls(Failure(), lambda _: None)
    failure = threading.Thread(target=connector.end)
    connector.do(lambda: None, lambda _: None, lambda _: None)
    failure.join(10)
    connector.wait(5)


def test_waiting_for_calls_has_a_limit(stand: Stand) -> None:
    stand.do(lambda: stand.cancellation.wait(3600))
    stand.connector.end()
    stand.connector.wait(0.01)
    assert not stand.cancellation.is_cancelled


def test_many_calls_run_at_once(stand: Stand) -> None:
    together = threading.Barrier(16)
    for _ in range(16):
        stand.do(lambda: together.wait(10))
    for _ in range(16):
        stand.turn()
    assert sorted(result for _, result in stand.heard) == list(range(16))

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


class CallStage:
    """BlockingCalls whose loop is the test: `turn` runs the next callback."""

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
def stage(_leak_check_first: None) -> Iterator[CallStage]:
    made = CallStage()
    yield made
    made.cancellation.cancel()
    made.connector.end()
    made.connector.end()
    made.connector.wait(5)


def test_a_call_runs_on_a_thread_and_its_result_goes_to_the_loop(stage: CallStage) -> None:
    stage.do(lambda: threading.current_thread().name)
    stage.turn()
    [(how, name)] = stage.heard
    assert how == "then"
    assert name.startswith("wire connector")


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), redis.RedisClusterException("odd"), OSError("deaf")])
def test_an_error_of_the_target_goes_to_the_error_callback(stage: CallStage, error: Exception) -> None:
    def fail() -> None:
        raise error

    stage.do(fail)
    stage.turn()
    assert stage.heard == [("otherwise", error)]


def test_an_unexpected_error_is_raised_in_the_loop(stage: CallStage) -> None:
    def crash() -> None:
        raise RuntimeError("broken")

    stage.do(crash)
    with pytest.raises(RuntimeError, match="broken"):
        stage.turn()
    assert stage.heard == []


def test_cancellation_ends_a_waiting_call_and_calls_nothing_back(stage: CallStage) -> None:
    began = threading.Event()

    def hang() -> None:
        began.set()
        stage.cancellation.wait(3600)

    stage.do(hang)
    stage.do(lambda: 1, pause_s=3600)
    assert began.wait(10)
    began_ns = monotonic_ns()
    stage.cancellation.cancel()
    stage.connector.end()
    stage.connector.wait(10)
    assert monotonic_ns() - began_ns < 5 * NS_PER_S
    assert stage.is_quiet


@pytest.mark.parametrize("end", ["cut", "ended"])
def test_no_call_begins_after_the_end(stage: CallStage, end: str) -> None:
    if end == "cut":
        stage.cancellation.cancel()
    else:
        stage.connector.end()
    stage.do(pytest.fail)
    stage.connector.wait(5)
    assert stage.is_quiet


def test_a_call_at_the_moment_of_the_end_does_not_crash() -> None:
    class Failure(Cancellation):
        """Another thread ends the calls at the moment at which a new call checks for cancellation."""

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


def test_waiting_for_calls_has_a_limit(stage: CallStage) -> None:
    stage.do(lambda: stage.cancellation.wait(3600))
    stage.connector.end()
    stage.connector.wait(0.01)
    assert not stage.cancellation.is_cancelled


def test_many_calls_run_at_once(stage: CallStage) -> None:
    together = threading.Barrier(16)
    for _ in range(16):
        stage.do(lambda: together.wait(10))
    for _ in range(16):
        stage.turn()
    assert sorted(result for _, result in stage.heard) == list(range(16))

"""Writers and readers of stamps, with a simulated server between them."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.deliveries import DeliveryRecord, add_up
from agent.worker.visibility import StampReader, StampWriter
from common.metrics.intervals import DeliveryMetrics
from common.plan.schema import StampRole, Stamps
from common.pubsub_header import HEADER_BYTES, HeaderReader, HeaderWriter
from common.units import NS_PER_S, PerSecond, Seconds

MS = NS_PER_S // 1000
GAP_MS, POLL_MS, TIMEOUT_MS = 50, 1, 1000
STAMPS = Stamps(role=StampRole.WRITE, rate_per_s=PerSecond(1000 / GAP_MS), timeout_s=Seconds(TIMEOUT_MS / 1000))
VALUE = b"x" * HEADER_BYTES


class Replication:
    """A server that shows each write after a delay; None: never. It is the pool and the instance of both workers."""

    def __init__(self, delays_ms: list[int | None]) -> None:
        self.now_ns = 10**12
        self._delays_ms = iter(delays_ms)
        self._shown_ns: dict[bytes, list[tuple[int, bytes]]] = {}

    def checkout(self) -> tuple[Replication, int]:
        return self, 0

    def give_back(self, _: object) -> None:
        """As a pool."""

    def execute(self, name: str, key: bytes, *rest: bytes) -> bytes | None:
        history = self._shown_ns.setdefault(key, [])
        if name == "GET":
            return next((value for at_ns, value in reversed(history) if at_ns <= self.now_ns), None)
        if (delay_ms := next(self._delays_ms)) is not None:
            history.append((self.now_ns + delay_ms * MS, rest[0]))
        return b"OK"


def measured(delays_ms: list[int | None], *, run: str = "run", boot: str = "boot") -> DeliveryMetrics:
    """Write once per GAP_MS, read once per POLL_MS, until all writes have timed out. run, boot: of the writer."""
    server, record = Replication(delays_ms), DeliveryRecord()
    begin_ns = server.now_ns
    due_ns = (begin_ns + at * GAP_MS * MS for at in count())
    writer = StampWriter(server, b"k", STAMPS, 0, HeaderWriter(run, boot, 0), record, lambda: server.now_ns)
    reader = StampReader(
        server, b"k", STAMPS, 0, HeaderReader("run", "boot"), record, due_ns=due_ns, now=lambda: server.now_ns
    )
    for at_ms in range(len(delays_ms) * GAP_MS + TIMEOUT_MS):
        server.now_ns = begin_ns + at_ms * MS
        if at_ms % GAP_MS == 0 and at_ms // GAP_MS < len(delays_ms):
            instance, _ = writer.checkout()
            instance.execute("SET", b"drawn", VALUE)
            writer.give_back(instance)
        instance, _ = reader.checkout()
        instance.execute("GET", b"drawn")
        reader.give_back(instance)
    return add_up(record.take())


def test_each_write_is_seen_once_with_its_lag() -> None:
    found = measured([0, 7, 20, 45])
    assert (found.expected, found.delivered) == (4, 4)
    assert found.latency.maximum == pytest.approx(45 * MS, rel=0.01)
    assert found.latency.quantiles((0.5,))[0] == pytest.approx(7 * MS, rel=0.01)


def test_a_write_that_never_shows_does_not_delay_the_others() -> None:
    found = measured([3, None, 3, 3, 3, 3])
    assert (found.expected, found.delivered, found.lost) == (6, 5, 1)
    assert found.latency.maximum <= 5 * MS


def test_a_stall_delays_the_writes_within_it() -> None:
    stalled = [max(0, 600 - at * GAP_MS) for at in range(20)]  # all show at the same time
    found = measured(list(stalled))
    assert found.delivered == 20
    assert found.latency.maximum == pytest.approx(600 * MS, rel=0.05)


@given(st.lists(st.none() | st.integers(0, TIMEOUT_MS - 200), max_size=12))
def test_lags_are_exact_but_for_one_poll_of_each_pending_write(delays_ms: list[int | None]) -> None:
    found = measured(delays_ms)
    shown = sorted(delay for delay in delays_ms if delay is not None)
    assert (found.expected, found.delivered) == (len(delays_ms), len(shown))
    slack_ms = POLL_MS * (TIMEOUT_MS // GAP_MS + 1)  # pending writes are looked for in turn
    if shown:
        assert shown[-1] * MS * 0.99 <= found.latency.maximum <= (shown[-1] + slack_ms) * MS * 1.01
        assert found.latency.mean <= (np.mean(shown) + slack_ms) * MS * 1.01


@pytest.mark.parametrize("other", [{"run": "another run"}, {"boot": "another machine"}])
def test_stamps_of_another_run_or_another_clock_do_not_count(other: dict[str, str]) -> None:
    assert measured([0, 0], **other).delivered == 0


def test_a_key_is_not_written_again_while_it_is_looked_for() -> None:
    writer = StampWriter(None, b"k", STAMPS, 0, HeaderWriter("run", "boot", 0), DeliveryRecord())
    pending = [writer.key(write) for write in range(1, 1 + TIMEOUT_MS // GAP_MS)]
    assert len(set(pending)) == len(pending)
    assert {len(writer.key(write)) for write in range(1000)} == {len(pending[0])}

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest

from agent.worker.pipe import AgentGone, Pipe
from common.errors import ProtocolError
from common.protocol.codec import decode_from_worker, pack
from common.protocol.messages import Failed, FailureKind, WorkerRenew, WorkerStart, WorkerStop
from tests.support.runs import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


class Ends:
    """Both ends of a pipe; the clock of the lease moves only when the test sets it."""

    def __init__(self) -> None:
        self.now_ns = 100
        self.agent, self._theirs = multiprocessing.Pipe(duplex=True)
        self.worker = Pipe(self._theirs, lambda: self.now_ns)

    def says(self, order: Any) -> None:
        self.agent.send_bytes(pack(order))

    def close(self) -> None:
        self.agent.close()
        self.worker.close()
        self._theirs.close()


@pytest.fixture
def ends(_leak_check_first: None) -> Iterator[Ends]:
    pair = Ends()
    yield pair
    pair.close()


def test_without_a_renewal_there_is_no_lease(ends: Ends) -> None:
    assert ends.worker.lease_is_over


def test_a_lease_ends_at_the_time_in_the_last_renewal_however_late_it_is_read(ends: Ends) -> None:
    ends.says(WorkerRenew(until_ns=150))
    ends.says(WorkerRenew(until_ns=140))
    ends.now_ns = 149
    assert ends.worker.receive(0) is None
    assert not ends.worker.lease_is_over
    ends.now_ns = 150
    assert ends.worker.lease_is_over


def test_renewals_before_an_order_are_read_with_it(ends: Ends) -> None:
    ends.says(WorkerRenew(until_ns=120))
    ends.says(WorkerRenew(until_ns=130))
    ends.says(WorkerStart(t0_ns=7))
    ends.says(WorkerRenew(until_ns=140))
    assert ends.worker.receive(None) == WorkerStart(t0_ns=7)
    ends.now_ns = 135
    assert ends.worker.lease_is_over
    assert ends.worker.receive(0) is None
    assert not ends.worker.lease_is_over


def test_a_malformed_order_is_refused(ends: Ends) -> None:
    ends.agent.send_bytes(b"x")
    with pytest.raises(ProtocolError):
        ends.worker.receive(0)


def failed(size: int) -> Failed:
    return Failed(kind=FailureKind.AGENT, reason="x" * size)


def test_sending_does_not_wait_for_an_agent_that_does_not_read(ends: Ends) -> None:
    messages = [failed(8 << 20), failed(1)]
    for message in messages:
        ends.worker.send(message)
    assert not ends.worker.is_clear
    assert ends.worker.receive(0) is None
    assert [decode_from_worker(ends.agent.recv_bytes()) for _ in messages] == messages
    wait_until(lambda: ends.worker.is_clear, "the agent has read everything")


def test_closing_waits_until_the_agent_has_read_everything(ends: Ends) -> None:
    ends.worker.send(failed(1))
    ends.worker.close()
    ends.worker.close()
    assert decode_from_worker(ends.agent.recv_bytes()) == failed(1)


def test_a_closed_agent_is_noticed_by_sending_and_by_receiving(ends: Ends) -> None:
    ends.worker.send(failed(8 << 20))
    ends.agent.close()
    with pytest.raises(AgentGone):
        ends.worker.receive(5.0)

    def is_refused() -> bool:
        try:
            ends.worker.send(failed(1))
        except AgentGone:
            return True
        return False

    wait_until(is_refused, "sending fails")


def test_an_order_is_read_behind_many_renewals(ends: Ends) -> None:
    for until_ns in range(50):
        ends.says(WorkerRenew(until_ns=until_ns))
    ends.says(WorkerStop(drain=True))
    assert ends.worker.receive(0.05) == WorkerStop(drain=True)

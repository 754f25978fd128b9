from __future__ import annotations

import typing

import msgspec
import pytest

from common.protocol import messages
from common.protocol.messages import (
    AgentMessage,
    Assignment,
    Attach,
    CoordinatorMessage,
    Message,
    PoolShare,
    Proof,
    WorkerMessage,
    WorkerOrder,
    incarnation_of,
)
from tests.support.protocol import (
    fleet_plan,
    hello,
)

ALL = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]
KINDS = [kind for kind in ALL if kind is not Proof]


def test_every_message_has_a_sender() -> None:
    spoken = {
        kind
        for union in (AgentMessage, CoordinatorMessage, WorkerMessage, WorkerOrder)
        for kind in typing.get_args(union)
    }
    assert spoken == {kind for kind in KINDS if kind is not Message}


def test_no_message_of_a_coordinator_could_be_an_agents() -> None:
    assert not {*typing.get_args(AgentMessage)} & {*typing.get_args(CoordinatorMessage)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_is_frozen_tagged_with_its_name_and_takes_no_field_that_it_does_not_know(kind: type) -> None:
    config = kind.__struct_config__  # type: ignore[attr-defined]
    assert config.frozen
    assert config.forbid_unknown_fields
    assert config.tag == kind.__name__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_has_a_docstring(kind: type) -> None:
    assert kind.__doc__


@pytest.mark.parametrize("message", [hello(secret="hunter2"), Attach(secret="hunter2")])
def test_the_proof_of_an_incarnation_hides_its_secret(message: Proof) -> None:
    assert "hunter2" not in repr(message)
    assert message.proves(incarnation_of("hunter2"))
    assert not message.proves(incarnation_of("hunter3"))
    assert not message.proves("hunter2")


def test_an_assignment_hides_its_secret() -> None:
    plan = fleet_plan()
    plan = msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, password="hunter2"))
    share = Assignment(plan=plan, pools=(PoolShare(group=0, number=3, first_thread=0),), threads_total=9)
    assert repr(share) == "Assignment(pools=[3], threads_total=9)"

from __future__ import annotations

import msgspec
import pytest

from common.plan.planned_commands import planned_commands, subscribes
from common.plan.schema import Command, Expiry, Then, Workload
from common.units import Seconds


def labels(*commands: Command, **settings: object) -> list[str]:
    return [planned.label for planned in planned_commands(Workload(commands=commands, **settings))]  # type: ignore[arg-type]


def test_commands_of_one_template_share_a_label_unless_they_are_named() -> None:
    plain, own_keys = Command(command="GET"), Command(command="GET __key__", key_prefix="other:")
    assert labels(plain, own_keys) == ["GET", "GET"]
    assert labels(plain, msgspec.structs.replace(own_keys, name="others")) == ["GET", "others"]


def test_commands_that_follow_a_reply_are_labelled_with_the_others() -> None:
    fill = Then(command="SET __key__ __data__ EX __ttl__")
    expiry = Expiry(minimum_s=Seconds(1), maximum_s=Seconds(1))
    found = labels(Command(command="GET", then=(fill,)), Command(command="SET __key__ x"), expiry=expiry)
    assert found == ["GET", "SET __data__ EX __ttl__", "SET x"]
    named = msgspec.structs.replace(fill, name="fill")
    assert labels(Command(command="GET", then=(named,)), Command(command="SET __key__ x"), expiry=expiry) == [
        "GET",
        "fill",
        "SET",
    ]


@pytest.mark.parametrize(
    ("command", "weight", "has_subscribers"),
    [
        ("SUBSCRIBE", 1.0, True),
        ("ssubscribe __key__", 0.5, True),
        ("SUBSCRIBE", 0.0, False),
        ("PUBLISH", 1.0, False),
        ("ECHO SUBSCRIBE", 1.0, False),
    ],
)
def test_a_mix_has_subscribers_if_one_has_a_weight(command: str, weight: float, has_subscribers: bool) -> None:
    commands = (Command(command="GET"), Command(command=command, weight=weight))
    assert subscribes(Workload(commands=commands)) is has_subscribers

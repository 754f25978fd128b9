from __future__ import annotations

import pytest

from common.plan.planned_commands import subscribes
from common.plan.schema import Command, Workload


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

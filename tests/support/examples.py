"""How many examples properties and state machines try."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MORE = os.environ.get("FLEET_SIMULATIONS")
"""Try this many examples, new ones each time. Without it, always the same few."""

_FEW = settings.default is not None and settings.default.max_examples < 100


def examples(count: int) -> int:
    """The number of examples for `max_examples`: a fifth of `count` in the profile "few"."""
    return max(1, count // 5) if _FEW else count


def tried(count: int, steps: int = 50) -> settings:
    """Settings with `count` examples, or a fifth in the profile "few". steps: rules per example of a state machine."""
    return settings(
        max_examples=int(MORE or examples(count)),
        stateful_step_count=steps,
        derandomize=MORE is None,
        suppress_health_check=[HealthCheck.too_slow],
    )

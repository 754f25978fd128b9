"""How many examples the simulated fleets and the state machines try."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MORE = os.environ.get("FLEET_SIMULATIONS")
"""This many examples, and new ones each time; without it, always the same few."""


_FEW = settings.default is not None and settings.default.max_examples < 100


def tried(examples: int, steps: int = 50) -> settings:
    """examples: how many the suite tries; a fifth of them in the profile "few". steps: rules that a state machine
    follows in each."""
    return settings(
        max_examples=int(MORE or (max(1, examples // 5) if _FEW else examples)),
        stateful_step_count=steps,
        derandomize=MORE is None,
        suppress_health_check=[HealthCheck.too_slow],
    )

"""Loads of several legs."""

from __future__ import annotations

from hypothesis import strategies as st

from common.plan.schema import Arrivals, Load, Ramp, Stage
from common.units import PerSecond, Seconds


def stage(seconds: float, rate_per_s: float | None = None, ramp: Ramp = Ramp.STEP, name: str | None = None) -> Stage:
    return Stage(
        name=name,
        duration_s=Seconds(seconds),
        rate_per_s=None if rate_per_s is None else PerSecond(rate_per_s),
        ramp=ramp,
    )


@st.composite
def loads(draw: st.DrawFn, open_only: bool = False) -> Load:
    """A load of one to five stages of up to two seconds, with or without a warmup."""
    stages = []
    for _ in range(draw(st.integers(1, 5))):
        rates = st.floats(1.0, 2000.0)
        rate_per_s = draw(rates if open_only else st.none() | rates)
        ramp = Ramp.STEP if rate_per_s is None else draw(st.sampled_from(Ramp))
        stages.append(stage(draw(st.integers(1, 2000)) / 1000, rate_per_s, ramp))
    warmup_s = Seconds(draw(st.integers(0, 1500)) / 1000)
    return Load(stages=tuple(stages), warmup_s=warmup_s, arrivals=draw(st.sampled_from(Arrivals)))

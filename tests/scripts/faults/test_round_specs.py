from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.plan.loading.sources import load_plan
from scripts.faults.round_specs import NETWORK_FAULTS, FaultKind, draw_round


def test_a_seed_draws_the_same_rounds_each_time() -> None:
    assert [draw_round(3, number) for number in range(50)] == [draw_round(3, number) for number in range(50)]
    assert draw_round(3, 0) != draw_round(4, 0)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_coordinator_accepts_each_drawn_plan(seed: int, tmp_path: Path) -> None:
    for number in range(25):
        spec = draw_round(seed, number)
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(spec.plan | {"target": {"url": "redis://127.0.0.1"}}))
        plan = load_plan(tmp_path / "plan.yaml", {}, {})
        assert plan.fleet.expect_agents <= len(spec.agents)
        assert spec.fence_s > float(plan.fleet.lease_s) + float(plan.fleet.drain_s)


def test_each_kind_of_fault_is_drawn_only_where_it_is_possible() -> None:
    specs = [draw_round(5, number) for number in range(300)]
    assert {kind for spec in specs for kind in spec.kinds} == set(FaultKind)
    assert not any(spec.kinds & NETWORK_FAULTS for spec in specs if not spec.agents)
    assert any(not spec.faults for spec in specs)
    assert all(not draw_round(5, number, quiet=True).faults for number in range(20))

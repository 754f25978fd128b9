from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.plan.loading.sources import load_plan
from scripts.faults.draws import NETWORK, Kind, draw


def test_a_seed_draws_the_same_rounds_each_time() -> None:
    assert [draw(3, number) for number in range(50)] == [draw(3, number) for number in range(50)]
    assert draw(3, 0) != draw(4, 0)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_plan_is_one_that_a_coordinator_takes(seed: int, tmp_path: Path) -> None:
    for number in range(25):
        drawn = draw(seed, number)
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(drawn.plan | {"target": {"url": "redis://127.0.0.1"}}))
        plan = load_plan(tmp_path / "plan.yaml", {}, {})
        assert plan.fleet.expect_agents <= len(drawn.agents)
        assert drawn.patience_s > float(plan.fleet.lease_s) + float(plan.fleet.drain_s)


def test_each_kind_of_fault_is_drawn_and_only_where_it_can_come_to_pass() -> None:
    drawn = [draw(5, number) for number in range(300)]
    assert {kind for one in drawn for kind in one.kinds} == set(Kind)
    assert not any(one.kinds & NETWORK for one in drawn if not one.agents)
    assert any(not one.faults for one in drawn)
    assert all(not draw(5, number, quiet=True).faults for number in range(20))

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults import round_runner
from scripts.faults.__main__ import main
from scripts.faults.round_specs import AgentSpec, RoundSpec

SHORT = RoundSpec(
    seed=1,
    number=0,
    plan={
        "pools": [{"client_pools": 2, "max_connections": 2}],
        "workload": {
            "commands": [{"command": "SET"}, {"command": "INCR", "key_prefix": "soak:n:"}],
            "keys": {"prefix": "soak:k:", "maximum": 50},
            "clean_up": "none",
        },
        "load": {"requests": 60},
        "fleet": {"expect_agents": 1, "local_agents": 0, "lease": "3s", "drain": "1s"},
    },
    length_s=1.0,
    agents=(AgentSpec(processes=1, once=True, late_s=0.0, terminal=True),),
    terminal=True,
    faults=(),
    serves_next_run=False,
)


@pytest.fixture
def _one_short_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.faults.__main__.draw_round", lambda *_, **__: SHORT)
    monkeypatch.setattr("scripts.faults.round_runner.WATCH_S", 0.1)


@pytest.mark.usefixtures("no_leaks", "_one_short_round")
def test_a_round_without_faults_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--rounds", "1", "--seed", "1", "--logs", str(tmp_path)])
    output = capsys.readouterr().out
    assert code == 0, output
    assert output.splitlines()[0] == "seed 1"
    assert "1 rounds, 60 operations, all accounted for" in output


@pytest.mark.usefixtures("no_leaks", "_one_short_round")
def test_a_server_that_counts_one_more_operation_fails_the_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = round_runner.server_counts.server_calls
    monkeypatch.setattr(round_runner.server_counts, "server_calls", lambda client: count(client) | {"del": 1})
    code = main(["--rounds", "5", "--seed", "1", "--logs", str(tmp_path)])
    output = capsys.readouterr().out
    assert code == 1, output
    assert "the server counts 61 operations, the report has 60: 1 unaccounted for" in output
    assert "again: scripts/soak --seed 1 --first 0 --rounds 1" in output
    assert "round 1:" not in output

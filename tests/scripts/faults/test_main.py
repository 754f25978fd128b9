from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults import play
from scripts.faults.__main__ import main
from scripts.faults.draws import AgentDraw, Draw

SHORT = Draw(
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
    agents=(AgentDraw(processes=1, once=True, late_s=0.0, terminal=True),),
    terminal=True,
    faults=(),
    reuses=False,
)


@pytest.fixture
def _one_short_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.faults.__main__.draw", lambda *_, **__: SHORT)
    monkeypatch.setattr("scripts.faults.play.WATCH_S", 0.1)


@pytest.mark.usefixtures("no_leaks", "_one_short_round")
def test_a_round_without_faults_keeps_the_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--rounds", "1", "--seed", "1", "--logs", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.splitlines()[0] == "seed 1"
    assert "1 rounds, 60 operations, all accounted for" in said


@pytest.mark.usefixtures("no_leaks", "_one_short_round")
def test_a_server_that_says_one_operation_more_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = play.counts.server_calls
    monkeypatch.setattr(play.counts, "server_calls", lambda client: count(client) | {"del": 1})
    code = main(["--rounds", "5", "--seed", "1", "--logs", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 1, said
    assert "the server did 61 operations, the report accounts for 60: 1 unaccounted for" in said
    assert "again: scripts/soak --seed 1 --first 0 --rounds 1" in said
    assert "round 1:" not in said

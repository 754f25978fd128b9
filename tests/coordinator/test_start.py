from __future__ import annotations

import signal
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import EXIT_OK, InvalidResultError
from common.signals import Signals
from coordinator import start
from coordinator.options import StartOptions
from coordinator.place import Place, new_place
from coordinator.records import AnyRecord, Outcome
from coordinator.report.files import SUMMARY_FILE
from coordinator.start import Ended, conduct
from coordinator.steps import End
from tests.support.records import clean_run, closed, opened, plan

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def conducted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, records: list[AnyRecord], taken: int = 0, left: int = 0
) -> Ended:
    """A run that brings these records. taken: signals that it noticed. left: those that came when it was over."""

    def serve(_plan: object, _options: object, place: Place, *rest: object) -> End:
        signals = rest[-1]
        assert isinstance(signals, Signals)
        for _ in range(taken):
            signal.raise_signal(signal.SIGINT)
        assert signals.take() == taken
        for record in records:
            place.aggregate.apply(record)
        place.folder.mkdir()
        for number in range(left):
            signal.raise_signal(HANDLED[number % len(HANDLED)])
        return End(EXIT_OK, "", Outcome.COMPLETED)

    for name in ("probe", "refuse_misfits"):
        monkeypatch.setattr(start, name, lambda _: None)
    monkeypatch.setattr(start, "_serve", serve)
    before = [signal.getsignal(number) for number in HANDLED]
    ended = conduct(plan(), StartOptions(), new_place(tmp_path, "r-1"), Console(stderr=True))
    assert [signal.getsignal(number) for number in HANDLED] == before
    return ended


@pytest.mark.parametrize(("taken", "left"), [(0, 0), (1, 0), (0, 1), (1, 3)])
def test_whoever_wants_an_end_while_a_run_is_taken_apart_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: int, left: int
) -> None:
    ended = conducted(monkeypatch, tmp_path, records=list(clean_run()), taken=taken, left=left)
    assert (ended.exit_code, ended.told_to_end) == (EXIT_OK, left > 0)
    assert ended.summary is not None
    assert (tmp_path / "r-1" / SUMMARY_FILE).read_text() == ended.summary.to_json()


def test_a_run_whose_result_is_invalid_ends_with_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = conducted(monkeypatch, tmp_path, records=[opened(), closed()])
    assert ended.exit_code == InvalidResultError.exit_code

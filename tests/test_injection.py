"""Text from peers and servers is harmless on a terminal: no escape codes, no markup, no line breaks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

from common.protocol import codec
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.records import (
    AgentEnded,
    AnyRecord,
    CountersRead,
    FrameAccepted,
    RunClosed,
    RunOpened,
    WorkerDied,
)
from coordinator.live.snapshot import LiveAgent, build_snapshot
from coordinator.live.view import LiveView, PlainView, QuietView, TerminalView
from coordinator.report.printing import say
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from coordinator.report.timeseries import timeseries_csv
from tests.support.records import accepted, clean_run, command, histogram, interval

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\r\nFAIL  forged [red]x[/] [link=http://evil]y[/link]\x7f"
SHOWN = r"\x1b[2J\x1b]0;title\x07\x9b31m\u202e\r\nFAIL  forged [red]x[/] [link=http://evil]y[/link]\x7f"


def evil_run() -> Aggregate:
    """A run with this text at every place that a peer or a server can fill."""
    records: list[AnyRecord] = []
    for record in clean_run():
        match record:
            case RunOpened():
                agents = tuple(msgspec.structs.replace(agent, host=EVIL) for agent in record.agents)
                agents = (msgspec.structs.replace(agents[0], agent_id=EVIL), *agents[1:])
                target = msgspec.structs.replace(record.target, server=EVIL, topology=EVIL, url=EVIL)
                record = msgspec.structs.replace(record, agents=agents, target=target, started_at=EVIL, run_id=EVIL)
                worker = WorkerDied(agent_id=EVIL, process=0, exit_code=1, reason=EVIL)
            case FrameAccepted(agent_id="a1") | AgentEnded(agent_id="a1"):
                record = msgspec.structs.replace(record, agent_id=EVIL)
            case CountersRead():
                record = msgspec.structs.replace(record, error=EVIL)
            case RunClosed():
                one = command(histogram(1000), errors={EVIL: 3}, failures={EVIL: 4})
                causes = {EVIL: 9}
                part = interval(2, {"GET": one}, failed_by_cause=causes, never_opened=causes, redirects=causes)
                records += [worker, accepted("a2", 9, part)]
                record = msgspec.structs.replace(record, reason=EVIL)
        if isinstance(record, AgentEnded):
            assert record.final is not None
            final = msgspec.structs.replace(record.final, reason=EVIL)
            record = msgspec.structs.replace(record, reason=EVIL, final=final)
        records.append(record)
    return fold(codec.unpack(codec.pack(record), type(record)) for record in records)


def drawn(draw: Callable[[Console], object], width: int = 200) -> list[str]:
    file = io.StringIO()
    draw(Console(file=file, width=width, color_system=None, legacy_windows=False))
    return file.getvalue().split("\n")


def assert_harmless(lines: list[str]) -> None:
    for line in lines:
        assert line.isprintable()
        assert not line.lstrip().startswith("FAIL")


@pytest.mark.parametrize("width", [40, 80, 200, 1000])
def test_a_report_escapes_hostile_text(width: int) -> None:
    summary = build_summary(evil_run())
    lines = drawn(lambda console: print_summary(console, summary), width)
    assert_harmless([line for line in lines if width >= 200 or not line.lstrip().startswith("FAIL")])
    assert width < 1000 or sum(SHOWN in line for line in lines) >= 6


def test_files_escape_hostile_text_and_json_keeps_its_meaning() -> None:
    run = evil_run()
    text = build_summary(run).to_json()
    assert_harmless(text.split("\n"))
    assert json.loads(text)["target"]["server"] == EVIL
    rows = timeseries_csv(run)
    assert_harmless(rows.split("\n"))
    assert len({len(row) for row in csv.reader(io.StringIO(rows))}) == 1


@pytest.mark.parametrize("view", [QuietView, PlainView, TerminalView])
def test_a_live_view_escapes_hostile_text(view: type[LiveView]) -> None:
    def draw(console: Console) -> None:
        run = evil_run()
        run.closed = None
        agents = [
            LiveAgent(EVIL, EVIL, EVIL, 50.0, 0.5, 12.0),
            LiveAgent(EVIL, EVIL, EVIL, 50.0, 9.5, None, alive=False),
        ]
        with view(console) as shown:
            shown.note(EVIL, trouble=True)
            shown.phase(EVIL, 1, 2)
            shown.phase(EVIL)
            shown.update(build_snapshot(run, agents, 2.0))

    lines = drawn(draw)
    assert_harmless(lines)
    assert any(SHOWN in line for line in lines)


def test_a_printed_line_escapes_hostile_text() -> None:
    assert drawn(lambda console: say(console, EVIL))[0].startswith(SHOWN.partition(r"\n")[0])
    assert_harmless(drawn(lambda console: say(console, EVIL.replace("\n", ""))))

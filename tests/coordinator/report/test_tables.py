from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from common.metrics.intervals import CommandMetrics
from common.plan.schema import Driver, Plan, Pools, Ramp
from coordinator.analysis.totals.aggregate import fold
from coordinator.compare.comparison_text import print_comparison
from coordinator.compare.differences import build_comparison
from coordinator.journal.records import AnyRecord, Outcome
from coordinator.live.screen import Screen
from coordinator.live.snapshot import LiveAgent, LiveSnapshot, build_snapshot
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from coordinator.report.tables import Bar, FittedTable, TableColumn, print_parts
from tests.support.comparisons import conducted, head, latencies
from tests.support.records import (
    accepted,
    closed,
    command,
    histogram,
    interval,
    noted,
    opened,
    plan,
    staged_plan,
    watched,
)
from tests.support.stages import stage

COLUMNS = (
    TableColumn("Type", fold=8),
    TableColumn("Ops/s", 1),
    TableColumn("p50", 3),
    TableColumn("p90", 4),
    TableColumn("p99", 2),
    TableColumn("Errors"),
)


def drawn(table: FittedTable, width: int, encoding: str = "utf-8") -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_parts(Console(file=out, width=width, force_terminal=False), table)
    out.seek(0)
    return out.read().splitlines()


def table(
    *rows: tuple[str, ...], columns: tuple[TableColumn, ...] = COLUMNS, elsewhere: str = "summary.json"
) -> FittedTable:
    made = FittedTable("Times (ms)", columns, elsewhere=elsewhere)
    for row in rows:
        made.add_row(*row)
    return made


ROW = ("GET", "1,234,567", "0.123", "0.456", "7.890", "0")


def test_a_wide_screen_shows_all_columns() -> None:
    lines = drawn(table(ROW), 80)
    assert lines[0] == "Times (ms)"
    assert lines[1].split() == ["Type", "Ops/s", "p50", "p90", "p99", "Errors"]
    assert set(lines[2]) == {"─"}
    assert lines[3:] == ["GET   1,234,567  0.123  0.456  7.890       0"]


def test_a_narrow_screen_leaves_out_columns_by_priority_and_names_them() -> None:
    headings = {width: drawn(table(ROW), width)[1].split() for width in (44, 39, 33, 27, 21, 10)}
    assert headings == {
        44: ["Type", "Ops/s", "p50", "p90", "p99", "Errors"],
        39: ["Type", "Ops/s", "p50", "p90", "p99", "Errors"],  # closer to each other
        33: ["Type", "Ops/s", "p50", "p99", "Errors"],
        27: ["Type", "Ops/s", "p99", "Errors"],
        21: ["Type", "Ops/s", "Errors"],
        10: ["Type", "Errors"],
    }
    caption = " ".join(drawn(table(ROW), 27)[4:])
    assert caption == "left out at 27 columns: p50, p90; see summary.json or a wider terminal"
    assert " ".join(drawn(table(ROW, elsewhere=""), 27)[4:]) == "left out at 27 columns: p50, p90; see a wider terminal"


def test_a_long_name_is_wrapped_before_a_column_is_left_out() -> None:
    lines = drawn(table(("ZRANGEBYSCORE-名前", *ROW[1:])), 46)
    assert lines[1].split() == ["Type", "Ops/s", "p50", "p90", "p99", "Errors"]
    assert (lines[3].split()[0], lines[4]) == ("ZRANGEBYSCO", "RE-名前")


def test_required_columns_are_whole_even_if_they_do_not_fit() -> None:
    lines = drawn(table(("GET", "1", "2", "3", "4", "123,456,789,012")), 12)
    assert lines[3].split() == ["GET", "123,456,789,012"]


def test_bars_use_the_remaining_width_and_are_left_out_without_a_note() -> None:
    bars = FittedTable("", (TableColumn("up to ms"), TableColumn("", 1, bars=True)), rule=False)
    bars.add_row("0.5", Bar(1.0))
    bars.add_row("12", Bar(0.01))
    assert [line.count("█") for line in drawn(bars, 80)[1:]] == [40, 1]
    assert [line.count("█") for line in drawn(bars, 20)[1:]] == [10, 1]
    assert drawn(bars, 12) == ["up to ms", "     0.5", "      12"]
    assert drawn(bars, 80, encoding="ascii")[1].count("#") == 40


def test_styles_and_sections_are_kept() -> None:
    made = table(ROW)
    made.end_section()
    made.add_row(*ROW[:-1], Text("9", style="red"), style="bold")
    out = io.StringIO()
    print_parts(Console(file=out, width=80, force_terminal=True, color_system="standard", _environ={}), made)
    assert "\x1b[1;31m" in out.getvalue()
    assert [line for line in re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines() if not line] == [""]


NUMBERS = st.integers(0, 10**15).map("{:,}".format) | st.floats(0, 1e6).map("{:,.3f}".format) | st.just("-")
NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=30)


@given(
    st.lists(st.tuples(NAMES, *[NUMBERS] * 5), min_size=1, max_size=6),
    st.integers(30, 130),
)
def test_a_number_is_whole_or_its_column_is_absent(rows: list[tuple[str, ...]], width: int) -> None:
    made = table(*rows)
    lines = drawn(made, width)
    headings = lines[1].split()
    kept = [number for number, column in enumerate(COLUMNS) if column.heading in headings]
    assert {0, 5} <= set(kept)
    assert len(headings) == len(kept)
    assert max(map(cell_len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    body = [cell for line in lines[3:] for cell in line.split()]
    for row in rows:
        for number in kept[1:]:
            assert row[number] in body


def test_print_parts_cuts_no_text_and_leaves_no_trailing_blanks() -> None:
    out = io.StringIO()
    parts: list[str | Text] = ["a  ", "", Text("x" * 30), Text("b \nc")]
    print_parts(Console(file=out, width=20), *parts)
    lines = out.getvalue().splitlines()
    assert "".join(lines) == "a" + "x" * 30 + "bc"
    assert all(line == line.rstrip() for line in lines)


# -- the tables of this program

NAMES_OF_COMMANDS = (
    "GET",
    "ZRANGEBYSCORE",
    "FT.AGGREGATE-with-a-very-long-name",
    "ПОЛУЧИТЬ",
    "名前を取得する",
    *(f"C{n}" for n in range(30)),
)


def awkward_run() -> list[AnyRecord]:
    """Many commands, long and non-ASCII names, times up to hours, and counts up to thousands of billions."""
    shapes = [stage(12_345.6, 1_234_567), stage(100, 1_239_000, Ramp.LINEAR, name="a-name-of-many-letters-名前")]
    the_plan = msgspec.structs.replace(
        staged_plan(*shapes, warmup_s=2.5), pools=(Pools(name="main"), Pools(name="a-pool-with-a-long-name"))
    )
    slow = histogram(*[3_600_000_000_000, 1_500, 98_765_432_100] * 100)
    many = {
        name: CommandMetrics(
            ok=10**12 + number, errors={"READONLY": 987_654_321_098}, bytes_in=10**15, service=slow, response=slow
        )
        for number, name in enumerate(NAMES_OF_COMMANDS)
    }
    parts = []
    for number in range(3):
        one = interval(number, many, stage=number)
        pools = one.pools | {"a-pool-with-a-long-name": one.pools["main"]}
        parts.append(msgspec.structs.replace(one, pools=pools))
    agents = ["a1", "load-generator-seven.eu-central.example", *(f"agent-{number}" for number in range(12))]
    notes = [noted(name, 123_456_789_012, lost=name == "agent-9", cpu_percent_max=12_799.9) for name in agents]
    return watched(
        [opened(the_plan, agents), accepted("a1", 0, *parts), *notes, closed(Outcome.DEGRADED, duration_s=13_000.0)],
        {"a1": 1.0},
        loop=0.99,
        turns_ns=[3 * 10**12],
        late_ns=[9 * 10**12],
    )


AWKWARD_SUMMARY = build_summary(fold(awkward_run()))
AWKWARD_COMPARISON = build_comparison(
    head(),
    [
        conducted(number, driver, ops_per_s=scale * 77, cpu_us=scale * number, service=latencies(*times))
        for number, scale in ((1, 1e6), (2, 1e3), (3, 1e-3))
        for driver, times in (
            (Driver.CLIENT, (62.61 * scale, 123.4 * scale, 999.4 * scale)),
            (Driver.WIRE, (91.23, 223.4, 1999.4 * scale)),
        )
    ],
    Outcome.COMPLETED,
    "",
)


def live(the_plan: Plan) -> LiveSnapshot:
    """Twelve seconds with billions of operations that take hours, and agents with long names."""
    slow = histogram(*[3_600_000_000_000, 1_500, 98_765_432_100] * 100)
    huge = command(slow, response=slow, ok=12_345_678_901, errors={"READONLY": 987_654_321})
    parts = [interval(second, {"GET": huge}, issued=10**10) for second in range(12)]
    agents = [
        LiveAgent(
            name, "load-generator-seven.eu-central.example", "preparing", 12_799.9, 1234.5, -9_876_543.2, alive=alive
        )
        for name, alive in (
            ("a1", False),
            ("名前を取得する-名前を取得する", True),
            *((f"agent-{n}", True) for n in range(9)),
        )
    ]
    records = watched([opened(the_plan, ["a1"]), accepted("a1", 0, *parts)], {"a1": 12.34})
    return build_snapshot(fold(records), agents, 12.3)


OPEN = live(plan(rate_per_s=1_234_567_890.0, duration_s=86_400.0))
CLOSED = live(plan(duration_s=86_400.0))
SCREENS = {
    "live open": lambda console: print_parts(console, Screen(OPEN)),
    "live closed": lambda console: print_parts(console, Screen(CLOSED)),
    "report": lambda console: print_summary(console, AWKWARD_SUMMARY),
    "comparison": lambda console: print_comparison(console, AWKWARD_COMPARISON),
}


def screen(draw: Callable[[Console], None], width: int) -> list[str]:
    out = io.StringIO()
    draw(Console(file=out, width=width, height=50, _environ={}))
    return out.getvalue().splitlines()


@cache
def wide_screen(name: str) -> list[str]:
    return screen(SCREENS[name], 1000)


def numbers(lines: list[str]) -> set[str]:
    """All words that begin with a digit."""
    return {word for line in lines for word in re.findall(r"(?<![\w.,-])-?\d[\w.,%/]*", line)}


@pytest.mark.parametrize("width", [60, 72, 80, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_every_screen_fits_and_no_number_is_cut(name: str, width: int) -> None:
    lines, whole = screen(SCREENS[name], width), wide_screen(name)
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    assert [line for line in lines if line != line.rstrip()] == []
    # The caption adds the width, which the wide screen does not print.
    assert numbers(lines) - numbers(whole) <= {str(width)}
    for heading in ("Type", "Errors", "sec", "errors", "agent", "state"):
        assert sum(heading in line.split() for line in lines) == sum(heading in line.split() for line in whole)
    absent = {
        heading
        for line in whole
        for heading in line.split()
        if heading in {"p50", "p90", "p99", "p99.9", "max", "KiB/s", "Ops/s", "wire", "client", "backlog", "wanted/s"}
    } - {heading for line in lines for heading in line.split()}
    caption = " ".join(lines)
    assert all(f" {heading}" in caption for heading in absent)


@pytest.mark.parametrize("name", SCREENS)
def test_at_any_width_the_shown_numbers_are_whole(name: str) -> None:
    whole = numbers(wide_screen(name))
    for width in range(67, 200, 33):
        assert numbers(screen(SCREENS[name], width)) - whole <= {str(width)}

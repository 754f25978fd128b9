from __future__ import annotations

import io
import re
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from common.plan.schema import Load
from common.units import Count
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import NodeDescribed, NodeSilent, RunClosed, RunOpened
from coordinator.live.snapshot import LiveAgent, LiveSnapshot, build_snapshot
from coordinator.live.view import LiveView, PlainView, QuietView, TerminalView, open_live
from tests.support.records import (
    accepted,
    clean_run,
    closed,
    command,
    histogram,
    interval,
    looking_up,
    noted,
    opened,
    plan,
    staged_plan,
    watched,
)
from tests.support.scenarios import two
from tests.support.server_records import with_servers
from tests.support.stages import stage

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def snapshot(seconds: int = 3) -> LiveSnapshot:
    agents = [
        LiveAgent("a1", "localhost", "running", 93.0, 0.4, 12.5),
        LiveAgent("a2", "localhost", "lost", 0.0, 6.4, None, alive=False),
    ]
    return build_snapshot(fold(clean_run(seconds=seconds)), agents, float(seconds))


def terminal(width: int = 80, height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"})


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_view_follows_from_the_terminal() -> None:
    assert isinstance(open_live(pipe(), quiet=False), PlainView)
    assert isinstance(open_live(pipe(), quiet=True), QuietView)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(open_live(dumb, quiet=False), PlainView)
    with open_live(terminal(), quiet=False) as view:
        assert isinstance(view, TerminalView)


def test_the_log_has_one_line_per_second() -> None:
    console = pipe()
    with open_live(console, quiet=False) as view:
        view.update(snapshot(1))
        view.update(snapshot(1))
        view.update(snapshot(3))
    lines = written(console).splitlines()
    assert [line.split(":")[0] for line in lines] == ["second 0", "second 1", "second 2"]
    assert "2,000 ops/s, service p50 0.1" in lines[0]
    assert lines[0].endswith("0 errors, 4 connections, 1/2 agents")
    assert "\x1b" not in written(console)


def test_the_log_corrects_seconds_with_late_results() -> None:
    console, get = pipe(), {"GET": command(histogram(1000, 2000))}
    cut_off = [
        opened(),
        *(accepted("a1", second, interval(second, get)) for second in range(2)),
        noted("a2", 0, lost=True),
    ]
    back = accepted("a2", 0, interval(0, get), interval(1, {}))
    with open_live(console, quiet=False) as view:
        view.update(build_snapshot(fold(cut_off), [], 2.0))
        view.update(build_snapshot(fold([*cut_off, back]), [], 2.0))
        view.update(build_snapshot(fold([*cut_off, back]), [], 2.0))
    lines = [line.partition(",")[0] for line in written(console).splitlines()]
    assert lines == ["second 0: 2 ops/s", "second 1: 2 ops/s", "second 0 corrected: 4 ops/s"]


def test_replies_after_the_load_join_the_last_line_of_the_log() -> None:
    console, get = pipe(), {"GET": command(histogram(1000, 2000))}
    running = [opened(agents=["a1"]), *(accepted("a1", second, interval(second, get)) for second in range(3))]
    rest = accepted("a1", 3, interval(3, get))
    with open_live(console, quiet=False) as view:
        view.update(build_snapshot(fold(running), [], 3.1))
        assert "second 2" not in written(console)
        view.update(build_snapshot(fold([*running, rest, noted("a1", 8), closed(duration_s=3.0)]), [], 3.1))
    lines = [line.partition(",")[0] for line in written(console).splitlines()]
    assert lines == ["second 0: 2 ops/s", "second 1: 2 ops/s", "second 2: 4 ops/s"]


def test_a_partial_last_second_joins_the_line_before() -> None:
    console, get = pipe(), {"GET": command(histogram(*[1000] * 8))}
    running = [opened(agents=["a1"]), accepted("a1", 0, interval(0, get), interval(1, get))]
    running = [msgspec.structs.replace(running[0], plan=plan(duration_s=30.0)), *running[1:]]
    rest = accepted("a1", 1, interval(2, {"GET": command(histogram(1000, 2000))}))
    with open_live(console, quiet=False) as view:
        view.update(build_snapshot(fold(running), [], 2.1))
        view.update(build_snapshot(fold([*running, rest]), [], 2.3, stopped_s=2.24))
        view.update(
            build_snapshot(fold([*running, rest, noted("a1", 18), closed(duration_s=2.25)]), [], 2.4, stopped_s=2.24)
        )
    lines = [line.partition(",")[0] for line in written(console).splitlines()]
    assert lines == ["second 0: 8 ops/s", "second 1: 8 ops/s", "second 1 corrected: 8 ops/s"]


def test_the_share_of_the_busiest_process_is_shown_if_it_is_known() -> None:
    busy = build_snapshot(fold(watched(clean_run(), {"a1": 0.2, "a2": 0.93})), [], 3.0)
    lines, screen = pipe(), terminal()
    for console in (lines, screen):
        with open_live(console, quiet=False) as view:
            view.update(busy)
    assert "0 errors, 93% of a core, 4 connections" in written(lines).splitlines()[0]
    assert written(screen).count("93%") == 2 * 3  # the last screen is drawn again at the end
    assert "core" in written(screen)


def test_the_log_shows_a_phase_when_its_text_changes_and_at_most_once_per_second() -> None:
    console, clock = pipe(), Clock()
    with PlainView(console, clock) as view:
        view.phase("waiting for agents 0/2")
        view.phase("waiting for agents 1/2")
        clock.now_ns += 1_000_000_000
        view.phase("waiting for agents 1/2")
        view.phase("waiting for agents 1/2")
        view.phase("prewarming", 10, 300)
        view.phase("prewarming", 200, 300)
        view.phase("prewarming", 300, 300)
        view.phase("prewarming", 300, 300)
    assert written(console).splitlines() == [
        "waiting for agents 0/2",
        "waiting for agents 1/2",
        "prewarming 10/300",
        "prewarming 300/300",
    ]


def test_quiet_shows_only_trouble() -> None:
    console = pipe()
    with open_live(console, quiet=True) as view:
        view.phase("waiting")
        view.update(snapshot())
        view.note("agent a2 joined")
        view.note("agent a2 lost", trouble=True)
    assert written(console) == "agent a2 lost\n"


@pytest.mark.parametrize("console", [pipe(), terminal()], ids=["pipe", "terminal"])
def test_a_note_is_shown_without_markup(console: Console) -> None:
    with open_live(console, quiet=False) as view:
        view.update(snapshot())
        view.note("agent a2 lost: [bold]no heartbeat[/nonsense]")
    assert "agent a2 lost: [bold]no heartbeat[/nonsense]" in written(console)


def test_the_table_shows_seconds_agents_and_the_remaining_time() -> None:
    console = terminal()
    with open_live(console, quiet=False) as view:
        view.phase("prewarming", 120, 300)
        view.update(snapshot())
    screen = written(console)
    for expected in (
        "120/300",
        "ops/s",
        "serv p99",
        "errors",
        "2,000",
        "3s elapsed",
        "0s left",
        "a1",
        "93%",
        "6.4 s ago",
    ):
        assert expected in screen
    assert "6,000 operations, 0 errors" in screen


def test_the_screen_of_an_endless_load_has_no_bar() -> None:
    console = terminal()
    endless = replace(snapshot(), left_s=None, fraction=None, until_stopped=True)
    with TerminalView(console) as view:
        view.update(endless)
    assert "3s elapsed until stopped (Ctrl-C)" in written(console)
    assert "━" not in written(console)


def use(view: LiveView, fail: bool) -> None:
    with view:
        view.update(snapshot())
        if fail:
            raise KeyboardInterrupt


@pytest.mark.parametrize("fail", [False, True])
def test_the_cursor_is_shown_again_at_the_end(fail: bool) -> None:
    console = terminal()
    view = open_live(console, quiet=False)
    try:
        use(view, fail)
    except KeyboardInterrupt:
        assert fail
    assert HIDE_CURSOR in written(console)
    assert written(console).rindex(SHOW_CURSOR) > written(console).rindex(HIDE_CURSOR)
    view.close()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 8)])
def test_the_screen_fits_a_small_terminal(width: int, height: int) -> None:
    console = terminal(width, height)
    with open_live(console, quiet=False) as view:
        for count in range(1, 12):
            view.update(snapshot(count))
        before_end = written(console)
    last_frame = before_end.split("\x1b[2K")[-1]
    assert len(last_frame.splitlines()) <= height


def test_the_screen_shows_the_stage_and_marks_a_warmup() -> None:
    aggregate = fold([opened(staged_plan(stage(2, 1500), stage(1), warmup_s=1)), accepted("a1", 0, interval(0, {}))])
    shown = []
    for elapsed_s in (0.5, 2.0, 3.5):
        console = terminal()
        with open_live(console, quiet=False) as view:
            view.update(build_snapshot(aggregate, [], elapsed_s))
        shown.append(written(console))
    assert "warmup: 1,500/s wanted; not in the report" in shown[0]
    assert "stage 1 (2 of 3): 1,500/s wanted" in shown[1]
    assert "stage 2 (3 of 3): closed loop" in shown[2]


def test_a_line_names_the_stage_of_its_second() -> None:
    records = [opened(staged_plan(stage(2, 1500), warmup_s=1), ["a1"])]
    records += [accepted("a1", 0, interval(0, {}), interval(1, {}, stage=1))]
    console = pipe()
    with open_live(console, quiet=False) as view:
        view.update(build_snapshot(fold(records), [], 2.0))
    assert [line.split(":")[0] for line in written(console).splitlines()] == ["second 0 (warmup)", "second 1 (stage 1)"]


def behind(wanted_per_s: float = 4000.0) -> LiveSnapshot:
    agents = [LiveAgent("a1", "localhost", "running", 93.0, 0.4, 12.5)]
    return build_snapshot(fold(clean_run(plan(rate_per_s=wanted_per_s, duration_s=3.0))), agents, 3.0)


def test_a_line_of_an_open_loop_has_response_time_target_rate_and_backlog() -> None:
    console = pipe()
    with open_live(console, quiet=False) as view:
        view.update(behind())
    first, *_, last = written(console).splitlines()
    assert re.fullmatch(
        r"second 0: 2,000 of 4,000 ops/s wanted, backlog 2,000, response p50 0\.\d{3} p99 \d\.\d{3} max \d+\.\d+ ms, "
        r"service p99 0\.\d{3} ms, 0 errors, 4 connections, 1/1 agent",
        first,
    )
    assert "backlog 6,000" in last


def test_the_screen_of_an_open_loop_has_response_time_target_rate_and_backlog() -> None:
    console = terminal(120)
    with open_live(console, quiet=False) as view:
        view.update(behind())
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", written(console))
    lines = [line.split() for line in shown.splitlines()]
    assert [
        "sec",
        "wanted/s",
        "ops/s",
        "backlog",
        "resp",
        "p50",
        "resp",
        "p99",
        "resp",
        "max",
        "serv",
        "p99",
        "errors",
        "core",
    ] in lines
    [row, *_] = [line for line in lines if line[:1] == ["0"]]
    assert row[1:4] == ["4,000", "2,000", "2,000"]
    assert "Response time (ms), from the intended send" in written(console)


def test_the_screen_of_a_closed_loop_has_service_time() -> None:
    console = terminal()
    with open_live(console, quiet=False) as view:
        view.update(snapshot())
    assert "Service time (ms), from send to reply" in written(console)
    for absent in ("backlog", "wanted", "resp "):
        assert absent not in written(console)


def test_the_screen_has_a_line_with_the_servers() -> None:
    console = terminal(width=120)
    records = [record for record in with_servers(clean_run(), "a:1", "b:2") if not isinstance(record, NodeDescribed)]
    with open_live(console, quiet=False) as view:
        view.update(build_snapshot(fold(records), [], 3.5))
    assert "2 servers, 45% of a core at a:1, 6.0 MiB, 2,000 commands/s" in written(console)


def test_the_screen_counts_servers_that_are_silent() -> None:
    console = terminal(width=120)
    silence = NodeSilent(node="a:1", at_ns=10**11, reason="did not answer")
    records = [record for record in with_servers(clean_run(), "a:1") if not isinstance(record, NodeDescribed)]
    with open_live(console, quiet=False) as view:
        view.update(build_snapshot(fold([*records, silence]), [], 3.5))
    assert "1 server, 1 of them silent, 45% of a core" in written(console)


def test_a_low_terminal_shows_fewer_seconds_and_all_agents() -> None:
    shown = {}
    for height in (24, 16):
        console = terminal(80, height)
        with open_live(console, quiet=False) as view:
            view.update(snapshot(8))
            shown[height] = written(console)
    assert [sum(line.startswith(f"  {n} ") for line in shown[24].splitlines() for n in range(8))] == [8]
    assert [sum(line.startswith(f"  {n} ") for line in shown[16].splitlines() for n in range(8))] == [6]
    assert all("6.4 s ago" in text for text in shown.values())


def test_a_log_line_has_the_figures_of_each_scenario_in_this_second_and_not_in_a_later_one() -> None:
    console = pipe()
    PlainView(console).update(build_snapshot(fold(two()), [], 3.0))
    first, second = written(console).splitlines()
    assert first.endswith("reads 5/s p99 0.001 ms, writes waiting")
    assert second.endswith("reads 5/s p99 0.001 ms, writes 7/s p99 0.001 ms")


def test_a_scenario_has_ended_when_its_requests_are_done() -> None:
    run = [record for record in two() if not isinstance(record, RunClosed)]
    first = run[0]
    assert isinstance(first, RunOpened)
    reads, writes = first.plan.scenarios
    counted = msgspec.structs.replace(writes, load=Load(requests=Count(7)))
    run[0] = msgspec.structs.replace(first, plan=msgspec.structs.replace(first.plan, scenarios=(reads, counted)))
    shown = build_snapshot(fold(run), [], 1.99)
    assert [(each.name, each.state) for each in shown.scenarios] == [("reads", "running"), ("writes", "ended")]


def test_both_views_show_hit_rates_by_command() -> None:
    shown = build_snapshot(fold(looking_up(GET=(3, 1), HGET=(0, 4), SET=(0, 0))), [], 2.0)
    log, screen = pipe(), terminal()
    PlainView(log).update(shown)
    assert "hits GET 75.0%, HGET 0.0%, 0 errors" in written(log)
    with TerminalView(screen) as view:
        view.update(shown)
    assert "hits: GET 75.0%, HGET 0.0%" in written(screen)
    assert re.search(r"serv max +hits +errors", re.sub(r"\x1b\[[0-9;]*m", "", written(screen)))
    assert "37.5%" in written(screen)


def test_of_many_scenarios_a_terminal_shows_those_that_run() -> None:
    first = build_snapshot(fold(two()), [], 1.5).scenarios[0]
    many = tuple(
        replace(first, name=f"s{number:02}", state="ended" if number < 5 else "running", rows={})
        for number in range(16)
    )
    console = terminal(height=60)
    view = TerminalView(console)
    view.update(replace(snapshot(), scenarios=many))
    view.close()
    drawn = written(console)
    assert [f"s{number:02}" in drawn for number in range(16)] == [5 <= number < 13 for number in range(16)]
    assert "and 8 more" in drawn

"""All output of both programs: no trailing blanks, and counts agree with their nouns."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import click
import pytest
from rich.console import Console

from agent.cli import cli as agent_cli
from common.plan.loading import profiles
from common.plan.schema import CleanUp, Driver, Load, Plan, Preload, Ramp
from common.units import Count, Seconds
from coordinator import catalogue
from coordinator.analysis.totals.aggregate import fold
from coordinator.cli import cli as coordinator_cli
from coordinator.cli import client_settings
from coordinator.compare.comparison_text import print_comparison
from coordinator.compare.differences import build_comparison
from coordinator.journal.records import AnyRecord, Outcome
from coordinator.live.snapshot import LiveAgent, build_snapshot
from coordinator.live.view import PlainView, TerminalView
from coordinator.plan_view import plan_as_text
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from coordinator.report_command import FORMATS
from tests.support.comparisons import conducted, head
from tests.support.records import (
    accepted,
    clean_run,
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

Printed = Callable[[], str]

ONE_OF_SEVERAL = re.compile(r"\b1 (?!(?:us|ms|s|ops|this|less|is|was|has)\b)[a-z]+(?<!s)s\b")
"""A count of one with a plural, such as "1 clients"; but not "1 process"."""


def tiny(the_plan: Plan | None = None) -> list[AnyRecord]:
    """A run with one agent, one second, one of everything, and some problems."""
    get = command(histogram(1_000_000), response=histogram(3_000_000), errors={"WRONGTYPE": 1})
    one = interval(0, {"GET": get}, retries=1, redirects={"MOVED": 1}, topology_refreshes=1, unsent=1)
    records: list[AnyRecord] = [
        opened(the_plan or plan(rate_per_s=1.0), ["a1"]), accepted("a1", 0, one),
        noted("a1", 3, drained=False, processes_lost=1, host_cpu_percent_mean=99.0, clock_rtt_us=250_000.0),
        closed(Outcome.DEGRADED, 1.0),
    ]  # fmt: skip
    return watched(records, {"a1": 0.99}, loop=0.9, turns_ns=[10**9], late_ns=[10**9])


def on_console(draw: Callable[[Console], None], **options: object) -> str:
    out = io.StringIO()
    draw(Console(file=out, width=80, height=50, _environ={"TERM": "xterm"}, **options))  # type: ignore[arg-type]
    return out.getvalue()


def lines_of(records: list[AnyRecord], console: Console) -> None:
    agents = [LiveAgent("a1", "localhost", "running", 1.0, 0.1, 12.5)]
    with PlainView(console) as view:
        view.phase("preparing agents", 0, 1)
        view.update(build_snapshot(fold(records), agents, 1.0))
        view.note("agent a1 joined")


def last_screen(records: list[AnyRecord], console: Console) -> None:
    agents = [LiveAgent("a1", "localhost", "running", 1.0, 0.1, 12.5)]
    with TerminalView(console) as view:
        view.update(build_snapshot(fold(records), agents, 1.0))


def help_of(group: click.Group) -> Iterator[tuple[str, Printed]]:
    context = click.Context(group, info_name=group.name, terminal_width=80)
    yield f"{group.name} --help", lambda: group.get_help(context)
    for name, subcommand in group.commands.items():
        below = click.Context(subcommand, info_name=name, parent=context, terminal_width=80)
        yield f"{name} --help", lambda subcommand=subcommand, below=below: subcommand.get_help(below)


def plan_of_everything() -> Plan:
    base = staged_plan(stage(1, 1), stage(2, 300, Ramp.LINEAR), warmup_s=1)
    workload = plan().workload
    preload = (Preload(command="SET __key__ __data__", key_maximum=Count(0)),)
    return Plan(
        target=base.target,
        workload=type(workload)(commands=workload.commands, preload=preload, clean_up=CleanUp.KEYS),
        load=base.load,
    )


def plan_printed(the_plan: Plan) -> str:
    return plan_as_text(the_plan, 1, client_settings(the_plan))


def comparison() -> str:
    runs = [conducted(1, Driver.CLIENT), conducted(1, Driver.WIRE)]
    built = build_comparison(head(rounds_wanted=1), runs, Outcome.COMPLETED, "")
    return on_console(lambda console: print_comparison(console, built))


PRINTED: dict[str, Printed] = {
    "report": lambda: on_console(lambda console: print_summary(console, build_summary(fold(tiny())))),
    "report of a clean run": lambda: on_console(
        lambda console: print_summary(console, build_summary(fold(clean_run())))
    ),
    "report of stages": lambda: on_console(
        lambda console: print_summary(console, build_summary(fold(tiny(staged_plan(stage(1, 1), stage(1))))))
    ),
    **{f"report as {name}": lambda name=name: FORMATS[name](fold(tiny()), False) for name in FORMATS},  # type: ignore[misc]
    "comparison": comparison,
    "log lines": lambda: on_console(lambda console: lines_of(tiny(), console)),
    "log lines of a closed loop": lambda: on_console(lambda console: lines_of(list(clean_run(seconds=1)), console)),
    "screen": lambda: on_console(lambda console: last_screen(tiny(), console), force_terminal=True, color_system=None),
    "plan": lambda: plan_printed(plan_of_everything()),
    "plan by requests": lambda: plan_printed(
        Plan(target=plan().target, workload=plan().workload, load=Load(requests=Count(1), warmup_s=Seconds(1)))
    ),
    "profiles": catalogue.profiles_text,
    "commands": catalogue.commands_text,
    "page": catalogue.page,
    **{f"profile {name}": lambda name=name: profiles.load(name).text for name in profiles.names()},  # type: ignore[misc]
    **dict(help_of(coordinator_cli)),
    **dict(help_of(agent_cli)),
}


@pytest.mark.parametrize("name", PRINTED)
def test_no_line_ends_in_blanks_and_counts_agree_with_their_nouns(name: str) -> None:
    printed = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", PRINTED[name]())
    lines = printed.splitlines()
    assert lines
    assert [line for line in lines if line != line.rstrip()] == []
    assert ONE_OF_SEVERAL.findall(printed) == []


def test_the_pattern_finds_a_plural_after_one() -> None:
    assert [bool(ONE_OF_SEVERAL.search(text)) for text in ("1 clients", "1 process", "21 clients", "1 us")] == [
        True, False, False, False,
    ]  # fmt: skip

"""The command line of `coordinator`. The flags of the plan come from the schema, see `common.plan.settings`.

`--help` imports little: each command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.errors import EXIT_OK, TargetError, UsageError
from common.program.command_line import ParsedType, run_commands, version_option, whole_number
from common.program.entry import interruptible_imports
from common.program.standard_streams import complain, run_program
from common.units import printable
from coordinator.start_options import DEFAULT_BIND, DEFAULT_ROUNDS, FEWEST_ROUNDS, StartOptions

if TYPE_CHECKING:
    from common.plan.rules.checks import Purpose
    from common.plan.schema import Plan
    from common.plan.settings import Setting

PROGRAM = "coordinator"
_FLAG_COLUMN = 34
"""Widest column of flags in help texts."""


class PlanOption(click.Option):
    """The flag of a setting of the plan."""

    def __init__(self, setting: Setting) -> None:
        attributes: dict[str, Any] = {"is_flag": True}
        if not setting.option.is_switch:
            attributes = {
                "metavar": setting.metavar,
                "type": ParsedType(setting.metavar, setting.parse),
                "multiple": setting.option.repeatable,
            }
        if setting.option.implied_value is not None:
            attributes |= {"is_flag": False, "flag_value": setting.option.implied_value}
        names = [*setting.flags, _parameter_name(setting)]
        default = f"  [default: {setting.default_text}]" if setting.default_text else ""
        super().__init__(names, default=None, help=setting.help + default, **attributes)
        self.setting = setting


@cache
def _plan_options() -> tuple[PlanOption, ...]:
    from common.plan.settings import SETTINGS

    return tuple(PlanOption(setting) for setting in SETTINGS if setting.flag)


def _parameter_name(setting: Setting) -> str:
    return setting.variable.lower()


class PlanCommand(click.Command):
    """A command that takes a plan: the argument PLAN, its own options, and every flag of the plan by heading."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        plan_file = click.Argument(["plan_file"], metavar="[PLAN]", required=False, type=click.Path(path_type=Path))
        self.params.insert(0, plan_file)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does. An option of another load generator is answered with the option here."""
        given = list(args)  # click removes what it has parsed
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from coordinator.foreign_options import answer_to

            if not (answer := answer_to(given, error.option_name)):
                raise
            raise click.UsageError(answer, ctx) from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then the plan's flags, whose import takes a moment."""
        return [*super().get_params(ctx), *_plan_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, then the plan's by heading."""
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                heading = parameter.setting.heading if isinstance(parameter, PlanOption) else "Options"
                rows.setdefault(heading, []).append(row)
        for heading, section in rows.items():
            with formatter.section(heading):
                formatter.write_dl(section, col_max=_FLAG_COLUMN)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@version_option(PROGRAM)
def cli() -> None:
    """Load Redis from many processes and machines at once, and report throughput and latency."""


@cli.command(cls=PlanCommand)
@click.option("--bind", metavar="ENDPOINT", help=f"where agents connect  [default: {DEFAULT_BIND}]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="folder for the folders of runs",
)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON on stdout, and nothing else there")
@click.option("--insecure", is_flag=True, help="no encryption and no token: any agent can join")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="token that agents need, with its key file in the same folder, instead of the default token",
)
@click.option("--resume", metavar="RUN", help="resume a run whose coordinator was killed, or collect late results")
@click.option("--compare-drivers", is_flag=True, help="run the plan with client and wire in turn: the cost of redis-py")
@click.option(
    "--rounds",
    type=whole_number(FEWEST_ROUNDS),
    help=f"runs of each driver, with --compare-drivers  [default: {DEFAULT_ROUNDS}]",
)
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    help="no live view and no progress messages, only problems; with --json, no report on stderr either",
)
@click.option("--hide-histogram", is_flag=True, help="no latency distribution in the summary")
@click.option("--yes-flush", is_flag=True, help="confirm that the plan may empty the target's database")
def start(
    plan_file: Path | None, bind: str | None, out: Path, as_json: bool, insecure: bool, token_file: Path | None,
    resume: str | None, compare_drivers: bool, rounds: int | None, quiet: bool, hide_histogram: bool, yes_flush: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Run a plan and print its report.

    The coordinator waits for the agents, starts them at one instant, and shows the load.

    Flags override the plan file, the file overrides STAMPEDE_... variables, and those override the profile.
    """
    with interruptible_imports():
        from common.machine import raise_open_files_limit
        from common.protocol.token_sources import TokenVariables
        from coordinator.compare_command import compare
        from coordinator.report.run_files import PLAN_FILE
        from coordinator.report.run_lookup import find_journal
        from coordinator.start import start as start_run

    if rounds is not None and not compare_drivers:
        raise UsageError("--rounds: expected it with --compare-drivers only")
    if resume is not None and compare_drivers:
        raise UsageError("--resume: expected no --compare-drivers, because only a single run can be resumed")
    if resume is not None:
        _refuse_another_plan(plan_file, flags)
        plan_file = find_journal(resume, out).with_name(PLAN_FILE)
    plan = _load(plan_file, flags)
    raise_open_files_limit()
    options = StartOptions(
        bind=bind, out=out, json=as_json, insecure=insecure, token_file=token_file, resume=resume, quiet=quiet,
        hide_histogram=hide_histogram, yes_flush=yes_flush, token_variables=TokenVariables.taken_from(os.environ),
    )  # fmt: skip
    return compare(plan, options, rounds or DEFAULT_ROUNDS) if compare_drivers else start_run(plan, options)


@cli.command("plan", cls=PlanCommand)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def show_plan(plan_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Print what would run; start nothing.

    The output is a plan file with the whole plan. Comments show its connections and each agent's share. It needs no
    target.
    """
    with interruptible_imports():
        from common.machine import usable_cores
        from common.plan.rules.checks import Purpose
        from coordinator.plan_view import plan_as_data, plan_as_text

    plan = _load(plan_file, flags, Purpose.VIEW)
    view = plan, usable_cores(), client_settings(plan)
    text = json.dumps(plan_as_data(*view), indent=2) if as_json else plan_as_text(*view)
    click.echo("\n".join(map(printable, text.split("\n"))))


@cli.command(cls=PlanCommand)
def check(plan_file: Path | None, **flags: Any) -> int:
    """Check that the target is reachable and permits this plan."""
    with interruptible_imports():
        from common.machine import open_files_limit, raise_open_files_limit, usable_cores
        from common.plan.rules.checks import Purpose
        from coordinator.core.dealt_plan import assign
        from coordinator.plan_view import expected_agents
        from coordinator.servers.check import check_files, check_scenarios

    plan = _load(plan_file, flags, Purpose.TARGET)
    raise_open_files_limit()
    agents = expected_agents(plan, usable_cores())
    shares = assign(plan, agents)
    lines = [*check_scenarios(shares), *check_files(shares, agents, open_files_limit())]
    for line in lines:
        where = f"{line.scenario}: " if line.scenario else ""
        click.echo(f"{'ok' if line.ok else 'FAIL':4}  {where}{line.name}: {printable(line.text)}")
    return EXIT_OK if all(line.ok for line in lines) else TargetError.exit_code


@cli.command("profiles")
@click.argument("name", required=False)
@click.option("--commands", "what", flag_value="commands", help="list the command table and the placeholders instead")
@click.option("--markdown", "what", flag_value="markdown", help="print everything as a page of Markdown")
def show_profiles(name: str | None, what: str | None) -> None:
    """List the built-in workloads, or print one."""
    with interruptible_imports():
        from common.plan.loading import profiles
        from coordinator import catalogue

    if name is not None and what is not None:
        raise UsageError(f"profiles {name}: expected either a name or --{what}, got both")
    if name is not None:
        click.echo(profiles.load(name).text, nl=False)
        return
    texts = {None: catalogue.profiles_text, "commands": catalogue.commands_text, "markdown": catalogue.page}
    click.echo(texts[what]().rstrip())


@cli.command()
@click.argument("run")
@click.option("--format", "form", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="folder of the runs",
)
@click.option("--hide-histogram", is_flag=True, help="no latency distribution")
def report(run: str, form: str, out: Path, hide_histogram: bool) -> None:
    """Print the report of a run or a comparison again. RUN: an id, the beginning of one, a path, or `latest`."""
    with interruptible_imports():
        from coordinator.report_command import render

    # `render` adds colours only if stdout shows them: click must not remove them.
    text = render(run, out, form, hide_histogram, note=lambda line: complain(PROGRAM, line))
    click.echo(text, nl=False, color=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process. Returns the exit code. Each error is one line on stderr."""
    if arguments is not None:
        return run_commands(cli, PROGRAM, arguments)
    return run_program(PROGRAM, lambda: run_commands(cli, PROGRAM, None))


def _refuse_another_plan(plan_file: Path | None, flags: Mapping[str, Any]) -> None:
    """Raise UsageError if the command line has a plan: a resumed run keeps its plan. Passwords may be given."""
    from common.redaction import SECRET_KEYS

    given = [str(plan_file)] if plan_file is not None else []
    given += [setting.flag for setting in _given(flags) if setting.path[-1] not in SECRET_KEYS]
    if given:
        raise UsageError(
            f"--resume: expected no plan and no flags of a plan, because the run has its plan; got {', '.join(given)}"
        )


def client_settings(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the settings of redis-py's clients in force: name to value, by pool group. Opens no connection. Empty for
    an embedded server, whose address is not known yet."""
    with interruptible_imports():
        from common.plan.scenarios import scenario_plans
        from common.redis_client import effective_client_settings

    return {
        f"{scenario.name}/{group.name}" if plan.scenarios else group.name: dict(
            effective_client_settings(scenario.plan.target, group)
        )
        for scenario in scenario_plans(plan)
        for group in (scenario.plan.pools if scenario.plan.target.url else ())
    }


def _given(flags: Mapping[str, Any]) -> dict[Setting, Any]:
    """Return the settings of the plan that the command line sets, with their values."""
    given = {option.setting: flags.get(_parameter_name(option.setting)) for option in _plan_options()}
    return {setting: value for setting, value in given.items() if value is not None and value != ()}


def _load(plan_file: Path | None, flags: Mapping[str, Any], purpose: Purpose | None = None) -> Plan:
    with interruptible_imports():
        from common.plan.loading.sources import load_plan
        from common.plan.rules.checks import Purpose

    return load_plan(plan_file, _given(flags), os.environ, purpose or Purpose.RUN)

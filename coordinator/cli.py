"""`coordinator`: the commands that people type. Options of the plan come from the table in `common.plan.settings`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from common.errors import EXIT_INTERRUPTED, EXIT_OK, TargetError, UsageError
from common.machine import open_files_limit, raise_open_files_limit, usable_cores
from common.plan.loading import profiles
from common.plan.loading.sources import load_plan
from common.plan.rules.checks import Purpose
from common.plan.schema import Plan
from common.plan.setting import Setting
from common.plan.settings import SETTINGS
from common.program import complain, failed, run_program
from common.protocol.token_sources import TokenVariables
from common.units import printable, show
from common.version import RELEASE, about
from coordinator.core.shares import assign
from coordinator.options import DEFAULT_BIND, DEFAULT_ROUNDS, FEWEST_ROUNDS, StartOptions
from coordinator.plan_view import expected_agents, plan_facts, plan_text

PROGRAM = "coordinator"


def _parameter_name(setting: Setting) -> str:
    return setting.variable.lower()


def _help_text(setting: Setting) -> str:
    default = setting.default
    if default in (None, "") or setting.is_switch:
        return setting.help
    return f"{setting.help}  [default: {_said(default)}]"


def _said(default: Any) -> str:
    """A default as people would say it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(map(_said, default))
    return f"{default:g}" if type(default) is float else str(getattr(default, "value", default))


class SettingType(click.ParamType[Any]):
    """A setting's own parser, as click wants it."""

    def __init__(self, setting: Setting) -> None:
        self.name = setting.metavar
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The raw value that a plan file would hold; a usage error for text that the setting does not accept."""
        try:
            return self._setting.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class RoundsType(click.ParamType[int]):
    """How many rounds a comparison has."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A whole number; a usage error for too few."""
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) >= FEWEST_ROUNDS):
            self.fail(f"expected a whole number >= {FEWEST_ROUNDS}, got {show(text)}", param, ctx)
        return int(text)


class PlanOption(click.Option):
    """An option that stands for one row of the settings."""

    def __init__(self, setting: Setting) -> None:
        flags = [alias for alias in (setting.flag, *setting.aliases) if alias]
        shape: dict[str, Any] = {"is_flag": True} if setting.is_switch else {"metavar": setting.metavar}
        if setting.alone is not None:
            shape |= {"is_flag": False, "flag_value": setting.alone}
        if not setting.is_switch:
            shape |= {"type": SettingType(setting), "multiple": setting.repeatable}
        super().__init__([*flags, _parameter_name(setting)], default=None, help=_help_text(setting), **shape)
        self.group = setting.group


class PlanCommand(click.Command):
    """A command that takes a plan: the PLAN argument, its own options, and every flag of the plan by heading."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        plan_file = click.Argument(["plan_file"], metavar="[PLAN]", required=False, type=click.Path(path_type=Path))
        self.params = [plan_file, *self.params, *(PlanOption(setting) for setting in SETTINGS if setting.flag)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options of the command itself first, then the plan's by what they concern."""
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=34)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(RELEASE, "-V", "--version", message=about(PROGRAM))
def cli() -> None:
    """Load a Redis from many processes and machines at once, and report what it did."""


@cli.command(cls=PlanCommand)
@click.option("--bind", metavar="ENDPOINT", help=f"where agents connect  [default: {DEFAULT_BIND}]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="folder that takes a folder per run",
)
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON on stdout, and nothing else there")
@click.option("--insecure", is_flag=True, help="no encryption and no token: anybody may join")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="the token that agents need, with its key beside it, instead of the usual one",
)
@click.option("--resume", metavar="RUN", help="go on with a run whose coordinator was killed, or collect late results")
@click.option("--compare-drivers", is_flag=True, help="run it with client and wire in turn: what redis-py costs")
@click.option(
    "--rounds",
    type=RoundsType(),
    help=f"how often each driver runs, with --compare-drivers  [default: {DEFAULT_ROUNDS}]",
)
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    help="no live view and no progress messages, only trouble; with --json, no report on stderr either",
)
@click.option("--hide-histogram", is_flag=True, help="no latency distribution in the summary")
@click.option("--yes-flush", is_flag=True, help="yes, empty the target's database first, as the plan says")
def start(
    plan_file: Path | None, bind: str | None, out: Path, as_json: bool, insecure: bool, token_file: Path | None,
    resume: str | None, compare_drivers: bool, rounds: int | None, quiet: bool, hide_histogram: bool, yes_flush: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Run a plan: wait for its agents, start them at one instant, watch, report.

    Flags go over the plan file, the file over STAMPEDE_... variables, those over the profile.
    """
    from coordinator.compare.command import compare
    from coordinator.report.files import PLAN_FILE
    from coordinator.report.run_lookup import find_journal
    from coordinator.start import start as start_run

    if rounds is not None and not compare_drivers:
        raise UsageError("--rounds: expected --compare-drivers too, whose rounds they are")
    if resume is not None and compare_drivers:
        raise UsageError("--resume: expected no --compare-drivers beside it, because a single run is gone on with")
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
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def show_plan(plan_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Print what would run, its connections and each agent's share; start nothing.

    What is printed is a plan file again: the arithmetic stands in its comments.
    """
    from coordinator.client_settings import client_settings

    plan = _load(plan_file, flags)
    cores, settings = usable_cores(), client_settings(plan)
    text = json.dumps(plan_facts(plan, cores, settings), indent=2) if as_json else plan_text(plan, cores, settings)
    click.echo("\n".join(map(printable, text.split("\n"))))


@cli.command(cls=PlanCommand)
def check(plan_file: Path | None, **flags: Any) -> int:
    """Can the target be reached, what is it, and may we do what the plan needs?"""
    from coordinator.servers.check import check as check_target
    from coordinator.servers.check import check_files

    plan = _load(plan_file, flags, Purpose.TARGET)
    raise_open_files_limit()
    agents = expected_agents(plan, usable_cores())
    shares = assign(plan, agents)
    lines = [*check_target(plan, shares.connection_ceiling).lines, *check_files(shares, agents, open_files_limit())]
    for line in lines:
        click.echo(f"{'ok' if line.ok else 'FAIL':4}  {line.name}: {printable(line.text)}")
    return EXIT_OK if all(line.ok for line in lines) else TargetError.exit_code


@cli.command("profiles")
@click.argument("name", required=False)
@click.option("--commands", "what", flag_value="commands", help="the command table and the placeholders instead")
@click.option("--markdown", "what", flag_value="markdown", help="all of it as a page: WORKLOADS.md")
def show_profiles(name: str | None, what: str | None) -> None:
    """List the built-in workloads, or print one."""
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
    help="folder that holds the runs",
)
@click.option("--hide-histogram", is_flag=True, help="no latency distribution")
def report(run: str, form: str, out: Path, hide_histogram: bool) -> None:
    """Print the report of a run or a comparison again. RUN: an id, the beginning of one, a path, or `latest`."""
    from coordinator.report.saved import render

    # The text has colours only if stdout shows them: click must not remove them.
    text = render(run, out, form, hide_histogram, note=lambda line: complain(PROGRAM, line))
    click.echo(text, nl=False, color=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command line given, or of this process's own. Every error is one line on stderr."""
    return run_program(PROGRAM, lambda: _main(None)) if arguments is None else _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_code
    except click.ClickException as error:
        complain(PROGRAM, _one_line(error))
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost door: no traceback goes to the terminal
        return failed(PROGRAM, error)
    return code if isinstance(code, int) else EXIT_OK


def _refuse_another_plan(plan_file: Path | None, flags: Mapping[str, Any]) -> None:
    """A run that is resumed goes on as it was planned; only where its passwords are may be said anew."""
    said = [str(plan_file)] if plan_file is not None else []
    said += [
        setting.flag
        for setting in _given(flags)
        if setting.flag and not setting.path.startswith(("target.password", "target.sentinel.password"))
    ]
    if said:
        raise UsageError(
            f"--resume: expected nothing of the plan beside it, which is that of the run, got {', '.join(said)}"
        )


def _given(flags: Mapping[str, Any]) -> dict[Setting, Any]:
    given = {setting: flags.get(_parameter_name(setting)) for setting in SETTINGS}
    return {setting: value for setting, value in given.items() if value is not None and value != ()}


def _load(plan_file: Path | None, flags: Mapping[str, Any], purpose: Purpose = Purpose.RUN) -> Plan:
    return load_plan(plan_file, _given(flags), os.environ, purpose)


def _one_line(error: click.ClickException) -> str:
    if isinstance(error, click.BadParameter) and error.message and error.param is not None:
        return f"{error.param.opts[0]}: {error.message}"
    message = error.format_message()
    return message[:1].lower() + message[1:]

"""Shared by the command lines of both programs: running a group of commands, `--version`, and types of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from common.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from common.program.standard_streams import complain, failed
from common.units import show


class ParsedType(click.ParamType[Any]):
    """The type of a parameter that a function parses. The function's ValueError becomes a usage error."""

    def __init__(self, metavar: str, parse: Callable[[str], Any]) -> None:
        self.name = metavar
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value."""
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def whole_number(at_least: int) -> ParsedType:
    """A whole number, written in digits."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= at_least):
            raise ValueError(f"expected a whole number >= {at_least}, got {show(text)}")
        return int(text)

    return ParsedType("N", parse)


def version_option(program: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`-V`, `--version`."""

    def print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            from common.program.version import about  # imported here: it takes 20 ms to find the installed versions

            click.echo(about(program))
            ctx.exit()

    return click.option(
        "-V",
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=print_version,
        help="Show the version and exit.",
    )


def run_commands(group: click.Group, program: str, arguments: Sequence[str] | None) -> int:
    """Run the command that the arguments name. Returns its exit code. Every error is one line on stderr. arguments: by
    default, the arguments of this process."""
    try:
        code = group.main(args=arguments, prog_name=program, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_code
    except click.ClickException as error:
        complain(program, _one_line(error))
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - nothing above catches errors, and users get no traceback
        return failed(program, error)
    return code if isinstance(code, int) else EXIT_OK


def _one_line(error: click.ClickException) -> str:
    if isinstance(error, click.BadParameter) and error.message and error.param is not None:
        return f"{error.param.opts[0]}: {error.message}"
    message = error.format_message()
    return message[:1].lower() + message[1:]

"""`agent join`: the command line of a load machine."""

from __future__ import annotations

import gc
import os
import secrets
import sys
from pathlib import Path

import click

from common.errors import UsageError
from common.program.command_line import ParsedType, run_commands, version_option, whole_number
from common.program.entry import interruptible_imports
from common.program.standard_streams import run_program
from common.units import Seconds, counted, printable, show

PROGRAM = "agent"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@version_option(PROGRAM)
def cli() -> None:
    """Generate load as one machine of a fleet. `coordinator start` sends the plan."""


@cli.command()
@click.argument("endpoint", metavar="ENDPOINT")
@click.option(
    "--processes",
    type=whole_number(at_least=1),
    default=None,
    envvar="STAMPEDE_AGENT_PROCESSES",
    help="worker processes  [default: one per usable core]",
)
@click.option("--name", default="", help="name in reports  [default: the host name]")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    default=None,
    help="token copied from the coordinator's machine; - for stdin; or put its text into STAMPEDE_TOKEN  "
    "[default: $XDG_CONFIG_HOME/stampede/token]",
)
@click.option(
    "--insecure", is_flag=True, help="join a coordinator that was started with --insecure: no CURVE, no token"
)
@click.option("--once", is_flag=True, help="leave after one run instead of waiting for the next")
@click.option(
    "--wait",
    type=ParsedType("duration", Seconds.parse),
    default=None,
    help="exit if no coordinator answers for this long  [default: never]",
)
@click.option("--quiet", "-q", is_flag=True, help="print nothing but errors")
def join(
    endpoint: str,
    processes: int | None,
    name: str,
    token_file: Path | None,
    insecure: bool,
    once: bool,
    wait: Seconds | None,
    quiet: bool,
) -> int:
    """Join the coordinator at ENDPOINT, such as 10.0.0.5:5555 or a host name, and serve its runs.

    An agent may start before the coordinator, and waits for the next run after each run. Ctrl-C or SIGTERM drains the
    current run and ends the agent; a second one ends it at once.
    """
    # Imported here, because neither --help nor a spawned fork server, which imports this module, needs them.
    with interruptible_imports():
        from agent.fork_server import ForkServer
        from common.cgroup import CpuGroups
        from common.machine import (
            memory_bytes,
            open_files_limit,
            raise_open_files_limit,
            this_host,
            threads_limit,
            usable_cores,
        )
        from common.program.version import RELEASE
        from common.protocol.endpoint import ANY_HOST, parse_endpoint
        from common.protocol.token_sources import TokenVariables

    coordinator = parse_endpoint(endpoint)
    if coordinator.host == ANY_HOST or coordinator.port is None:
        raise UsageError(f"expected the host and port of a coordinator, such as 10.0.0.5:5555, got {show(endpoint)}")
    variables = TokenVariables.taken_from(os.environ)
    raise_open_files_limit()
    gc.disable()  # imports make no garbage worth a collection
    with ForkServer() as fork_server:
        if variables.token or variables.key:
            # Not a copy: its /proc/PID/environ would show the variables. It imports while this process imports.
            fork_server.start()
        else:
            from agent.worker.process import run_worker  # noqa: F401  # for the worker processes
        from agent.core.actions import Identity
        from agent.core.assignment_checks import Capacity
        from agent.loop import Agent
        from common.protocol.token import agent_credentials

        gc.freeze()  # keeps the memory of imports shared: the collector writes to all objects that it examines
        gc.enable()
        fork_server.start(copied=True)  # before sockets, threads and a ZeroMQ context exist
        curve = None if insecure else agent_credentials(token_file, variables, os.environ)
        identity = Identity(
            name=name,
            host=this_host(),
            pid=os.getpid(),
            processes=processes or usable_cores(),
            secret=secrets.token_hex(32),
            version=RELEASE,
            endpoint=str(coordinator),
            once=once,
            wait_ns=None if wait is None else wait.ns,
            capacity=Capacity(threads_limit(), open_files_limit(), memory_bytes()),
        )

        def say(text: str) -> None:
            if not quiet:
                _print_line(text)

        agent = Agent(coordinator, curve, identity, say, fork_server)
        quota = CpuGroups().quota_cores
        allowed = "" if quota is None else f"; its CPU quota allows {round(quota, 2):g} cores"
        say(f"joining {coordinator} with {counted(identity.processes, 'worker process')}{allowed}")
        leaving = agent.run()
        if quiet and leaving.code and leaving.text:
            _print_line(leaving.text)
        return leaving.code


def _print_line(text: str) -> None:
    """Print one line to stderr; control characters from a coordinator are escaped."""
    click.echo(f"agent: {printable(text)}", err=True)


def main() -> int:
    """Entry point of the `agent` command. Returns an exit code of `common.errors`."""
    return run_program(PROGRAM, lambda: run_commands(cli, PROGRAM, None))


if __name__ == "__main__":
    sys.exit(main())

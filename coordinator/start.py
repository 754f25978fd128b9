"""`coordinator start`: everything that a run needs, put together in the order in which it can fail, and taken apart.

Opened in this order, closed in the reverse of it: the embedded server (the target must be there first and go last, so
that the ledger can still ask it), sockets, the live view, local agents (they need the sockets to say goodbye).
Whatever is wrong with the target, the token or the address is found before any agent is started.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from common.clock import monotonic_ns
from common.errors import InvalidResultError, UsageError
from common.plan.describe import plan_yaml
from common.plan.schema import Plan
from common.plan.secret import redacted, with_secrets_of
from common.plan.settings import PASSWORD, SENTINEL_PASSWORD
from common.signals import caught_signals
from common.token import coordinator_curve, default_token_path
from common.transport import Context, CurveServer, Listener, parse_tcp_endpoint
from coordinator.aggregate import Aggregate, fold
from coordinator.cleaning import Cleaning, delete_written
from coordinator.coordinator import Coordinator, after_load, standings
from coordinator.counts import read_server_counts
from coordinator.embedded import open_embedded
from coordinator.expanded import expected_agents
from coordinator.journal import Journal, read_journal
from coordinator.live.view import open_live
from coordinator.local_agents import LocalAgents
from coordinator.opening import Setup
from coordinator.options import DEFAULT_BIND, StartOptions
from coordinator.preflight import refuse_misfits
from coordinator.preparation import flush, set_up
from coordinator.probe import probe
from coordinator.records import TargetFacts
from coordinator.report.command import find_journal
from coordinator.report.files import JOURNAL_FILE, PLAN_FILE, write_run_files, write_whole
from coordinator.report.summary import build_summary
from coordinator.report.text import print_summary
from coordinator.run import Run
from coordinator.steps import End
from coordinator.verdict import Level

LOCAL_ONLY_BIND = "tcp://127.0.0.1:*"
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run is kept, and what is known of it already: something only when it is resumed."""

    folder: Path
    run_id: str
    aggregate: Aggregate
    resumed: bool

    def open_journal(self, plan: Plan) -> Journal:
        """The journal to append to; a new run's is made with its folder and plan when there is something to write."""
        path = self.folder / JOURNAL_FILE
        if self.resumed:
            return Journal.reopen(path)
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot make the run's folder: {error.strerror}; see --out") from error
        write_whole(self.folder / PLAN_FILE, plan_yaml(redacted(plan)))
        return Journal.create(path)


def start(plan: Plan, options: StartOptions) -> int:
    """Run a plan to its end and report it. Returns the exit code; raises StampedeError for what prevents a start."""
    people = Console(stderr=True)
    _confirm_flush(plan, options)
    with ExitStack() as stack:
        plan = _with_agents(plan, resuming=options.resume is not None)
        place = _place(options)
        endpoints = _endpoints(plan, options, place.aggregate)
        if plan.target.embedded is not None and not place.resumed:
            server = stack.enter_context(open_embedded(plan.target.embedded))
            plan = _aimed_at(plan, server.url)
        if place.aggregate.opened is not None:
            # The target of a resumed run may be what is down: its frames are collected all the same.
            facts = place.aggregate.opened.target
            # It goes on as it was planned; only passwords are not in its journal.
            plan = with_secrets_of(_aimed_at(place.aggregate.opened.plan, facts.url), plan)
        else:
            facts = probe(plan.target)
            refuse_misfits(plan)
            facts = _prepare_target(plan, facts, people)
        end = _serve(plan, options, place, facts, people, endpoints)
        if end.outcome is None:
            people.print(f"coordinator: {end.text}", highlight=False, soft_wrap=True, markup=False)
            return end.exit_code
        return _report(plan, options, place, end, people)


def _confirm_flush(plan: Plan, options: StartOptions) -> None:
    """What cannot be undone is said twice: a plan may be another's, and a command line be repeated in haste."""
    if plan.workload.flush_before and not options.yes_flush and options.resume is None:
        raise UsageError(
            "workload.flush_before: the plan empties the target's database before the run; say --yes-flush too if that "
            "is what you want, or take it out of the plan"
        )


def _prepare_target(plan: Plan, facts: TargetFacts, people: Console) -> TargetFacts:
    """What is done to the target before any agent is waited for. Returns facts that hold afterwards."""

    def say(text: str) -> None:
        people.print(text, highlight=False, soft_wrap=True, markup=False)

    if plan.workload.flush_before:
        say(f"flushed {flush(plan.target):,} keys of {facts.url}")
    calls = set_up(plan, say)
    if calls:
        say(f"setup: {calls:,} calls")
    if not calls and not plan.workload.flush_before:
        return facts
    # What is held against a preload is what was there when it began.
    return msgspec.structs.replace(facts, keys=probe(plan.target).keys)


def _serve(
    plan: Plan, options: StartOptions, place: _Place, facts: TargetFacts, people: Console, endpoints: tuple[str, str]
) -> End:
    token_file = None if options.insecure else (options.token_file or default_token_path(os.environ))
    curve = None if token_file is None else coordinator_curve(token_file)
    local = plan.fleet.local_agents
    with ExitStack() as stack:
        # First of all: a Ctrl-C while a socket is being made would leave it open, and the context wait for it for ever.
        signals = stack.enter_context(caught_signals())
        context = stack.enter_context(Context(curve))
        control, metrics = _listen(stack, context, *endpoints, curve)
        view = stack.enter_context(open_live(people, options.quiet))
        setup = Setup(
            plan=plan,
            run_id=place.run_id,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            target=facts,
            expected=local + plan.fleet.expect_agents,
            endpoint=control.endpoint,
            metrics_port=metrics.port,
        )
        view.note(f"run {place.run_id} against {facts.server} ({facts.topology}) at {facts.url}")
        view.note(f"listening on {control.endpoint}" + (" without encryption" if curve is None else ""))
        agents = stack.enter_context(LocalAgents())
        if not place.resumed:
            agents.start(
                local,
                _reachable(control.endpoint),
                processes=plan.fleet.processes_per_local_agent,
                token_file=token_file,
                wait_s=float(plan.fleet.wait_s),
                withheld=[
                    *(setting.variable for setting in (PASSWORD, SENTINEL_PASSWORD)),
                    *filter(None, [plan.target.password_env, plan.target.sentinel.password_env]),
                ],
            )
        coordinator = Coordinator(
            _run(setup, place),
            place.aggregate,
            control=control,
            metrics=metrics,
            signals=signals,
            local_agents=agents,
            view=view,
            open_journal=lambda: place.open_journal(plan),
            read_counts=lambda when: read_server_counts(plan.target, when),
            clean=lambda: Cleaning(lambda tally: delete_written(plan, tally)),
        )
        return coordinator.serve()


def _report(plan: Plan, options: StartOptions, place: _Place, end: End, people: Console) -> int:
    summary = build_summary(place.aggregate)
    opened = place.aggregate.opened
    write_run_files(place.folder, plan_yaml(opened.plan if opened else redacted(plan)), summary, place.aggregate)
    try:
        print_summary(people if options.json else Console(), summary, hide_histogram=options.hide_histogram)
        if options.json:
            sys.stdout.write(summary.to_json())
        sys.stdout.flush()
    except OSError as error:
        # Or Python would try to write the rest when it ends, and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        text = f"cannot write the summary: {error.strerror}; it is in {place.folder}"
        raise UsageError(text) from error
    people.print(f"run folder: {place.folder}", highlight=False, soft_wrap=True, markup=False)
    if end.text and end.exit_code:
        people.print(f"coordinator: {end.text}", highlight=False, soft_wrap=True, markup=False)
    if end.exit_code == 0 and summary.verdict.level is Level.INVALID:
        return InvalidResultError.exit_code
    return end.exit_code


def _with_agents(plan: Plan, *, resuming: bool) -> Plan:
    """A plan that counts on no agents gets a local one: so that a first try needs one command."""
    fleet = plan.fleet
    if resuming or fleet.local_agents or fleet.expect_agents:
        return plan
    return msgspec.structs.replace(
        plan, fleet=msgspec.structs.replace(fleet, local_agents=len(expected_agents(plan, 1)))
    )


def _aimed_at(plan: Plan, url: str) -> Plan:
    return msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, url=url))


def _place(options: StartOptions) -> _Place:
    if options.resume is None:
        _check_writable(options.out)
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        return _Place(options.out / run_id, run_id, Aggregate(), resumed=False)
    path = find_journal(options.resume, options.out)
    aggregate = fold(read_journal(path))
    if aggregate.opened is None or aggregate.started is None:
        raise UsageError(f"--resume {options.resume}: that run never began; start it anew")
    if aggregate.closed is not None:
        raise UsageError(f"--resume {options.resume}: that run has ended; see `coordinator report {options.resume}`")
    return _Place(path.parent, aggregate.opened.run_id, aggregate, resumed=True)


def _check_writable(out: Path) -> None:
    """A folder for the run is made when there is something to write; that it cannot be is told before the start."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UsageError(f"--out {out}: expected a folder that can be written, but {existing} is none")


def _endpoints(plan: Plan, options: StartOptions, aggregate: Aggregate) -> tuple[str, str]:
    """(control, metrics): metrics one port above control, so that a firewall can be told; both free ones for a run
    that nobody joins from elsewhere; both as before for a run that is resumed. Raises UsageError."""
    if aggregate.opened is not None and options.bind is None:
        host, _ = parse_tcp_endpoint(aggregate.opened.endpoint)
        return aggregate.opened.endpoint, f"tcp://{host}:{aggregate.opened.metrics_port}"
    bind = options.bind or (DEFAULT_BIND if plan.fleet.expect_agents else LOCAL_ONLY_BIND)
    try:
        host, port = parse_tcp_endpoint(bind)
    except UsageError as error:
        raise UsageError(f"--bind: {error}") from error
    if port == _LAST_PORT:
        raise UsageError(f"--bind {bind}: expected a port below {_LAST_PORT}, because metrics use the one after it")
    return (f"tcp://{host}:{port or '*'}", f"tcp://{host}:{port + 1 if port else '*'}")


def _listen(
    stack: ExitStack, context: Context, endpoint: str, metrics_endpoint: str, curve: CurveServer | None
) -> tuple[Listener, Listener]:
    control = stack.enter_context(Listener(context, endpoint, curve))
    try:
        return control, stack.enter_context(Listener(context, metrics_endpoint, curve))
    except UsageError as error:
        raise UsageError(f"{error} (this is for metrics, which use the port after that of --bind)") from error


def _reachable(endpoint: str) -> str:
    """Where local agents find a listener that may be bound to every interface."""
    host, port = parse_tcp_endpoint(endpoint)
    return f"tcp://{'127.0.0.1' if host in ('0.0.0.0', '*') else host}:{port}"


def _run(setup: Setup, place: _Place) -> Run:
    aggregate = place.aggregate
    if aggregate.opened is None or aggregate.started is None:
        return Run(setup, monotonic_ns())
    return Run.resumed(
        setup, aggregate.started.t0_ns, standings(aggregate), monotonic_ns(), after=after_load(aggregate)
    )

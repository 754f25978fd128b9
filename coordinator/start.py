"""`coordinator start`: everything that a run needs, put together in the order in which it can fail, and taken apart.

Opened in this order, closed in the reverse of it: the embedded server (the target must be there first and go last, so
that the ledger can still ask it), sockets, the live view, local agents (they need the sockets to say goodbye).
Whatever is wrong with the target, the token or the address is found before any agent is started.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import msgspec
from rich.console import Console

from common.clock import monotonic_ns
from common.errors import EXIT_OK, InvalidResultError, UsageError
from common.machine import open_files_limit, this_host
from common.plan.loading.secrets import secret_variables, with_secrets_of
from common.plan.schema import Plan
from common.program.signals import Signals, caught_signals
from common.program.standard_streams import explained
from common.protocol.endpoint import Endpoint, parse_endpoint, to_bind
from common.protocol.listener import Listener
from common.protocol.token import Credentials, coordinator_credentials
from common.protocol.token_sources import KEY, TOKEN_FILE
from common.protocol.transport import Context
from common.units import counted
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.verdict import Level
from coordinator.core.actions import End
from coordinator.core.run import Run
from coordinator.core.setup import Setup
from coordinator.embedded import open_embedded
from coordinator.join_command import in_container, invitation, join_command, loopback_note, reachable_at
from coordinator.journal.records import Reading, RunOpened, TargetFacts
from coordinator.live.view import LiveView, open_live
from coordinator.local_agents import LocalAgents
from coordinator.loop import Coordinator, after_load, journaled_agents
from coordinator.plan_view import expected_agents
from coordinator.report.printing import console_for, put_out, say
from coordinator.report.run_files import ERROR_FILE, JOURNAL_FILE, write_run_files
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from coordinator.report.summary_types import Summary
from coordinator.run_folder import RunFolder, new_run_folder, new_run_id, reopen_run_folder
from coordinator.servers.cleanup import CleanUpThread, DeletionProgress, delete_plan_keys
from coordinator.servers.commandstats import read_server_counts
from coordinator.servers.facts import probe
from coordinator.servers.preflight import check_commands
from coordinator.servers.setup_commands import flush, set_up
from coordinator.start_options import DEFAULT_BIND, StartOptions

LOCAL_ONLY_BIND = "tcp://127.0.0.1:*"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, and what it brought. text: why it did not end as planned. summary: None for a run that never
    began. told_to_end: somebody asked for an end when there was nothing more of it to stop. unwritten: a line for each
    file that could not be written."""

    exit_code: int
    text: str
    summary: Summary | None = None
    told_to_end: bool = False
    unwritten: tuple[str, ...] = ()


def start(plan: Plan, options: StartOptions) -> int:
    """Run a plan to its end and report it. Returns the exit code; raises StampedeError for what prevents a start."""
    people = console_for(stderr=True)
    folder = (
        new_run_folder(options.out, new_run_id())
        if options.resume is None
        else reopen_run_folder(options.resume, options.out)
    )
    ended = conduct(plan, options, folder, people)
    code = ended.exit_code
    if (summary := ended.summary) is not None:
        draw = partial(print_summary, summary=summary, hide_histogram=options.hide_histogram)
        code = deliver(draw, summary.to_json(), options, people, ended.unwritten, code)
        if not ended.unwritten and not options.silent:
            say(people, f"run folder: {folder.path}")
    if ended.text and ended.exit_code:
        say(people, f"coordinator: {ended.text}")
    return code


def deliver(
    draw: Callable[[Console], None],
    json: str,
    options: StartOptions,
    people: Console,
    unwritten: Sequence[str],
    code: int,
) -> int:
    """Write a report to stdout, and say what could not be written. unwritten: a line for each file of the run's folder
    that could not be written. Returns `code`, the run's exit code; but the code of a usage error instead of EXIT_OK if
    files are missing. A report that is in the run's folder may be missing on stdout."""
    lost = put_out(draw, json if options.json else None, None if options.silent else people)
    for line in unwritten:
        say(people, f"coordinator: {line}")
    if lost is not None:
        where = "the run's folder cannot be written either" if unwritten else "it is in the run's folder"
        say(people, f"coordinator: cannot write the summary to stdout: {lost}; {where}")
    return code or (UsageError.exit_code if unwritten else EXIT_OK)


def conduct(plan: Plan, options: StartOptions, folder: RunFolder, people: Console) -> Ended:
    """Run a plan to its end, leave its files, and close its folder. Raises StampedeError for what prevents a start."""
    with ExitStack() as stack:
        stack.enter_context(folder)
        _confirm_flush(plan, options)
        plan = _with_agents(plan, resuming=folder.is_resumed)
        endpoint = _endpoint(plan, options, folder.aggregate)
        if plan.target.embedded is not None and not folder.is_resumed:
            server = stack.enter_context(open_embedded(plan.target.embedded))
            plan = _aimed_at(plan, server.url)
        if folder.aggregate.opened is not None:
            # The target of a resumed run may be what is down: its frames are collected all the same.
            facts = folder.aggregate.opened.target
            # It goes on as it was planned; only passwords are not in its journal.
            plan = with_secrets_of(_aimed_at(folder.aggregate.opened.plan, facts.url), plan)
        else:
            facts = probe(plan.target)
            check_commands(plan)
            facts = _prepare_target(plan, facts, _unheard if options.quiet else partial(say, people))
        # Before anything is opened: a Ctrl-C while a socket is being made would leave it open, and the context wait for
        # it for ever.
        with caught_signals() as signals:
            try:
                end = _serve(plan, options, folder, facts, people, endpoint, signals)
            except Exception as error:
                if folder.aggregate.started is None:
                    folder.discard()
                if folder.aggregate.closed is None or folder.has_ended:
                    raise
                end = End(*explained(error, folder.path / ERROR_FILE), folder.aggregate.closed.outcome)
            told_to_end = signals.take() > 0
        return Ended(end.exit_code, end.text) if end.outcome is None else _reported(end, folder, told_to_end)


def _reported(end: End, folder: RunFolder, told_to_end: bool) -> Ended:
    """The report of a run that began, and its files."""
    opened = folder.aggregate.opened
    assert opened is not None
    try:
        summary = build_summary(folder.aggregate)
    except Exception as error:  # noqa: BLE001 - the journal has the results: name it even after a bug
        code, text = explained(error, folder.path / ERROR_FILE)
        return Ended(
            end.exit_code or code, f"cannot report on the run: {text}; its records are in {folder.path / JOURNAL_FILE}"
        )
    unwritten = write_run_files(folder.path, summary, folder.aggregate)
    if not unwritten and not folder.is_intact:
        unwritten = [f"{folder.path / JOURNAL_FILE}: the journal was deleted or moved during the run"]
    invalid = end.exit_code == EXIT_OK and summary.verdict.level is Level.INVALID
    code = InvalidResultError.exit_code if invalid else end.exit_code
    return Ended(code, end.text, summary, told_to_end, tuple(unwritten))


def _confirm_flush(plan: Plan, options: StartOptions) -> None:
    """What cannot be undone is said twice: a plan may be another's, and a command line be repeated in haste."""
    if plan.workload.flush_before and not options.yes_flush and options.resume is None:
        raise UsageError(
            "workload.flush_before: the plan empties the target's database before the run; use --yes-flush too if that "
            "is what you want, or take it out of the plan"
        )


def _unheard(text: str) -> None:
    """Drop a progress message, for --quiet."""


def _prepare_target(plan: Plan, facts: TargetFacts, tell: Callable[[str], None]) -> TargetFacts:
    """What is done to the target before any agent is waited for. Returns facts that hold afterwards."""
    if plan.workload.flush_before:
        tell(f"flushed {counted(flush(plan.target), 'key')} of {facts.url}")
    calls = set_up(plan, tell)
    if calls:
        tell(f"setup: {counted(calls, 'call')}")
    if not calls and not plan.workload.flush_before:
        return facts
    # What is held against a preload is what was there when it began.
    return msgspec.structs.replace(facts, keys=probe(plan.target).keys)


def _serve(
    plan: Plan,
    options: StartOptions,
    folder: RunFolder,
    facts: TargetFacts,
    people: Console,
    endpoint: str,
    signals: Signals,
) -> End:
    credentials = _credentials(options, folder)
    curve = None if credentials is None else credentials.coordinator
    local = plan.fleet.local_agents
    with ExitStack() as stack:
        context = stack.enter_context(Context())
        listener = stack.enter_context(Listener(context, endpoint, curve))
        view = stack.enter_context(open_live(people, options.quiet))
        bound = parse_endpoint(listener.endpoint)
        view.note(f"run {folder.run_id} against {facts.server} ({facts.topology}) at {facts.url}")
        view.note(f"listening on {listener.endpoint}" + (" without encryption" if curve is None else ""))
        setup = Setup(
            plan=plan,
            run_id=folder.run_id,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            target=facts,
            expected=local + plan.fleet.expect_agents,
            endpoint=listener.endpoint,
            join=_invite(plan, bound, credentials, view),
            host=this_host(),
            open_files_limit=open_files_limit(),
            keys="" if credentials is None else credentials.fingerprint,
        )
        if folder.has_ended:
            lost = [name for name, agent in folder.aggregate.agents.items() if not agent.finished and not agent.left]
            if lost:
                text = f"the run has ended: collecting results of {', '.join(lost)}; Ctrl-C ends the wait"
                view.note(text, trouble=True)
        elif stop := folder.aggregate.load_stop:
            view.note(f"draining, as was decided before ({stop.reason}); interrupt to stop at once", trouble=True)
        agents = stack.enter_context(LocalAgents())
        if not folder.is_resumed:
            agents.start(
                local,
                # Every interface is also the loopback.
                str(Endpoint("127.0.0.1", bound.port) if bound.is_any else bound),
                processes=plan.fleet.processes_per_local_agent,
                token=None if credentials is None else credentials.token,
                wait_s=float(plan.fleet.wait_s),
                withheld=secret_variables(plan.target),
            )
        delete = _deletion(plan, folder.aggregate)
        explain = partial(explained, file=folder.path / ERROR_FILE)
        coordinator = Coordinator(
            _run(replace(setup, local_pids=agents.pids), folder),
            folder.aggregate,
            listener=listener,
            signals=signals,
            local_agents=agents,
            view=view,
            open_journal=lambda first: folder.open_journal(first.plan if isinstance(first, RunOpened) else plan),
            read_counts=lambda when: read_server_counts(plan.target, when),
            clean=lambda: CleanUpThread(delete, explain),
            explain=explain,
        )
        return coordinator.serve()


def _credentials(options: StartOptions, folder: RunFolder) -> Credentials | None:
    """The keys that secure connections; None for --insecure. Raises UsageError for keys other than those of the run
    that is resumed: its agents would be refused one by one, without the reason."""
    opened = folder.aggregate.opened
    used = None if opened is None else opened.keys  # None: a new run, or a journal of an earlier release
    resume = f"--resume {folder.run_id}: its agents would be refused"
    if options.insecure:
        if used:
            raise UsageError(f"{resume}: the run uses CURVE with a token, got --insecure; resume it without --insecure")
        return None
    if used == "":
        raise UsageError(f"{resume}: the run was started with --insecure, got no --insecure; add it")
    found = coordinator_credentials(options.token_file, options.token_variables, os.environ, resuming=folder.is_resumed)
    if used and used != found.fingerprint:
        where = f"{found.file} and its key" if found.file is not None else KEY
        raise UsageError(
            f"{resume}: the run uses the keys {used}, got the keys {found.fingerprint} ({where}); name the token that "
            f"the run was started with by --token-file or {TOKEN_FILE}, or set {KEY} to its key"
        )
    return found


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


def _endpoint(plan: Plan, options: StartOptions, aggregate: Aggregate) -> str:
    """Where to listen: on a free port for a run that nobody joins from elsewhere, as before for a run that is resumed.
    Raises UsageError."""
    if aggregate.opened is not None and options.bind is None:
        return aggregate.opened.endpoint
    bind = options.bind or (DEFAULT_BIND if plan.fleet.expect_agents else LOCAL_ONLY_BIND)
    try:
        return to_bind(parse_endpoint(bind)).tcp
    except UsageError as error:
        raise UsageError(f"--bind: {error}") from error


def _invite(plan: Plan, bound: Endpoint, credentials: Credentials | None, view: LiveView) -> str:
    """Say how agents of other machines join, if any are expected. Returns the command."""
    where = reachable_at(bound, plan.target.url)
    if plan.fleet.expect_agents:
        if note := loopback_note(bound):
            view.note(note)
        view.note(invitation(bound, where, credentials, contained=in_container(os.environ)))
    return join_command(where, credentials)


def _deletion(plan: Plan, known: Aggregate) -> Callable[[DeletionProgress], None]:
    """Deletes the plan's keys after the run. known: what is in the journal when this coordinator begins; one before it
    may have deleted some keys already."""
    before = known.cleaned.deleted if known.cleaned is not None else 0
    read = known.readings.get(Reading.AFTER) if known.cleaned is None else None

    def delete(tally: DeletionProgress) -> None:
        tally.earlier = before
        delete_plan_keys(plan, tally, read.keys if read is not None else None)

    return delete


def _run(setup: Setup, folder: RunFolder) -> Run:
    aggregate = folder.aggregate
    if aggregate.opened is None or aggregate.started is None:
        return Run(setup, monotonic_ns(), aggregate)
    return Run.resumed(
        setup,
        aggregate.started.t0_ns,
        journaled_agents(aggregate),
        monotonic_ns(),
        after=after_load(aggregate),
        written=aggregate,
        ended=folder.has_ended,
    )

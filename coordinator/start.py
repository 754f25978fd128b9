"""`coordinator start`: check and prepare the target, open what the run needs, serve the run, and report it.

Opened in this order, and closed in the reverse order:

1. the embedded server: agents need it from the beginning, and the ledger reads its counters at the end
2. the sockets
3. the live view
4. local agents, which need the sockets to say goodbye

Problems with the target, the token or the address are found before any agent starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import msgspec
from rich.console import Console

from common.clock import monotonic_ns
from common.errors import EXIT_OK, InvalidResultError, UsageError, named
from common.machine import open_files_limit, this_host
from common.plan.loading.secrets import secret_variables, with_secrets_of
from common.plan.scenarios import load_end_ns, map_targets, scenario_plans, scenario_subject, target_subject, targets_of
from common.plan.schema import CleanUp, Plan
from common.program.signals import Signals, caught_signals
from common.program.standard_streams import explained
from common.protocol.endpoint import Endpoint, parse_endpoint, to_bind
from common.protocol.listener import Listener
from common.protocol.token import Credentials, coordinator_credentials
from common.protocol.token_sources import KEY, TOKEN_FILE
from common.protocol.transport import Context
from common.units import NS_PER_S, counted
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.verdict import Level
from coordinator.core.actions import End
from coordinator.core.run import Run
from coordinator.core.setup import Setup
from coordinator.embedded import open_embedded
from coordinator.join_command import in_container, invitation, join_command, loopback_note, reachable_at
from coordinator.journal.records import CountersRead, Reading, RunOpened, TargetFacts
from coordinator.live.view import LiveView, open_live
from coordinator.local_agents import LocalAgents
from coordinator.loop import Coordinator, after_load, journaled_agents
from coordinator.plan_view import expected_agents
from coordinator.report.printing import console_for, print_report, say
from coordinator.report.run_files import ERROR_FILE, JOURNAL_FILE, write_run_files
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from coordinator.report.summary_types import Summary
from coordinator.run_folder import RunFolder, new_run_folder, new_run_id, reopen_run_folder
from coordinator.servers.cleanup import CleanUpThread, DeletionProgress, delete_plan_keys
from coordinator.servers.commandstats import read_server_counts
from coordinator.servers.facts import probe
from coordinator.servers.preflight import check_commands
from coordinator.servers.sampler import LONGEST_S, ServerSampler
from coordinator.servers.setup_commands import flush, set_up
from coordinator.start_options import DEFAULT_BIND, StartOptions

LOCAL_ONLY_BIND = "tcp://127.0.0.1:*"


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. text: why it did not end as planned. summary: None if the run never began. interrupted_at_end:
    the user interrupted when there was nothing left to stop. write_errors: a line for each file that could not be
    written."""

    exit_code: int
    text: str
    summary: Summary | None = None
    interrupted_at_end: bool = False
    write_errors: tuple[str, ...] = ()


def start(plan: Plan, options: StartOptions) -> int:
    """Run a plan and print its report. Returns the exit code. Raises StampedeError if the run cannot start."""
    stderr = console_for(stderr=True)
    folder = (
        new_run_folder(options.out, new_run_id())
        if options.resume is None
        else reopen_run_folder(options.resume, options.out)
    )
    result = run_plan(plan, options, folder, stderr)
    code = result.exit_code
    if (summary := result.summary) is not None:
        draw = partial(print_summary, summary=summary, hide_histogram=options.hide_histogram)
        code = write_report(draw, summary.to_json(), options, stderr, result.write_errors, code)
        if not result.write_errors and not options.silent:
            say(stderr, f"run folder: {folder.path}")
    if result.text and result.exit_code:
        say(stderr, f"coordinator: {result.text}")
    return code


def write_report(
    draw: Callable[[Console], None],
    json: str,
    options: StartOptions,
    stderr: Console,
    write_errors: Sequence[str],
    code: int,
) -> int:
    """Print a report on stdout, and errors of writing it or the files of the run on stderr.

    draw: prints the report as text; json: the report as JSON. write_errors: a line for each file of the run folder that
    could not be written. code: the run's exit code. Returns `code`; but if files are missing and `code` is EXIT_OK, the
    exit code of a usage error. It is no error if only stdout cannot be written: the run folder has the report.
    """
    lost = print_report(draw, json if options.json else None, None if options.silent else stderr)
    for line in write_errors:
        say(stderr, f"coordinator: {line}")
    if lost is not None:
        where = "the run's folder cannot be written either" if write_errors else "it is in the run's folder"
        say(stderr, f"coordinator: cannot write the summary to stdout: {lost}; {where}")
    return code or (UsageError.exit_code if write_errors else EXIT_OK)


def run_plan(plan: Plan, options: StartOptions, folder: RunFolder, stderr: Console) -> RunResult:
    """Run a plan, write the files of its folder, and close the folder. Raises StampedeError if the run cannot start."""
    with ExitStack() as stack:
        stack.enter_context(folder)
        _confirm_flush(plan, options)
        plan = _with_agents(plan, resuming=folder.is_resumed)
        endpoint = _endpoint(plan, options, folder.aggregate)
        if not folder.is_resumed:
            urls = {
                name: stack.enter_context(open_embedded(target.embedded)).url
                for name, target in targets_of(plan).items()
                if target.embedded is not None
            }
            plan = _with_urls(plan, urls)
        if folder.aggregate.opened is not None:
            # Do not query the targets of a resumed run: one may be down, and the agents' results are collected anyway.
            facts = _known_facts(folder.aggregate.opened)
            # Use the plan of the journal; only the passwords come from the command line or the environment.
            known = _with_urls(folder.aggregate.opened.plan, {name: each.url for name, each in facts.items()})
            plan = with_secrets_of(known, plan)
        else:
            facts = {}
            for name, target in targets_of(plan).items():
                with named(target_subject(name)):
                    facts[name] = probe(target)
            for scenario in scenario_plans(plan):
                with named(scenario_subject(plan, scenario)):
                    check_commands(scenario.plan)
            facts = _prepare_targets(plan, facts, _discard_message if options.quiet else partial(say, stderr))
        # Before the sockets are opened: a KeyboardInterrupt during their creation would leave a socket open, and
        # closing the context would wait for that socket without end.
        with caught_signals() as signals:
            try:
                end = _serve(plan, options, folder, facts, stderr, endpoint, signals)
            except Exception as error:
                if folder.aggregate.started is None:
                    folder.discard()
                if folder.aggregate.closed is None or folder.has_ended:
                    raise
                end = End(*explained(error, folder.path / ERROR_FILE), folder.aggregate.closed.outcome)
            interrupted_at_end = signals.take() > 0
        if end.outcome is None:
            return RunResult(end.exit_code, end.text)
        return _report(end, folder, interrupted_at_end)


def _report(end: End, folder: RunFolder, interrupted_at_end: bool) -> RunResult:
    """Build the summary of a run that began, and write its files."""
    opened = folder.aggregate.opened
    assert opened is not None
    try:
        summary = build_summary(folder.aggregate)
    except Exception as error:  # noqa: BLE001 - after a bug, name the journal, which has the results
        code, text = explained(error, folder.path / ERROR_FILE)
        return RunResult(
            end.exit_code or code, f"cannot report on the run: {text}; its records are in {folder.path / JOURNAL_FILE}"
        )
    write_errors = write_run_files(folder.path, summary, folder.aggregate)
    if not write_errors and not folder.is_intact:
        write_errors = [f"{folder.path / JOURNAL_FILE}: the journal was deleted or moved during the run"]
    invalid = end.exit_code == EXIT_OK and summary.verdict.level is Level.INVALID
    code = InvalidResultError.exit_code if invalid else end.exit_code
    return RunResult(code, end.text, summary, interrupted_at_end, tuple(write_errors))


def _confirm_flush(plan: Plan, options: StartOptions) -> None:
    """What cannot be undone is said twice: a plan may be another's, and a command line be repeated in haste."""
    flushes = any(scenario.plan.workload.flush_before for scenario in scenario_plans(plan))
    if flushes and not options.yes_flush and options.resume is None:
        raise UsageError(
            "workload.flush_before: the plan empties the target's database before the run; add --yes-flush to confirm, "
            "or remove flush_before from the plan"
        )


def _discard_message(text: str) -> None:
    """Ignore a progress message, for --quiet."""


def _known_facts(opened: RunOpened) -> dict[str, TargetFacts]:
    """The facts of every target of a run, by name."""
    return {name: opened.targets.get(name, opened.target) for name in targets_of(opened.plan)}


def _prepare_targets(
    plan: Plan, facts: Mapping[str, TargetFacts], show_progress: Callable[[str], None]
) -> dict[str, TargetFacts]:
    """Flush and set up the targets, before any agent is waited for. Returns their facts afterwards."""
    prepared = dict(facts)
    scenarios = scenario_plans(plan)
    flushed = dict.fromkeys(each.target for each in scenarios if each.plan.workload.flush_before)
    for name in flushed:
        with named(target_subject(name)):
            show_progress(f"flushed {counted(flush(targets_of(plan)[name]), 'key')} of {facts[name].url}")
    for scenario in scenarios:
        with named(scenario_subject(plan, scenario)):
            calls = set_up(scenario.plan, show_progress)
        if calls:
            of = f" of {subject}" if (subject := scenario_subject(plan, scenario)) else ""
            show_progress(f"setup{of}: {counted(calls, 'call')}")
        if calls or scenario.target in flushed:
            # The report compares the preload with the keys that were there when it began.
            keys = probe(scenario.plan.target).keys
            prepared[scenario.target] = msgspec.structs.replace(prepared[scenario.target], keys=keys)
    return prepared


def _serve(
    plan: Plan,
    options: StartOptions,
    folder: RunFolder,
    facts: Mapping[str, TargetFacts],
    stderr: Console,
    endpoint: str,
    signals: Signals,
) -> End:
    credentials = _credentials(options, folder)
    curve = None if credentials is None else credentials.coordinator
    local = plan.fleet.local_agents
    with ExitStack() as stack:
        context = stack.enter_context(Context())
        listener = stack.enter_context(Listener(context, endpoint, curve))
        view = stack.enter_context(open_live(stderr, options.quiet))
        bound = parse_endpoint(listener.endpoint)
        for name, each in facts.items():
            of = f", target {name}," if name else ""
            view.note(f"run {folder.run_id}{of} against {each.server} ({each.topology}) at {each.url}")
        view.note(f"listening on {listener.endpoint}" + (" without encryption" if curve is None else ""))
        setup = Setup(
            plan=plan,
            run_id=folder.run_id,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            target=next(iter(facts.values())),
            targets={name: each for name, each in facts.items() if name},
            expected=local + plan.fleet.expect_agents,
            endpoint=listener.endpoint,
            join=_show_join_command(plan, bound, credentials, view),
            host=this_host(),
            open_files_limit=open_files_limit(),
            key_fingerprint="" if credentials is None else credentials.fingerprint,
        )
        if folder.has_ended:
            lost = [
                name for name, agent in folder.aggregate.agents.items() if not agent.finished and not agent.has_left
            ]
            if lost:
                text = f"the run has ended: collecting results of {', '.join(lost)}; Ctrl-C ends the wait"
                view.note(text, trouble=True)
        elif stop := folder.aggregate.load_stop:
            view.note(
                f"draining, because the load was already being stopped ({stop.reason}); Ctrl-C stops at once",
                trouble=True,
            )
        agents = stack.enter_context(LocalAgents())
        if not folder.is_resumed:
            agents.start(
                local,
                # A coordinator that listens on all interfaces also listens on loopback.
                str(Endpoint("127.0.0.1", bound.port) if bound.is_any else bound),
                processes=plan.fleet.processes_per_local_agent,
                token=None if credentials is None else credentials.token,
                wait_s=float(plan.fleet.wait_s),
                secret_variables=[
                    variable for each in targets_of(plan).values() for variable in secret_variables(each)
                ],
            )
        delete = _deletion(plan, folder.aggregate)
        explain = partial(explained, file=folder.path / ERROR_FILE)
        longest_s = _longest_s(plan)
        # Closed first, because their records are not taken any more.
        samplers = [
            stack.enter_context(ServerSampler(target, name=name, longest_s=longest_s, explain=explain))
            for name, target in targets_of(plan).items()
        ]
        coordinator = Coordinator(
            _run(replace(setup, local_pids=agents.pids), folder),
            folder.aggregate,
            listener=listener,
            signals=signals,
            local_agents=agents,
            view=view,
            open_journal=lambda first: folder.open_journal(first.plan if isinstance(first, RunOpened) else plan),
            read_counts=partial(_read_counts, plan, samplers),
            clean=lambda: CleanUpThread(delete, explain),
            explain=explain,
            samplers=samplers,
        )
        return coordinator.serve()


def _credentials(options: StartOptions, folder: RunFolder) -> Credentials | None:
    """Return the CURVE keys; None with --insecure. Raises UsageError if a resumed run was started with other keys,
    because its agents could not connect, and would not learn why."""
    opened = folder.aggregate.opened
    used = None if opened is None else opened.key_fingerprint  # None: a new run, or a journal of an earlier release
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
    """Return the plan with one local agent if it expects no agents, so that a first try needs only one command."""
    fleet = plan.fleet
    if resuming or fleet.local_agents or fleet.expect_agents:
        return plan
    return msgspec.structs.replace(
        plan, fleet=msgspec.structs.replace(fleet, local_agents=len(expected_agents(plan, 1)))
    )


def _with_urls(plan: Plan, urls: Mapping[str, str]) -> Plan:
    """The plan with these URLs of its targets, by name."""
    return map_targets(plan, lambda name, target: msgspec.structs.replace(target, url=urls.get(name, target.url)))


def _longest_s(plan: Plan) -> int:
    """How long the load may last, with a margin for what comes after it."""
    end_ns = load_end_ns(plan)
    return LONGEST_S if end_ns is None else (end_ns + plan.fleet.drain_s.ns) // NS_PER_S + 60


def _read_counts(plan: Plan, samplers: Sequence[ServerSampler], when: Reading) -> CountersRead:
    """The counters of every target; those of named targets are in `targets`, and the first one also at the top. The
    servers are described first, so that all samples lie between the two readings."""
    for sampler in samplers:
        if when is Reading.BEFORE:
            sampler.describe()
        else:
            sampler.finish()
    counts = {name: read_server_counts(target, when) for name, target in targets_of(plan).items()}
    first = counts.get("") or next(iter(counts.values()))
    return msgspec.structs.replace(first, targets={name: each for name, each in counts.items() if name})


def _endpoint(plan: Plan, options: StartOptions, aggregate: Aggregate) -> str:
    """Return the address to listen at: a free port on loopback if all agents are local, the recorded address for a
    resumed run. Raises UsageError for an invalid --bind."""
    if aggregate.opened is not None and options.bind is None:
        return aggregate.opened.endpoint
    bind = options.bind or (DEFAULT_BIND if plan.fleet.expect_agents else LOCAL_ONLY_BIND)
    try:
        return to_bind(parse_endpoint(bind)).tcp
    except UsageError as error:
        raise UsageError(f"--bind: {error}") from error


def _show_join_command(plan: Plan, bound: Endpoint, credentials: Credentials | None, view: LiveView) -> str:
    """Say how agents of other machines join, if any are expected. Returns the command."""
    where = reachable_at(bound, next(iter(targets_of(plan).values())).url)
    if plan.fleet.expect_agents:
        if note := loopback_note(bound):
            view.note(note)
        view.note(invitation(bound, where, credentials, contained=in_container(os.environ)))
    return join_command(where, credentials)


def _deletion(plan: Plan, journaled: Aggregate) -> Callable[[DeletionProgress], None]:
    """Return a function that deletes the plan's keys after the run. journaled: the records from before this coordinator
    began: an earlier coordinator of the run may have deleted some keys already."""
    before = journaled.cleaned.deleted if journaled.cleaned is not None else 0
    read = journaled.readings.get(Reading.AFTER) if journaled.cleaned is None else None

    def delete(tally: DeletionProgress) -> None:
        tally.earlier = before
        counted_targets: set[str] = set()
        for scenario in scenario_plans(plan):
            if scenario.plan.workload.clean_up is CleanUp.NONE:
                continue
            reading = None if read is None or scenario.target in counted_targets else read
            if reading is not None and scenario.target:
                reading = reading.targets.get(scenario.target)
            delete_plan_keys(scenario.plan, tally, reading.keys if reading is not None else None)
            counted_targets.add(scenario.target)

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

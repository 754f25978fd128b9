"""The verdict: can the numbers of a run be trusted? Each rule that is broken gives a sentence with its figures.

    trusted   no rule is broken
    suspect   the numbers are exact, but may be misleading, or could not be checked completely
    invalid   the numbers are wrong, or there are none: exit code 7

Problems of the server (errors, slow replies) are results, not reasons for distrust. A slow or hot endpoint is named in
a note.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from common.plan.schema import Arrivals
from common.units import counted
from coordinator.analysis.by_endpoint import notable_endpoints
from coordinator.analysis.generator import BUSY_SHARE, generator_limits
from coordinator.analysis.key_space import preload_mismatch
from coordinator.analysis.ledger import Ledger, scenario_ledger, target_ledgers
from coordinator.analysis.leg_results import StageResult, stage_results
from coordinator.analysis.missing_connections import missing_connections
from coordinator.analysis.totals.aggregate import Aggregate, scenarios_by_target
from coordinator.analysis.totals.tallies import AgentTally
from coordinator.analysis.unassigned_shares import unassigned_clause, unassigned_sentence, unassigned_shares
from coordinator.analysis.unfinished_run import unfinished_reason
from coordinator.analysis.unsent_operations import why_unsent

UNSENT_SHARE = 0.001
START_SKEW_MS = 100.0
CLOCK_ERROR_MS = 50.0
LOOP_LAG_MS = 1000.0
RATE_ACHIEVED = 0.99
_NAMED = 5


class Level(enum.Enum):
    """How far the numbers of a run can be trusted."""

    TRUSTED = "trusted"
    SUSPECT = "suspect"
    INVALID = "invalid"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The worst level of all broken rules, and a sentence for each, the worst first. notes: sentences about the target
    that are no reason for distrust: endpoints that are slow or hot."""

    level: Level
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """The input of the rules."""

    run: Aggregate
    ledger: Ledger
    stages: tuple[StageResult, ...]

    @property
    def measured(self) -> list[StageResult]:
        """The measured stages."""
        return [stage for stage in self.stages if stage.leg.measured]

    @property
    def agents(self) -> list[AgentTally]:
        """All agents."""
        return list(self.run.agents.values())

    @property
    def ok(self) -> int:
        """Operations that succeeded, in all stages."""
        return sum(stage.tally.ok for stage in self.stages)


Rule = Callable[[Evidence], Iterator[str]]


def judge(run: Aggregate, ledger: Ledger) -> Verdict:
    """Apply every rule to a run; with several scenarios, to each of them."""
    if run.parts:
        findings = _findings_of_scenarios(run)
    else:
        evidence = Evidence(run, ledger, stage_results(run, ledger))
        findings = [(level, reason) for level, rule in RULES for reason in rule(evidence)]
    worst = Level.TRUSTED
    for level in (Level.SUSPECT, Level.INVALID):
        worst = level if any(found is level for found, _ in findings) else worst
    return Verdict(level=worst, reasons=tuple(reason for _, reason in findings), notes=tuple(_notes(run)))


def _notes(run: Aggregate) -> Iterator[str]:
    for part in run.scenarios:
        of = f"{part.name}: " if run.parts else ""
        yield from (f"{of}{note}" for note in notable_endpoints(part))


def _findings_of_scenarios(run: Aggregate) -> list[tuple[Level, str]]:
    """Reasons begin with the name of their scenario, except those that all scenarios have. What a server counted for
    several scenarios is judged for these together."""
    evidence: dict[str, Evidence] = {}
    of_servers: list[Evidence] = []
    for target, scenarios in scenarios_by_target(run).items():
        is_shared = len(scenarios) > 1
        for part in scenarios:
            ledger = scenario_ledger(run, part)
            known = msgspec.structs.replace(ledger, note=None) if is_shared else ledger
            evidence[part.name] = Evidence(part, known, stage_results(part, ledger))
        if is_shared:
            stages = tuple(stage for part in scenarios for stage in evidence[part.name].stages)
            of_servers.append(Evidence(scenarios[0], target_ledgers(run)[target], stages))
    waiting = [part.name for part in run.parts if _was_waiting(part)]
    if len(waiting) == len(run.parts):
        waiting = []  # nothing was measured at all
    findings: list[tuple[Level, str]] = []
    for level, rule in RULES:
        reasons = {
            name: () if rule is _nothing_done and name in waiting else tuple(rule(each))
            for name, each in evidence.items()
        }
        common = _in_all(list(reasons.values()))
        named = [f"{name}: {each}" for name, found in reasons.items() for each in found if each not in common]
        of_server = [reason for each in of_servers if rule in _SERVER_RULES for reason in rule(each)]
        findings += [(level, reason) for reason in (*common, *named, *of_server)]
    findings += [(Level.SUSPECT, reason) for reason in preload_mismatch(run)]
    findings += [(Level.SUSPECT, f"{name}: The load was stopped before this scenario began.") for name in waiting]
    return findings


def _was_waiting(part: Aggregate) -> bool:
    """Whether the load was stopped before this scenario began."""
    stop, started = part.load_stop, part.started
    return stop is not None and started is not None and stop.at_ns - started.t0_ns < part.timeline.legs[0].begin_ns


def _in_all(reasons: Sequence[tuple[str, ...]]) -> list[str]:
    """The reasons that several scenarios all have, in order."""
    return [each for each in reasons[0] if all(each in others for others in reasons)] if len(reasons) > 1 else []


def _nothing_done(evidence: Evidence) -> Iterator[str]:
    ended = sum(stage.tally.operations for stage in evidence.measured)
    if not ended:
        yield "No operation ended."
    elif not any(stage.tally.ok for stage in evidence.measured):
        yield f"No operation succeeded: all {ended:,} ended in an error."


def _frames_incomplete(evidence: Evidence) -> Iterator[str]:
    # (agent, operations in its final report, operations in its frames)
    short = [
        (agent.facts.agent_id, agent.end.final.counted, agent.counted)
        for agent in evidence.agents
        if agent.end and agent.end.final and agent.end.final.counted != agent.counted
    ]
    if not short:
        return
    subject = (
        f"Agent {short[0][0]}" if len(short) == 1 else f"{len(short)} agents ({_listed(name for name, _, _ in short)})"
    )
    reported = counted(sum(final for _, final, _ in short), "operation")
    in_frames = sum(frames for _, _, frames in short)
    yield f"{subject} reported {reported}, but {'its' if len(short) == 1 else 'their'} frames contain {in_frames:,}."


def _never_ended(evidence: Evidence) -> Iterator[str]:
    finals = [agent.end.final for agent in evidence.agents if agent.end and agent.end.final]
    whole = len(finals) == len(evidence.agents) and all(final.drained and not final.processes_lost for final in finals)
    ledger = evidence.ledger
    if whole and ledger.issued != ledger.counted:
        yield f"Workers began {counted(ledger.issued, 'operation')}, but {ledger.counted:,} ended."


def _server_did_less(evidence: Evidence) -> Iterator[str]:
    calls = evidence.ledger.server_calls
    if calls is not None and calls < evidence.ok:
        done = f"{counted(evidence.ok, 'operation')} {'was' if evidence.ok == 1 else 'were'}"
        yield f"{done} counted as successful, but the server counted only {counted(calls, 'call')}."


def _unaccounted(evidence: Evidence) -> Iterator[str]:
    ledger = evidence.ledger
    if not ledger.unaccounted or ledger.server_calls is None:
        return
    room = f" ({ledger.uncertain:,} of them may or may not have reached the server)" if ledger.uncertain else ""
    lost_processes = any(not agent.finished for agent in evidence.agents) or bool(evidence.run.workers_lost)
    cause = "lost processes did not report everything" if lost_processes else "did other clients use the server?"
    yield (
        f"{counted(ledger.unaccounted, 'operation')} {'is' if ledger.unaccounted == 1 else 'are'} unaccounted for: "
        f"workers began {ledger.issued:,}{room}, the server counted "
        f"{counted(ledger.server_calls, 'call')}; {cause}{'.' * lost_processes}"
    )


def _share_unassigned(evidence: Evidence) -> Iterator[str]:
    if sentence := unassigned_sentence(evidence.run):
        yield sentence


def _server_not_read(evidence: Evidence) -> Iterator[str]:
    if evidence.ledger.note:
        yield f"The server's own count could not be compared: {evidence.ledger.note}."


def _never_closed(evidence: Evidence) -> Iterator[str]:
    if why := unfinished_reason(evidence.run):
        yield f"{why[:1].upper()}{why[1:]}. The report covers what was accepted until then."


def _agents_lost(evidence: Evidence) -> Iterator[str]:
    # Of several scenarios, only those of which the agent had pools lost something.
    concerned = [agent for agent in evidence.agents if agent.facts.pools or evidence.run.scenario is None]
    lost = [agent for agent in concerned if agent.end is not None and not agent.finished]
    if lost:
        names = _listed(agent.facts.agent_id for agent in lost)
        kept = sum(agent.counted for agent in lost)
        yield (
            f"{len(lost)} of {counted(len(concerned), 'agent')} lost ({names}): the report includes the "
            f"{counted(kept, 'operation')} reported before; later operations are unknown."
        )


def _workers_lost(evidence: Evidence) -> Iterator[str]:
    noted = len(evidence.run.workers_lost)
    said = sum(agent.end.final.processes_lost for agent in evidence.agents if agent.end and agent.end.final)
    if lost := max(noted, said):
        yield f"{counted(lost, 'worker process')} died during the run; their unreported operations are lost."


def _not_drained(evidence: Evidence) -> Iterator[str]:
    cut = [a.facts.agent_id for a in evidence.agents if a.end and a.end.final and not a.end.final.drained]
    if cut:
        yield f"Workers of {_listed(cut)} were stopped while operations were in flight."


def _generator_busy(evidence: Evidence) -> Iterator[str]:
    yield from generator_limits(evidence.run, evidence.stages)


def _machine_busy(evidence: Evidence) -> Iterator[str]:
    """Agents on one machine measure the same CPU, so each machine counts once, by its highest measurement."""
    busy: dict[str, float] = {}
    agents: dict[str, list[str]] = {}
    for agent in evidence.agents:
        percent = agent.end.host_cpu_percent_mean if agent.end else None
        if percent is not None and percent >= 100 * BUSY_SHARE:
            host = agent.facts.host
            busy[host] = max(percent, busy.get(host, 0.0))
            agents.setdefault(host, []).append(agent.facts.agent_id)
    if not busy:
        return
    if len(busy) == 1:
        [(host, percent)] = busy.items()
        on_it = agents[host]
        whose = f"of agent {on_it[0]}" if len(on_it) == 1 else f"{host}, of {len(on_it)} agents,"
        found = f"The machine {whose} was {percent:.0f}% busy on all its cores"
    else:
        listed = _listed(f"{host} {percent:.0f}%" for host, percent in busy.items())
        found = f"{len(busy)} machines were busy on all their cores ({listed})"
    yield f"{found}: the generator, or another program on the machine, may have been the limit."


def _loop_blocked(evidence: Evidence) -> Iterator[str]:
    worst = max((agent.end.lag_ms_max for agent in evidence.agents if agent.end), default=0.0)
    if worst > LOOP_LAG_MS:
        yield f"An agent's own loop was blocked for {worst:,.0f} ms: its machine was overloaded or suspended."


def _started_apart(evidence: Evidence) -> Iterator[str]:
    skews_ms = [abs(a.end.final.start_skew_ns) / 1e6 for a in evidence.agents if a.end and a.end.final]
    if skews_ms and max(skews_ms) > START_SKEW_MS:
        worst_ms = max(skews_ms)
        yield f"An agent started {worst_ms:,.0f} ms off its first intended send time (limit {START_SKEW_MS:.0f} ms)."


def _clocks_apart(evidence: Evidence) -> Iterator[str]:
    errors_ms = {
        agent.facts.agent_id: agent.end.clock_rtt_us / 2e3
        for agent in evidence.agents
        if agent.end and agent.end.clock_rtt_us is not None and agent.end.clock_rtt_us / 2e3 > CLOCK_ERROR_MS
    }
    if not errors_ms:
        return
    worst_ms = max(errors_ms.values())
    if len(errors_ms) == 1:
        found = f"The clock of agent {_listed(errors_ms)} is known only to within {worst_ms:,.0f} ms, so its seconds"
    else:
        found = f"The clocks of {len(errors_ms)} agents ({_listed(errors_ms)}) are known only to within "
        found += f"{worst_ms:,.0f} ms, so their seconds"
    yield f"{found} may be shifted against the seconds of other agents."


def _rate_missed(evidence: Evidence) -> Iterator[str]:
    plan = evidence.run.opened.plan if evidence.run.opened else None
    by_chance = plan is not None and plan.load.arrivals is Arrivals.POISSON
    several = len(evidence.measured) > 1
    for stage in evidence.measured:
        # A Poisson process is off by more than four standard deviations once in 30,000 runs.
        chance = 4 * stage.wanted**0.5 if by_chance else 1.0
        if stage.duration_s > 0 and stage.in_time < RATE_ACHIEVED * stage.wanted - chance:
            mean = " on average" if stage.leg.is_ramp else ""
            of = f" of {stage.leg.name}" if several else ""
            # The sentence on unsent operations gives the cause already.
            cause = "" if _many_unsent(evidence) else _cause_of_missing(evidence, stage)
            yield (
                f"The target rate{of} was {stage.wanted / stage.duration_s:,.0f}/s{mean}, the achieved rate "
                f"{stage.achieved_per_s:,.0f}/s ({stage.in_time / stage.wanted:.1%}){': ' * bool(cause)}{cause}."
            )


def _cause_of_missing(evidence: Evidence, stage: StageResult) -> str:
    """Return why a stage missed its rate: a share without an agent, if that explains half of the difference."""
    number = evidence.stages.index(stage)
    shares = [share for share in unassigned_shares(evidence.run) if share.due[number]]
    missed = sum(share.due[number] for share in shares)
    if missed and 2 * missed >= stage.wanted - stage.in_time:
        return unassigned_clause(shares)
    return why_unsent(evidence.run, [stage])


def _unsent(evidence: Evidence) -> Iterator[str]:
    if unsent := _many_unsent(evidence):
        cause = why_unsent(evidence.run, evidence.measured)
        cause = cause or "all workers were busy (see errors and response time)"
        yield f"{unsent:,} operations were never sent: {cause}."


def _many_unsent(evidence: Evidence) -> int:
    """Return how many operations were never sent; 0 if they are too few to report."""
    unsent = sum(stage.tally.unsent for stage in evidence.measured)
    issued = sum(stage.issued for stage in evidence.measured)
    # At the end, each thread may have one operation that is due: that is no backlog.
    threads = evidence.run.opened.threads_total if evidence.run.opened else 0
    return unsent if unsent > max(threads, UNSENT_SHARE * issued) else 0


def _listed(names: Iterable[str]) -> str:
    """Return the first names and how many more there are, because a fleet may have hundreds."""
    every = list(names)
    more = len(every) - _NAMED
    return ", ".join(every[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _connections_missing(evidence: Evidence) -> Iterator[str]:
    yield from missing_connections(evidence.run)


def _keys_missing(evidence: Evidence) -> Iterator[str]:
    yield from preload_mismatch(evidence.run)


RULES: tuple[tuple[Level, Rule], ...] = (
    (Level.INVALID, _nothing_done),
    (Level.INVALID, _frames_incomplete),
    (Level.INVALID, _never_ended),
    (Level.INVALID, _server_did_less),
    (Level.SUSPECT, _never_closed),
    (Level.SUSPECT, _agents_lost),
    (Level.SUSPECT, _share_unassigned),
    (Level.SUSPECT, _workers_lost),
    (Level.SUSPECT, _not_drained),
    (Level.SUSPECT, _unaccounted),
    (Level.SUSPECT, _server_not_read),
    (Level.SUSPECT, _keys_missing),
    (Level.SUSPECT, _connections_missing),
    (Level.SUSPECT, _generator_busy),
    (Level.SUSPECT, _machine_busy),
    (Level.SUSPECT, _loop_blocked),
    (Level.SUSPECT, _started_apart),
    (Level.SUSPECT, _clocks_apart),
    (Level.SUSPECT, _rate_missed),
    (Level.SUSPECT, _unsent),
)
"""The worst first."""

_SERVER_RULES = frozenset({_server_did_less, _unaccounted, _server_not_read})
"""Rules that compare with the server's counts, which are those of all scenarios on it."""

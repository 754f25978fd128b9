"""The mutants: small, plausible errors on lines that decide what is counted, sent or reported."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old` occurs exactly once in `file` and is replaced by `new`."""

    file: str
    old: str
    new: str


_HISTOGRAM = "common/metrics/histogram.py"
_INTERVALS = "common/metrics/intervals.py"
_PACER = "agent/worker/pacing/pacer.py"
_STAGED = "agent/worker/pacing/staged_load.py"
_ROWS = "agent/worker/metrics/rows.py"
_COLLECTOR = "agent/worker/metrics/collector.py"
_LEASE = "agent/core/lease.py"
_OUTBOX = "agent/core/outbox.py"
_TRACKER = "agent/core/assignment_tracker.py"
_LINK = "agent/core/link.py"
_SESSION = "agent/core/session.py"
_FRAMES = "coordinator/journal/frame_checks.py"
_REGISTRY = "coordinator/core/registry.py"
_CONVERSATION = "coordinator/core/conversation.py"
_RUN_STATE = "coordinator/core/run_state.py"
_DEALT = "coordinator/core/dealt_plan.py"
_LEDGER = "coordinator/analysis/ledger.py"
_AGGREGATE = "coordinator/analysis/totals/aggregate.py"
_TALLIES = "coordinator/analysis/totals/tallies.py"
_VERDICT = "coordinator/analysis/verdict.py"
_CODEC = "common/protocol/codec.py"
_INBOX = "common/protocol/inbox.py"

MUTANTS = (
    # counts of histograms, and how they merge
    Mutant(
        _HISTOGRAM,
        "shift = max(value.bit_length() - (GROUPING_POWER + 1), 0)",
        "shift = max(value.bit_length() - GROUPING_POWER, 0)",
    ),
    Mutant(
        _HISTOGRAM,
        "return lowest, lowest + (np.int64(1) << shifts) - 1",
        "return lowest, lowest + (np.int64(1) << shifts)",
    ),
    Mutant(
        _HISTOGRAM, "max(1, -(-round(q * 1e9) * self.count // 10**9))", "max(1, round(q * 1e9) * self.count // 10**9)"
    ),
    Mutant(_HISTOGRAM, 'side="left"', 'side="right"'),
    Mutant(_HISTOGRAM, "min(max(int(value), self.minimum), self.maximum)", "int(value)"),
    Mutant(_HISTOGRAM, "self._clamped += int(", "self._clamped = int("),
    Mutant(_HISTOGRAM, "counts.min() >= 1", "counts.min() >= 0"),
    Mutant(_HISTOGRAM, "0 <= each.clamped <= each.count", "0 <= each.clamped"),
    Mutant(
        _INTERVALS,
        "[list[int]], int] = sum if how is Merge.PARALLEL else max",
        "[list[int]], int] = max if how is Merge.PARALLEL else sum",
    ),
    Mutant(
        _INTERVALS,
        "[list[int]], int] = max if how is Merge.PARALLEL else sum",
        "[list[int]], int] = sum if how is Merge.PARALLEL else max",
    ),
    Mutant(_INTERVALS, "    int: sum,", "    int: max,"),
    Mutant(_INTERVALS, "len(counts) >= MAX_NAMES - 1:", "len(counts) >= MAX_NAMES:"),
    Mutant(_INTERVALS, "unsent=sum(part.unsent for part in parts),", "unsent=max(part.unsent for part in parts),"),
    Mutant(_INTERVALS, "last=max(part.last for part in parts),", "last=parts[-1].last,"),
    # when operations are due, and which were never sent
    Mutant(_PACER, "turn += (thread - turn) % threads", "turn += thread % threads"),
    Mutant(_PACER, "turn * numerator // denominator", "turn * (numerator // denominator)"),
    Mutant(_PACER, "mean_ns = threads * NS_PER_S / rate_per_s", "mean_ns = NS_PER_S / rate_per_s"),
    Mutant(_PACER, "if due_ns >= self._span.end_ns:", "if due_ns > self._span.end_ns:"),
    Mutant(_PACER, "sum(due_ns < end_ns for due_ns in times_ns)", "len(times_ns)"),
    Mutant(_PACER, "min(following, most - _COUNTED)", "min(following, most)"),
    Mutant(_PACER, "self.end_ns = min(self.end_ns, end_ns)", "self.end_ns = end_ns"),
    Mutant(
        _STAGED,
        "ceil(leg.due_before + leg.due(leg.end_ns)), threads)",
        "ceil(leg.due_before + leg.due(leg.end_ns)) + 1, threads)",
    ),
    Mutant(_STAGED, "counts = counts[counts < most]", "counts = counts[counts < most + 1]"),
    Mutant(_STAGED, "self._left -= size", "self._left -= 1"),
    Mutant(_STAGED, "missed[number] += left", "missed[self._number] += left"),
    Mutant(_STAGED, "size = min(self._batch - len(self._pending), self._room(leg))", "size = self._room(leg)"),
    # metrics of each second
    Mutant(
        _ROWS,
        "self.begun_after += int(counts[began_ns >= self._end_ns].sum())",
        "self.begun_after += int(counts[began_ns > self._end_ns].sum())",
    ),
    Mutant(_ROWS, "failed=EMPTY if done else self.service.histogram(),", "failed=EMPTY,"),
    Mutant(_ROWS, "is_known = known >= 0", "is_known = known > 0"),
    Mutant(_COLLECTOR, "late = second < fresh.start", "late = False"),
    Mutant(_COLLECTOR, "issued=issued, transactions=transactions)", "issued=issued, transactions=issued)"),
    Mutant(_COLLECTOR, "self.counted += interval.operations", "self.counted = interval.operations"),
    Mutant(_COLLECTOR, "unsent[last] += in_all - missed.total()", "unsent[last] += in_all"),
    Mutant(_COLLECTOR, "max(0, max(event[0], self._begin_ns) - t0_ns)", "max(0, event[0] - t0_ns)"),
    # the agent: lease, frames, worker processes, clock
    Mutant(_LEASE, "if self._countable_ns <= sent_ns <= now_ns:", "if sent_ns <= now_ns:"),
    Mutant(_LEASE, "self._from_ns = max(self._from_ns, sent_ns)", "self._from_ns = max(self._from_ns, now_ns)"),
    Mutant(
        _OUTBOX,
        "self._sealed[0].seq < min(next_seq, self.next_seq)",
        "self._sealed[0].seq <= min(next_seq, self.next_seq)",
    ),
    Mutant(
        _OUTBOX, "self._resend_from = max(0, self._resend_from - 1)", "self._resend_from = max(0, self._resend_from)"
    ),
    Mutant(_OUTBOX, "max(left.through, right.through)", "left.through"),
    Mutant(
        _OUTBOX, "yield _Waiting(-1, tuple(parts), fits=True)", "yield _Waiting(whole.through, tuple(parts), fits=True)"
    ),
    Mutant(_OUTBOX, "if not self._waiting or len(self._sealed) == WINDOW:", "if not self._waiting:"),
    Mutant(
        _TRACKER,
        "[process.through for process in self._processes if not process.over]",
        "[process.through for process in self._processes]",
    ),
    Mutant(_TRACKER, "if part.last <= through]", "if part.last < through]"),
    Mutant(_TRACKER, '"drained": all(', '"drained": any('),
    Mutant(_LINK, "and sample.rtt_ns <= MOST_ROUND_TRIP_NS", "and True"),
    Mutant(_LINK, "and self.silent_ns(now_ns) <= UNANSWERED_NS", "and True"),
    Mutant(_SESSION, "if envelope.incarnation != self.identity.incarnation:", "if False:"),
    Mutant("common/clock.py", "if sample.rtt_ns >= 0:", "if True:"),
    # the coordinator: which messages it accepts, which agents it waits for
    Mutant(_FRAMES, "if frame.seq >= most_frames:", "if False:"),
    Mutant(_FRAMES, "for second in seconds])) != interval.issued:", "for second in seconds])) > interval.issued:"),
    Mutant("coordinator/core/member.py", "min(stops_ns, self.end_ns)", "max(stops_ns, self.end_ns)"),
    Mutant(_REGISTRY, "return member if routing_id == proven else None", "return member"),
    Mutant(_CONVERSATION, "if frame.seq == member.next_seq and", "if frame.seq >= member.next_seq and"),
    Mutant(_CONVERSATION, "if final.next_seq != member.next_seq:", "if final.next_seq < member.next_seq:"),
    Mutant("coordinator/core/run_state.py", "self.success_ns += stalled_ns", "self.success_ns += 0"),
    Mutant("coordinator/core/takeover.py", "len(lost) <= fleet.tolerate_lost", "len(lost) < fleet.tolerate_lost"),
    Mutant(
        "coordinator/core/waiting.py",
        "if not all(member.is_over(now_ns, fence)",
        "if not any(member.is_over(now_ns, fence)",
    ),
    Mutant(_DEALT, "key=lambda agent: threads[agent] / processes[agent]", "key=lambda agent: threads[agent]"),
    Mutant(_DEALT, "first_thread += plan.pools[group].workers_per_pool", "first_thread += 1"),
    # the ledger, the aggregate, the verdict
    Mutant(_LEDGER, "max(0, *surpluses) + max(0, *shortfalls)", "max(0, *surpluses)"),
    Mutant(_LEDGER, "max(count - errors.get(kind, 0), 0)", "count"),
    Mutant(_LEDGER, "return round_trip * sum(", "return sum("),
    Mutant(
        _LEDGER,
        "return max(from_workers, from_frames) if final.processes_lost else from_workers",
        "return from_workers",
    ),
    Mutant(_LEDGER, "if then[name].run_id != now[name].run_id:", "if False:"),
    Mutant(_LEDGER, "transactions - failures, transactions + retried", "transactions, transactions + retried"),
    Mutant(_AGGREGATE, "if frame.seq < agent.next_seq:", "if frame.seq <= agent.next_seq - 2:"),
    Mutant(_AGGREGATE, "if agent.end is not None and agent.end.state is AgentOutcome.LOST:", "if False:"),
    Mutant(
        _AGGREGATE, "min(frame.through, self.complete_through) + 1))", "min(frame.through, self.complete_through)))"
    ),
    Mutant(_TALLIES, "count * (position + 1) // parts - count * position // parts", "count // parts"),
    Mutant(_TALLIES, "part.number <= through and agent_id not in self.open_peaks", "agent_id not in self.open_peaks"),
    Mutant(_VERDICT, "unsent > max(threads, UNSENT_SHARE * issued)", "unsent > UNSENT_SHARE * issued"),
    Mutant(_VERDICT, "chance = 4 * stage.wanted**0.5 if by_chance else 1.0", "chance = 1.0"),
    Mutant(
        "coordinator/analysis/backlog.py",
        "min(max(0, self._begun[second] - self._ended[second]), self._max_in_flight)",
        "max(0, self._begun[second] - self._ended[second])",
    ),
    # limits of what peers may send
    Mutant(_CODEC, "if not PROTOCOL_MIN <= version <= PROTOCOL_MAX and", "if not version <= PROTOCOL_MAX and"),
    Mutant(_CODEC, "if len(data) > MAX_MESSAGE_BYTES:", "if False:"),
    Mutant(_CODEC, "if containers > _MOST_CONTAINERS:", "if False:"),
    Mutant(_INBOX, "connection.size + size > most_bytes", "connection.size > most_bytes"),
    Mutant(
        _INBOX,
        "if connection.metrics and self.total + len(data) > MAX_TOTAL_BYTES:",
        "if self.total + len(data) > MAX_TOTAL_BYTES:",
    ),
    Mutant("common/protocol/messages.py", "return incarnation_of(self.secret) == incarnation", "return True"),
    Mutant("common/protocol/token.py", "elif agent_curve(token) != credentials.agents:", "elif False:"),
)

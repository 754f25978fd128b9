"""Records of a made-up run, for tests of the journal, the analysis, the reports and the live view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from common.metrics.histogram import EMPTY, Histogram
from common.metrics.intervals import (
    LATE_SEND_NS,
    CommandMetrics,
    ConnectionMetrics,
    GeneratorDelays,
    GeneratorMetrics,
    IntervalMetrics,
    PoolMetrics,
)
from common.plan.schema import Command, Load, Plan, Stage, Target, Workload
from common.protocol.messages import Final, MetricsFrame, PoolShare
from common.units import NS_PER_S, PerSecond, Seconds
from coordinator.journal.records import (
    AgentEnded,
    AgentFacts,
    AgentOutcome,
    AnyRecord,
    CountersRead,
    FrameAccepted,
    Outcome,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    TargetFacts,
)

T0_UTC_NS = 1_772_600_767_890_123_456
"""2026-03-04 05:06:07.890 UTC."""

MIX = {"SET": 40, "GET": 50, "DEL": 10}


def plan(*, rate_per_s: float | None = None, duration_s: float = 3.0, **workload: int) -> Plan:
    return Plan(
        target=Target(url="redis://127.0.0.1:6379", password="***"),
        workload=Workload(
            commands=tuple(Command(command=name, weight=float(w)) for name, w in MIX.items()), **workload
        ),
        load=Load(duration_s=Seconds(duration_s), rate_per_s=None if rate_per_s is None else PerSecond(rate_per_s)),
    )


def staged_plan(*stages: Stage, warmup_s: float = 0.0) -> Plan:
    """The default plan with these stages."""
    return msgspec.structs.replace(plan(), load=Load(stages=stages, warmup_s=Seconds(warmup_s)))


def opened(the_plan: Plan | None = None, agents: Sequence[str] = ("a1", "a2")) -> RunOpened:
    return RunOpened(
        run_id="run-1",
        started_at="2025-01-02T03:04:05Z",
        plan=the_plan or plan(),
        plan_hash="abc",
        target=TargetFacts(url="redis://127.0.0.1:6379", topology="standalone", server="valkey 9.0.1"),
        connection_ceiling=100,
        agents=tuple(
            AgentFacts(
                agent_id=name,
                incarnation=name * 4,
                host="localhost",
                processes=1,
                pools=(PoolShare(group=0, number=number, first_thread=number),),
            )
            for number, name in enumerate(agents)
        ),
        threads_total=len(agents),
    )


def histogram(*values_ns: int) -> Histogram:
    return Histogram.from_values(np.array(values_ns, dtype=np.int64))


def command(service: Histogram, *, response: Histogram = EMPTY, **counts: object) -> CommandMetrics:
    fields = {"ok": service.count, "bytes_out": 60 * service.count, "bytes_in": 5 * service.count} | counts
    return CommandMetrics(service=service, response=response, **fields)  # type: ignore[arg-type]


def interval(
    second: int,
    commands: dict[str, CommandMetrics],
    *,
    last: int | None = None,
    issued: int | None = None,
    redirects: dict[str, int] | None = None,
    failed_by_cause: dict[str, int] | None = None,
    never_opened: dict[str, int] | None = None,
    connects: ConnectionMetrics | None = None,
    **more: int,
) -> IntervalMetrics:
    """One second of the pool "main"; `open_peak`, `wanted` (by default as many), `retries`, `redirects`,
    `topology_refreshes`, `failed_by_cause` and `never_opened` go to its connections. connects: their other fields."""
    open_peak = more.pop("open_peak", 2)
    connections = msgspec.structs.replace(
        connects or ConnectionMetrics(),
        open_peak=open_peak,
        wanted=more.pop("wanted", open_peak),
        failed_attempts=sum((failed_by_cause or {}).values()),
        failed_by_cause=failed_by_cause or {},
        never_opened=never_opened or {},
        retries=more.pop("retries", 0),
        redirects=redirects or {},
        topology_refreshes=more.pop("topology_refreshes", 0),
    )
    operations = sum(one.operations for one in commands.values())
    return IntervalMetrics(
        first=second,
        last=second if last is None else last,
        issued=operations if issued is None else issued,
        pools={"main": PoolMetrics(commands=commands, checkout_wait=histogram(0), connections=connections)},
        **more,
    )


def accepted(agent_id: str, seq: int, *intervals: IntervalMetrics, through: int | None = None) -> FrameAccepted:
    reached = max((one.last for one in intervals), default=-1) if through is None else through
    return FrameAccepted(agent_id=agent_id, frame=MetricsFrame(seq=seq, through=reached, intervals=intervals))


def noted(agent_id: str, counted: int, *, issued: int | None = None, lost: bool = False, **more: object) -> AgentEnded:
    """The end of an agent. more: fields of the note or of its Final, by name."""
    own = {"cpu_percent_max": 50.0, "cpu_percent_busiest": 40.0, "lag_ms_max": 1.0, "clock_rtt_us": 200.0}
    own["host_cpu_percent_mean"] = 60.0
    note = own | {name: more.pop(name) for name in list(more) if name in own}
    fields = {
        "transactions": 0,
        "start_skew_ns": 150_000,
        "ran_ns": 3 * 10**9,
        "drained": True,
        "processes_lost": 0,
    } | more
    final = Final(next_seq=0, issued=counted if issued is None else issued, counted=counted, reason="done", **fields)  # type: ignore[arg-type]
    return AgentEnded(
        agent_id=agent_id,
        state=AgentOutcome.LOST if lost else AgentOutcome.FINISHED,
        reason="no heartbeat for 5 s" if lost else "the duration is over",
        final=None if lost else final,
        clock_offset_us=12.5,
        **note,  # type: ignore[arg-type]
    )


def reading(when: Reading, calls: dict[str, int], server_run_id: str = "server-1", error: str = "") -> CountersRead:
    return CountersRead(when=when, server_run_id=server_run_id, connected_clients=3, calls=calls, error=error)


def closed(outcome: Outcome = Outcome.COMPLETED, duration_s: float = 3.0) -> RunClosed:
    return RunClosed(outcome=outcome, reason="the duration is over", duration_s=duration_s)


def clean_run(
    the_plan: Plan | None = None, agents: Sequence[str] = ("a1", "a2"), seconds: int = 3, per_second: int = 1000
) -> Iterator[AnyRecord]:
    """A run without any problem. The plan decides whether the loop is closed or open."""
    the_plan = the_plan or plan()
    draw = np.random.default_rng(1)
    yield opened(the_plan, agents)
    yield reading(Reading.BEFORE, {"set": 7, "get": 5, "info": 1})
    yield RunStarted(t0_ns=123_456_789, t0_utc_ns=T0_UTC_NS)
    done = dict.fromkeys(MIX, 0)
    for second in range(seconds):
        for agent_id in agents:
            commands = {}
            for name, share in MIX.items():
                count = per_second * share // 100
                done[name] += count
                service = Histogram.from_values(draw.lognormal(12, 0.5, count).astype(np.int64))
                late = Histogram.from_values(draw.lognormal(12.5, 0.8, count).astype(np.int64))
                commands[name] = command(service, response=late if the_plan.load.rate_per_s else EMPTY)
            yield accepted(agent_id, second, interval(second, commands))
    for agent_id in agents:
        yield noted(agent_id, sum(done.values()) // len(agents))
    after = {"set": 7 + done["SET"], "get": 5 + done["GET"], "del": done["DEL"], "info": 2}
    yield reading(Reading.AFTER, after)
    yield closed(duration_s=float(seconds))


def watched(
    records: Iterable[AnyRecord],
    core: dict[str, float],
    *,
    loop: float = 0.0,
    turns_ns: Sequence[int] = (),
    late_ns: Sequence[int] = (),
    delays: Mapping[str, GeneratorDelays] | None = None,
) -> list[AnyRecord]:
    """The same run, whose agents say how busy they were in each interval, of a second: `core` by agent id, others
    nothing. late_ns: the send lags of its operations. delays: by agent id, in each interval; others do not tell."""
    return [
        msgspec.structs.replace(
            record,
            frame=msgspec.structs.replace(
                record.frame,
                intervals=tuple(
                    _watched(one, core[record.agent_id], loop, turns_ns, late_ns, (delays or {}).get(record.agent_id))
                    for one in record.frame.intervals
                ),
            ),
        )
        if isinstance(record, FrameAccepted) and record.agent_id in core
        else record
        for record in records
    ]


def _watched(
    one: IntervalMetrics,
    core: float,
    loop: float,
    turns_ns: Sequence[int],
    late_ns: Sequence[int],
    delays: GeneratorDelays | None,
) -> IntervalMetrics:
    generator = GeneratorMetrics(
        cpu_ns=round(2 * core * NS_PER_S),  # a second process uses the same
        watched_ns=NS_PER_S,
        busiest_cpu_ns=round(core * NS_PER_S),
        busiest_loop_ns=round(loop * NS_PER_S),
        core_share_max=core,
        loop_lag=histogram(*turns_ns),
        delays=delays,
    )
    late = sum(lag_ns > LATE_SEND_NS for lag_ns in late_ns)
    pools = {
        name: msgspec.structs.replace(pool, send_lag=histogram(*late_ns), late_sends=late)
        for name, pool in one.pools.items()
    }
    return msgspec.structs.replace(one, generator=generator, pools=pools)


def looking_up(**found: tuple[int, int]) -> list[AnyRecord]:
    """A run of one agent and two seconds, in each of which commands have these hits and misses."""
    commands = {
        name: command(histogram(*[2000] * 4), hits=hits, misses=misses) for name, (hits, misses) in found.items()
    }
    frames = [accepted("a1", second, interval(second, commands)) for second in range(2)]
    return [opened(agents=("a1",)), *frames, noted("a1", 8 * len(commands)), closed(duration_s=2.0)]

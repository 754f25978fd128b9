"""The content of the live view at one moment: a pure function of the run so far, and of the agents' states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.metrics.histogram import Histogram
from common.plan.timeline import Timeline
from common.units import NS_PER_S
from coordinator.analysis.per_second import ShownSeconds
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import Second
from coordinator.report.percentiles import percentile_names

SECONDS_SHOWN = 8
DRAIN = "drain"
"""The stage of a second after the load."""
WAITING, RUNNING, ENDED = "waiting", "running", "ended"
"""States of a scenario."""


@dataclass(frozen=True, slots=True)
class LatencyTimes:
    """Latencies of one second. shown_us: the percentiles that the plan asks for, by name; empty for p50 and p99."""

    p50_us: float
    p99_us: float
    max_us: float
    shown_us: tuple[tuple[str, float], ...] = ()

    @property
    def percentiles_us(self) -> tuple[tuple[str, float], ...]:
        """The percentiles to show."""
        return self.shown_us or (("p50", self.p50_us), ("p99", self.p99_us))


@dataclass(frozen=True, slots=True)
class LiveHits:
    """What the operations of one command found and did not find."""

    command: str
    hits: int
    misses: int


@dataclass(frozen=True, slots=True)
class LiveSecond:
    """One complete second.

    service, response: latencies of successful operations, from send and from intended send to reply; None without any.
    stage: the leg in which the second began; "" if the load has one leg, "drain" after the load. core_share: share of
    one core that the busiest worker process used; None if no agent reports it. length_s: how long the load lasted in
    the second, see `coordinator.analysis.per_second`. wanted_per_s: mean rate that the plan wants; None in a closed
    loop. backlog: operations that were due by its end, but not sent. is_final: the end of the load will not be added to
    this second. hits: of each command whose replies show them.
    """

    second: int
    ok: int
    errors: int
    service: LatencyTimes | None
    response: LatencyTimes | None = None
    stage: str = ""
    core_share: float | None = None
    length_s: float = 1.0
    wanted_per_s: float | None = None
    backlog: int | None = None
    is_final: bool = True
    hits: tuple[LiveHits, ...] = ()

    @property
    def counts(self) -> tuple[int, int]:
        """The counts that change if an agent reports its share of the second later."""
        return self.ok, self.errors

    @property
    def ops_per_s(self) -> int:
        """Successful operations, per second of its length."""
        return round(self.ok / self.length_s)


@dataclass(frozen=True, slots=True)
class LiveAgent:
    """One agent at its last heartbeat. state: one word. heartbeat_age_s: None before the first heartbeat."""

    agent_id: str
    host: str
    state: str
    cpu_percent: float
    heartbeat_age_s: float | None
    offset_us: float | None
    alive: bool = True


@dataclass(frozen=True, slots=True)
class LiveStage:
    """The current leg of the load. number: counted from 1, including the warmup. of: number of legs. rate_per_s: wanted
    at this moment; None in a closed loop. measured: reports include the leg."""

    name: str
    number: int
    of: int
    rate_per_s: float | None
    measured: bool


@dataclass(frozen=True, slots=True)
class LiveScenario:
    """One scenario of several. state: waiting, running or ended. begin_s: when it starts. stage: "" if it has one leg.
    wanted_per_s: at this moment; None in a closed loop. rows: its share of the rows of the snapshot, by second, while
    its load lasts. The rest is without the warmup."""

    name: str
    state: str
    begin_s: float
    stage: str
    wanted_per_s: float | None
    rows: Mapping[int, LiveSecond]
    operations: int
    errors: int
    unsent: int

    @property
    def last(self) -> LiveSecond | None:
        """Its last complete second; None unless it runs."""
        return self.rows[max(self.rows)] if self.rows and self.state == RUNNING else None

    def state_in(self, second: int) -> str:
        """Its state in a second of the run without a row."""
        return WAITING if second + 1 <= self.begin_s else ENDED


@dataclass(frozen=True, slots=True)
class LiveServers:
    """The servers of all targets at their last samples. silent: servers that do not answer. busiest: the server that
    uses most CPU time. cpu_percent: its share of one core. memory: used bytes of all servers. None: not known."""

    count: int
    silent: int
    busiest: str
    cpu_percent: float | None
    memory: int | None
    commands_per_s: float | None


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """One moment of a run. All numbers except the rows are without the warmup.

    left_s, left_requests: what remains; None if the plan does not limit it. fraction: of the load that is done; None if
    the plan limits neither. until_stopped: only the user ends the load. rows: the last complete seconds, oldest
    first. unsent: operations that were due, but not begun. ops_per_s: mean over all complete seconds. stage: None
    before the start, and if the load has one leg. open_loop: at least one leg has a rate. corrected: final rows that
    may have changed, because an agent that was cut off reported its share, or the load ended earlier than planned.
    standing_by: agents without a share. scenarios: empty for a plan with one. servers: None if they are not watched.
    hits: of each command whose replies show them.
    percentiles: the names of those in rows.
    """

    elapsed_s: float
    left_s: float | None
    left_requests: int | None
    fraction: float | None
    rows: tuple[LiveSecond, ...]
    operations: int
    ok: int
    errors: int
    unsent: int
    ops_per_s: float
    connections_open: int
    connection_ceiling: int
    agents: tuple[LiveAgent, ...]
    stage: LiveStage | None = None
    open_loop: bool = False
    corrected: tuple[LiveSecond, ...] = ()
    standing_by: int = 0
    scenarios: tuple[LiveScenario, ...] = ()
    percentiles: tuple[str, ...] = ("p50", "p99")
    hits: tuple[LiveHits, ...] = ()
    until_stopped: bool = False
    servers: LiveServers | None = None


def build_snapshot(
    aggregate: Aggregate,
    agents: Sequence[LiveAgent],
    elapsed_s: float,
    stopped_s: float | None = None,
    standing_by: int = 0,
) -> LiveSnapshot:
    """Return the state of the run `elapsed_s` after the start (negative: before it). stopped_s: when the load was
    stopped early. standing_by: agents without a share."""
    seconds = aggregate.seconds
    measured = aggregate.measured_stages
    operations, ok = sum(stage.operations for stage in measured), sum(stage.ok for stage in measured)
    end_s = aggregate.end_ns / NS_PER_S if aggregate.opened and aggregate.end_ns is not None else None
    left_s = max(end_s - max(elapsed_s, 0.0), 0.0) if end_s is not None else None
    requests = _requests(aggregate)
    left_requests = None if requests is None else max(requests - operations, 0)
    fractions = []
    if end_s and left_s is not None:
        fractions.append(1 - left_s / end_s)
    if requests and left_requests is not None:
        fractions.append(1 - left_requests / requests)
    shown = ShownSeconds(aggregate, stopped_s)
    newest = seconds.get(max(seconds, default=-1))
    rows = tuple(_row(shown, number, aggregate) for number in shown.complete[-SECONDS_SHOWN:])
    corrected = tuple(_row(shown, number, aggregate) for number in shown.corrected)
    drawn = sorted({row.second for row in (*rows, *corrected)})
    return LiveSnapshot(
        elapsed_s=elapsed_s,
        left_s=left_s,
        left_requests=left_requests,
        fraction=max(fractions, default=None),
        rows=rows,
        operations=operations,
        ok=ok,
        errors=operations - ok,
        unsent=sum(stage.unsent for stage in measured),
        ops_per_s=shown.mean_ops_per_s,
        connections_open=(seconds.get(aggregate.complete_through) or newest or Second()).connections_open,
        connection_ceiling=aggregate.opened.connection_ceiling if aggregate.opened else 0,
        agents=tuple(agents),
        stage=None if aggregate.parts else _stage_now(aggregate.timeline, elapsed_s),
        open_loop=any(leg.is_open for leg in aggregate.timeline.legs),
        corrected=corrected,
        standing_by=standing_by,
        percentiles=tuple(_percentiles(aggregate)),
        scenarios=tuple(_scenario(part, elapsed_s, stopped_s, drawn) for part in aggregate.parts),
        until_stopped=any(part.opened.plan.load.runs_until_stopped for part in aggregate.scenarios if part.opened),
        servers=_servers(aggregate),
        hits=_hits(
            sum((stage.hits for stage in measured), Counter[str]()),
            sum((stage.misses for stage in measured), Counter[str]()),
        ),
    )


def _hits(hits: Mapping[str, int], misses: Mapping[str, int]) -> tuple[LiveHits, ...]:
    return tuple(LiveHits(name, hits.get(name, 0), misses.get(name, 0)) for name in dict.fromkeys((*hits, *misses)))


def _servers(aggregate: Aggregate) -> LiveServers | None:
    sides = list(aggregate.servers.nodes.values())
    if not sides:
        return None
    cpu = {side.name: share for side in sides if (share := side.latest_rate("cpu_us")) is not None}
    rates = [rate for side in sides if (rate := side.latest_rate("commands")) is not None]
    samples = [side.last_sample for side in sides if side.last_sample is not None]
    memory = [sample.memory for sample in samples if sample.memory is not None]
    busiest = max(cpu, key=lambda name: cpu[name], default="")
    return LiveServers(
        count=len(sides),
        silent=sum(side.silent is not None for side in sides),
        busiest=busiest,
        cpu_percent=cpu[busiest] / 1e4 if busiest else None,
        memory=sum(memory) if memory else None,
        commands_per_s=sum(rates) if rates else None,
    )


def _requests(aggregate: Aggregate) -> int | None:
    """How many operations the plan wants; None if a scenario has no number of requests."""
    wanted = [part.opened.plan.load.requests if part.opened else None for part in aggregate.scenarios]
    known = [count for count in wanted if count is not None]
    return sum(known) if len(known) == len(wanted) else None


def _scenario(part: Aggregate, elapsed_s: float, stopped_s: float | None, drawn: Iterable[int]) -> LiveScenario:
    shown = ShownSeconds(part, stopped_s)
    begin_s = part.timeline.legs[0].begin_ns / NS_PER_S
    known = frozenset(shown.numbers)
    numbers = [number for number in drawn if number in known and number + 1 > begin_s]
    rows = {number: row for number in numbers if (row := _row(shown, number, part)).stage != DRAIN}
    state = WAITING if elapsed_s < begin_s else ENDED if _has_ended(part, elapsed_s) else RUNNING
    offset_ns = round(max(elapsed_s, 0.0) * NS_PER_S)
    leg = part.timeline.legs[part.timeline.at(offset_ns)]
    measured = part.measured_stages
    return LiveScenario(
        name=part.name,
        state=state,
        begin_s=begin_s,
        stage="" if part.timeline.has_one_leg else leg.name,
        wanted_per_s=leg.rate_at(offset_ns) if state == RUNNING else None,
        rows=rows,
        operations=sum(stage.operations for stage in measured),
        errors=sum(stage.errors for stage in measured),
        unsent=sum(stage.unsent for stage in measured),
    )


def _has_ended(part: Aggregate, elapsed_s: float) -> bool:
    end_ns, requests = part.timeline.end_ns, part.opened.plan.load.requests if part.opened else None
    done = requests is not None and sum(stage.operations for stage in part.measured_stages) >= requests
    return part.closed is not None or done or (end_ns is not None and elapsed_s >= end_ns / NS_PER_S)


def _stage_now(timeline: Timeline, elapsed_s: float) -> LiveStage | None:
    if timeline.has_one_leg or elapsed_s < 0:
        return None
    offset_ns = round(elapsed_s * NS_PER_S)
    number = timeline.at(offset_ns)
    leg = timeline.legs[number]
    return LiveStage(leg.name, number + 1, len(timeline.legs), leg.rate_at(offset_ns), leg.measured)


def _row(seconds: ShownSeconds, number: int, run: Aggregate) -> LiveSecond:
    shown = seconds.row(number)
    second = shown.second
    return LiveSecond(
        second=number,
        ok=second.ok,
        errors=second.errors,
        service=_times(second.service.merged, run),
        response=_times(second.response.merged, run),
        stage=DRAIN if shown.drains else "" if run.parts or run.timeline.has_one_leg else shown.leg.name,
        core_share=second.core_share,
        length_s=shown.length_s,
        wanted_per_s=shown.wanted_per_s,
        backlog=shown.backlog,
        is_final=number <= seconds.final_through,
        hits=_hits(second.hits, second.misses),
    )


def _percentiles(run: Aggregate) -> list[str]:
    """The names of the percentiles to show."""
    return percentile_names(run.opened.plan.percentiles if run.opened else ()) or ["p50", "p99"]


def _times(histogram: Histogram, run: Aggregate) -> LatencyTimes | None:
    if not histogram.count:
        return None
    p50, p99 = histogram.quantiles((0.5, 0.99))
    asked = sorted(set(run.opened.plan.percentiles)) if run.opened else []
    values = histogram.quantiles([each / 100 for each in asked]) if asked else []
    shown_us = tuple(zip(percentile_names(asked), (value / 1e3 for value in values), strict=True))
    return LatencyTimes(p50 / 1e3, p99 / 1e3, histogram.maximum / 1e3, shown_us)

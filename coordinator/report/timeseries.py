"""`timeseries.csv`: a row for each second of the run, for a spreadsheet or a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from common.units import NS_PER_S, printable
from coordinator.analysis.per_second import ShownSecond, ShownSeconds
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import Second
from coordinator.report.utc import utc_text

_SERVICE_QUANTILES = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "p99.9_us": 0.999}
COLUMNS = (
    "second",
    "operations",
    "ok",
    "errors",
    "ops_per_s",
    *_SERVICE_QUANTILES,
    "max_us",
    "response_p99_us",
    "connections_open",
    "agents",
    "stage",
    "core_share",
    "loop_lag_p99_us",
    "length_s",
    "wanted_per_s",
    "backlog",
    "connections_wanted",
    "scenario",
    "time_utc",
    "hits",
    "misses",
)


def timeseries_csv(aggregate: Aggregate) -> str:
    """Return the whole file.

    ops_per_s: successful operations divided by length_s. length_s: how long the load lasted in the row: 1, except in
    the last row of a load that ends within a second (see `coordinator.analysis.per_second`). stage: the leg in which
    the second begins, including the warmup; the numbers of a second may be of two legs. wanted_per_s: mean rate that
    the plan wants; empty in a closed loop and after the load. backlog: operations that were due by the end of the row,
    but not sent; empty without an open loop. Quantiles are of service time, and empty without successful operations;
    response_p99_us is empty in a closed loop. core_share: share of one core that the busiest worker process used.
    loop_lag_p99_us: how long event loops were busy without a pause. Both are empty if no agent reports them.
    connections_wanted: connections that were open or being opened (with the wire driver: all its connections); empty if
    an agent's release does not report it. scenario: its name; a run with several has a row for each of them and second.
    time_utc: when the row begins, by the coordinator's wall clock at the start of the load; empty in a run of an
    earlier release. hits, misses: of all commands, empty if no reply shows them. For each command whose replies do,
    `hits:NAME` and `misses:NAME` follow.
    """
    t0_utc_ns = aggregate.started.t0_utc_ns if aggregate.started else None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = scenario_rows(aggregate)
    commands = sorted({name for _, shown in rows for name in (*shown.second.hits, *shown.second.misses)})
    columns = [f"{what}:{printable(name)}" for name in commands for what in ("hits", "misses")]
    writer.writerow((*COLUMNS, *columns))
    for name, shown in rows:
        wanted = "" if shown.wanted_per_s is None else round(shown.wanted_per_s, 3)
        rate = [round(shown.length_s, 3), wanted, _known(shown.backlog)]
        writer.writerow(
            [
                *_row(shown),
                printable(shown.leg.name),
                *_generator(shown.second),
                *rate,
                _known(shown.second.connections_wanted),
                printable(name),
                "" if t0_utc_ns is None else utc_text(t0_utc_ns + shown.number * NS_PER_S),
                *_hits(shown.second, commands),
            ]
        )
    return text.getvalue()


def scenario_rows(aggregate: Aggregate) -> list[tuple[str, ShownSecond]]:
    """(name of the scenario, row) for all rows of the file, by second."""
    rows = [
        (part.name, shown)
        for part in aggregate.scenarios
        for shown in ShownSeconds(part)
        if (shown.number + 1) * NS_PER_S > part.timeline.legs[0].begin_ns
    ]
    return sorted(rows, key=lambda row: row[1].number)


def _hits(second: Second, commands: Sequence[str]) -> list[int | str]:
    """The hits and misses of all commands, and of each."""
    hits, misses = second.hits, second.misses
    everything: list[int | str] = [sum(hits.values()), sum(misses.values())] if hits or misses else ["", ""]
    return everything + [
        counts.get(name, 0) if name in hits or name in misses else "" for name in commands for counts in (hits, misses)
    ]


def _known(count: int | None) -> int | str:
    return "" if count is None else count


def _row(shown: ShownSecond) -> list[object]:
    second = shown.second
    service, response = second.service.merged, second.response.merged
    latencies_ns = [*service.quantiles(_SERVICE_QUANTILES.values()), service.maximum]
    return [
        shown.number,
        second.operations,
        second.ok,
        second.errors,
        second.ok if shown.length_s == 1 else round(shown.ops_per_s, 1),
        *(ns / 1e3 if service.count else "" for ns in latencies_ns),
        response.quantile(0.99) / 1e3 if response.count else "",
        second.connections_open,
        second.agents,
    ]


def _generator(second: Second) -> list[object]:
    share, lag = second.core_share, second.loop_lag.merged
    return ["" if share is None else round(share, 3), lag.quantile(0.99) / 1e3 if lag.count else ""]

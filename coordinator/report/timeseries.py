"""`timeseries.csv`: a row a second of the run, for a spreadsheet or a plot."""

from __future__ import annotations

import csv
import io

from common.units import NS_PER_S
from coordinator.aggregate import Aggregate, Second

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
)


def timeseries_csv(aggregate: Aggregate) -> str:
    """The whole file. ops_per_s counts operations done in that second, also in a last one that was cut short.

    stage: the one in which the second begins; where a second has some of two, its numbers are of both. The warmup is
    in it. Quantiles are of service time, and empty where nothing was done; response_p99_us is empty in a closed loop.
    core_share: of one core, of the busiest worker process. loop_lag_p99_us: how long event loops were busy at a
    stretch. Both are empty where nobody said.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, second in aggregate.by_second():
        stage = aggregate.line.legs[aggregate.line.at(number * NS_PER_S)]
        writer.writerow([*_row(number, second), stage.name, *_generator(second)])
    return text.getvalue()


def _row(number: int, second: Second) -> list[object]:
    service, response = second.service.merged, second.response.merged
    latencies_ns = [*service.quantiles(_SERVICE_QUANTILES.values()), service.maximum]
    return [
        number,
        second.operations,
        second.ok,
        second.errors,
        second.ok,
        *(ns / 1e3 if service.count else "" for ns in latencies_ns),
        response.quantile(0.99) / 1e3 if response.count else "",
        second.connections_open,
        len(second.open_peaks),
    ]


def _generator(second: Second) -> list[object]:
    share, lag = second.core_share, second.loop_lag.merged
    return ["" if share is None else round(share, 3), lag.quantile(0.99) / 1e3 if lag.count else ""]

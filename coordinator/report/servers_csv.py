"""`servers.csv`: a row for each sample of each server, for a spreadsheet or a plot."""

from __future__ import annotations

import csv
import io

from common.units import NS_PER_S, printable
from coordinator.analysis.server_figures import COLUMNS as SAMPLE_COLUMNS
from coordinator.analysis.server_figures import NodeSamples
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.report.utc import utc_text

COLUMNS = ("target", "server", "time_utc", *SAMPLE_COLUMNS)


def servers_csv(aggregate: Aggregate) -> str:
    """Return the whole file: the rows of `series` in summary.json.

    target: its name in the plan; empty in a plan with one. time_utc: when the sample was taken, by the coordinator's
    wall clock at the start of the load; empty in a run of an earlier release. at_s: the same in seconds from the start.
    evicted, expired, hits, misses: gains since the row before, of the same server. Values that a server does not report
    are empty.
    """
    t0_ns = aggregate.started.t0_ns if aggregate.started else 0
    t0_utc_ns = aggregate.started.t0_utc_ns if aggregate.started else None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for side in sorted(aggregate.servers.nodes.values(), key=lambda side: (side.target, side.name)):
        names = (printable(side.target), printable(side.name))
        for row in NodeSamples(side, t0_ns).rows():
            time_utc = "" if t0_utc_ns is None else utc_text(t0_utc_ns + round(row[0] * NS_PER_S))
            writer.writerow((*names, time_utc, *row))
    return text.getvalue()

"""The table of endpoints in a report: which one is slow, and which one gets most operations."""

from __future__ import annotations

from coordinator.report.printing import as_text, ms, short_number
from coordinator.report.summary_types import ScenarioSummary
from coordinator.report.tables import FittedTable, TableColumn

SUMMARY_FILE = "summary.json"

_ENDPOINTS_SHOWN = 10
_ENDPOINT_COLUMNS = (
    TableColumn("Endpoint", fold=15),
    TableColumn("Role", 5, fold=7),
    TableColumn("Ops/s", 1),
    TableColumn("Share", 2),
    TableColumn("Avg", 8),
    TableColumn("p50", 6),
    TableColumn("p99"),
    TableColumn("p99.9", 7),
    TableColumn("max", 4),
    TableColumn("Errors"),
)


def endpoint_table(scenario: ScenarioSummary, of: str) -> FittedTable:
    """Return a row for each server of a scenario's target, the slowest first. of: " of" and the scenario, or ""."""
    # Service time also in an open loop: response time includes waits for a free client, which all endpoints share.
    title = f"Endpoints{of}, the slowest first (ms: service time)"
    table = FittedTable(title, _ENDPOINT_COLUMNS, elsewhere=SUMMARY_FILE)
    ended = sum(stats.operations for stats in scenario.endpoints.values())
    by_p99 = sorted(scenario.endpoints.items(), key=lambda each: (-each[1].latency_us.service.p99, each[0]))
    for name, stats in by_p99[:_ENDPOINTS_SHOWN]:
        latency = stats.latency_us.service
        times_us = (latency.mean, latency.p50, latency.p99, latency.p99_9, latency.max)
        table.add_row(
            name,
            stats.role,
            short_number(stats.ops_per_s),
            f"{stats.operations / ended:.1%}" if ended else "-",
            *(ms(us) if latency.count else "-" for us in times_us),
            as_text(short_number(stats.errors), style="red" if stats.errors else ""),
        )
    if (more := len(by_p99) - _ENDPOINTS_SHOWN) > 0:
        table.caption = f"and {more} more, see {SUMMARY_FILE}"
    return table

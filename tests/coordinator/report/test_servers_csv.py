from __future__ import annotations

import csv
import io

from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import AnyRecord, RunStarted
from coordinator.report.servers_csv import COLUMNS, servers_csv
from tests.support.records import clean_run
from tests.support.server_records import with_servers

UTC_NS = 1_772_600_767_890_000_000


def test_each_sample_has_a_row_with_its_server_and_its_time() -> None:
    records: list[AnyRecord] = [
        RunStarted(t0_ns=record.t0_ns, t0_utc_ns=UTC_NS) if isinstance(record, RunStarted) else record
        for record in with_servers(clean_run(), "a:1", "b:2")
    ]
    rows = list(csv.DictReader(io.StringIO(servers_csv(fold(records)))))
    assert [(row["server"], row["at_s"]) for row in rows[:2]] == [("a:1", "-0.123"), ("a:1", "0.0")]
    assert [row["server"] for row in rows] == ["a:1"] * 6 + ["b:2"] * 6
    assert [row["time_utc"] for row in rows[1:3]] == [
        "2026-03-04T05:06:07.890000+00:00",
        "2026-03-04T05:06:08.890000+00:00",
    ]
    assert (rows[2]["role"], rows[2]["cpu_percent"], rows[2]["hits"], rows[2]["lag_bytes"]) == (
        "primary",
        "45.0",
        "90",
        "",
    )


def test_a_run_of_an_earlier_release_has_no_absolute_times() -> None:
    records = (
        RunStarted(t0_ns=record.t0_ns) if isinstance(record, RunStarted) else record
        for record in with_servers(clean_run(), "a:1")
    )
    rows = list(csv.DictReader(io.StringIO(servers_csv(fold(records)))))
    assert {row["time_utc"] for row in rows} == {""}


def test_a_run_whose_servers_were_not_watched_has_headings_only() -> None:
    assert servers_csv(fold(clean_run())) == ",".join(COLUMNS) + "\n"

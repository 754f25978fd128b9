from __future__ import annotations

import csv
import io

from common.plan.schema import Ramp
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import RunStarted
from coordinator.report.timeseries import COLUMNS, timeseries_csv
from tests.support.records import (
    accepted,
    clean_run,
    closed,
    command,
    histogram,
    interval,
    looking_up,
    opened,
    plan,
    staged_plan,
    watched,
)
from tests.support.stages import stage


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_file_has_a_row_for_every_second() -> None:
    run = watched(clean_run(plan(rate_per_s=2000.0)), {"a1": 0.5, "a2": 0.75}, turns_ns=[2000])
    found = rows(timeseries_csv(fold(run)))
    assert [row["second"] for row in found] == ["0", "1", "2"]
    assert all(list(row) == list(COLUMNS) and all(row[name] for name in COLUMNS[:-2]) for row in found)
    assert sum(int(row["ok"]) for row in found) == 6000
    assert {row["connections_open"] for row in found} == {row["connections_wanted"] for row in found} == {"4"}
    assert {row["agents"] for row in found} == {"2"}
    assert {(row["core_share"], row["loop_lag_p99_us"]) for row in found} == {("0.75", "2.0")}


def test_unknown_figures_of_the_generator_are_empty() -> None:
    found = rows(timeseries_csv(fold(clean_run())))
    assert {(row["core_share"], row["loop_lag_p99_us"]) for row in found} == {("", "")}
    found = rows(timeseries_csv(fold(watched(clean_run(), {"a1": 0.0}))))
    assert {(row["core_share"], row["loop_lag_p99_us"]) for row in found} == {("0.0", "")}


def test_a_second_without_operations_has_counts_but_no_latencies() -> None:
    get = {"GET": command(histogram(2000))}
    found = rows(timeseries_csv(fold([opened(), accepted("a1", 0, interval(0, get), interval(2, get))])))
    assert [(row["ok"], row["p99_us"], row["max_us"]) for row in found] == [
        ("1", "2.0", "2.0"),
        ("0", "", ""),
        ("1", "2.0", "2.0"),
    ]
    assert {row["response_p99_us"] for row in found} == {""}


def test_a_run_without_seconds_has_only_a_header() -> None:
    assert timeseries_csv(fold([opened()])) == ",".join(COLUMNS) + "\n"


def test_a_row_has_the_stage_in_which_its_second_begins() -> None:
    the_plan = staged_plan(stage(1.5, 10), stage(2, name="rest"), warmup_s=1)
    found = rows(timeseries_csv(fold([opened(the_plan), accepted("a1", 0, interval(4, {}, stage=2))])))
    assert [row["stage"] for row in found] == ["warmup", "stage 1", "stage 1", "rest", "rest"]


def test_a_partial_last_second_joins_the_row_before() -> None:
    get = {"GET": command(histogram(*[2000] * 8))}
    rest = {"GET": command(histogram(2000, 3000))}
    records = [opened(agents=["a1"]), accepted("a1", 0, interval(0, get), interval(1, get), interval(2, rest))]
    found = rows(timeseries_csv(fold([*records, closed(duration_s=2.25)])))
    assert [(row["second"], row["ok"], row["ops_per_s"], row["length_s"], row["max_us"]) for row in found] == [
        ("0", "8", "8", "1.0", "2.0"),
        ("1", "10", "8.0", "1.25", "3.0"),
    ]


def test_a_row_of_a_ramp_has_its_target_rate() -> None:
    ramp = staged_plan(stage(2, 200, Ramp.LINEAR), stage(1))
    parts = (interval(0, {}), interval(1, {}), interval(2, {}, stage=1))
    found = rows(timeseries_csv(fold([opened(ramp, ["a1"]), accepted("a1", 0, *parts)])))
    assert [row["wanted_per_s"] for row in found] == ["50.0", "150.0", ""]


def test_a_row_has_the_utc_of_its_begin_if_the_journal_has_the_start_by_the_wall_clock() -> None:
    found = rows(timeseries_csv(fold(clean_run())))
    assert [row["time_utc"] for row in found] == [
        "2026-03-04T05:06:07.890123+00:00",
        "2026-03-04T05:06:08.890123+00:00",
        "2026-03-04T05:06:09.890123+00:00",
    ]
    earlier = [RunStarted(t0_ns=1) if isinstance(record, RunStarted) else record for record in clean_run()]
    assert {row["time_utc"] for row in rows(timeseries_csv(fold(earlier)))} == {""}


def test_the_file_has_hits_and_misses_in_all_and_by_command() -> None:
    found = rows(timeseries_csv(fold(looking_up(GET=(3, 1), HGET=(0, 4), SET=(0, 0)))))
    assert list(found[0])[len(COLUMNS) :] == ["hits:GET", "misses:GET", "hits:HGET", "misses:HGET"]
    assert [(row["hits"], row["misses"]) for row in found] == [("3", "5")] * 2
    assert [list(row.values())[len(COLUMNS) :] for row in found] == [["3", "1", "0", "4"]] * 2


def test_a_second_without_lookups_has_neither_hits_nor_misses() -> None:
    [row, _] = rows(timeseries_csv(fold(looking_up(SET=(0, 0)))))
    assert (row["hits"], row["misses"]) == ("", "")

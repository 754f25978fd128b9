from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common.errors import UsageError
from common.metrics.error_samples import ErrorSample
from common.metrics.histogram import Histogram
from common.metrics.intervals import DeliveryMetrics, GeneratorDelays, IntervalMetrics, PoolMetrics
from common.plan.schema import Command, Plan, Ramp, Workload
from common.units import NS_PER_S, Count
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.journal_file import Journal, read_journal
from coordinator.journal.records import AnyRecord, FrameAccepted, RunClosed, RunStarted
from coordinator.report.summary import build_summary, quantiles
from coordinator.report.summary_types import GeneratorSummary, Summary
from tests.support.records import (
    T0_UTC_NS,
    accepted,
    clean_run,
    closed,
    command,
    histogram,
    interval,
    looking_up,
    noted,
    opened,
    plan,
    staged_plan,
    watched,
)
from tests.support.stages import stage

Q = {"count", "min", "mean", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max"}
STATS = {"operations", "ok", "errors", "ops_per_s", "bytes_out", "bytes_in", "latency_us"}
PROMISED: dict[str, set[str]] = {
    "run": {"id", "started_at", "duration_s", "outcome", "plan_hash"},
    "target": {"url", "topology", "server"},
    "totals": STATS,
    "checkout_wait_us": Q,
    "connections": {"ceiling", "peak_open", "opened", "failed_attempts", "drops", "reconnects", "reconnect_ms"}
    | {"wanted", "failed_by_cause", "never_opened", "connect_ms", "tls_handshakes", "maintenance"},
    "ledger": {"issued", "counted", "server_calls", "unaccounted"},
    "verdict": {"level", "reasons"},
}
AGENT = {"id", "host", "processes", "state", "clock_offset_us", "start_skew_us", "cpu_percent_max"}


def as_json(**rate: float) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(build_summary(fold(clean_run(plan(**rate)))).to_json())
    return found


def test_the_summary_has_its_promised_keys() -> None:
    summary = as_json()
    assert summary["format"] == 1
    for part, keys in PROMISED.items():
        assert keys <= summary[part].keys(), part
    assert set(summary["commands"]) == {"SET", "GET", "DEL"}
    assert set(summary["pools"]) == {"main"}
    assert all(stats.keys() >= STATS for stats in [*summary["commands"].values(), *summary["pools"].values()])
    assert summary["totals"]["latency_us"].keys() >= {"service", "response"}
    assert summary["totals"]["latency_us"]["service"].keys() == Q
    assert summary["connections"]["reconnect_ms"].keys() == Q
    assert summary["connections"]["connect_ms"].keys() == {"total", "tcp", "tls", "handshake"}
    assert all(part.keys() == Q for part in summary["connections"]["connect_ms"].values())
    assert all(agent.keys() >= AGENT for agent in summary["agents"])
    assert summary["errors"] == {}


def test_the_summary_has_its_promised_values() -> None:
    summary = as_json()
    assert summary["run"]["outcome"] == "completed"
    assert summary["verdict"] == {"level": "trusted", "reasons": [], "notes": []}
    assert {agent["state"] for agent in summary["agents"]} == {"finished"}
    assert summary["ledger"]["unaccounted"] == 0


def test_figures_of_a_known_run() -> None:
    summary = as_json()
    totals = summary["totals"]
    assert (totals["operations"], totals["ok"], totals["errors"], totals["ops_per_s"]) == (6000, 6000, 0, 2000.0)
    assert (totals["bytes_out"], totals["bytes_in"]) == (360_000, 30_000)
    assert [summary["commands"][name]["ok"] for name in ("SET", "GET", "DEL")] == [2400, 3000, 600]
    assert summary["connections"]["peak_open"] == 4
    assert summary["checkout_wait_us"]["count"] == 6
    assert sum(one["count"] for one in summary["latency_bins"]) == 6000
    assert summary["agents"][0]["start_skew_us"] == 150.0


def test_a_closed_loop_has_no_response_time() -> None:
    summary = as_json()
    assert summary["totals"]["latency_us"]["response"] is None
    assert summary["load"]["model"] == "closed"
    assert summary["load"]["target_rate_per_s"] is None
    assert summary["load"]["send_lag_us"] is None


def test_an_open_loop_has_its_target_rate_and_its_achieved_rate() -> None:
    summary = as_json(rate_per_s=2000.0)
    assert summary["totals"]["latency_us"]["response"]["count"] == 6000
    assert summary["load"]["model"] == "open"
    assert summary["load"]["arrivals"] == "constant"
    assert summary["load"]["target_rate_per_s"] == 2000.0
    assert summary["load"]["achieved_rate_per_s"] == 2000.0


def test_errors_are_counted_by_name_and_not_as_done() -> None:
    get = command(histogram(5000), errors={"READONLY": 2}, failures={"TimeoutError": 3}, failed=histogram(*[10**9] * 5))
    summary = build_summary(fold([opened(agents=["a1"]), accepted("a1", 0, interval(0, {"GET": get})), noted("a1", 6)]))
    assert summary.errors == {"READONLY": 2, "TimeoutError": 3}
    assert (summary.totals.operations, summary.totals.ok, summary.totals.errors) == (6, 1, 5)
    assert summary.totals.latency_us.service.count == 1
    assert summary.totals.latency_us.failed.max == 1e6


def test_quantiles_have_the_unit_of_their_key() -> None:
    found = quantiles(Histogram.from_values(np.arange(1, 1001, dtype=np.int64) * 1000), 1e3)
    assert (found.count, found.min, found.max, found.mean) == (1000, 1.0, 1000.0, 500.5)
    for name, expected in {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99_9": 999, "p99_99": 1000}.items():
        assert getattr(found, name) == pytest.approx(expected, rel=1 / 1024)


def test_the_live_summary_equals_the_one_folded_from_the_journal(tmp_path: Path) -> None:
    live = Aggregate()
    with Journal.create(tmp_path / "journal") as journal:
        for record in clean_run(plan(rate_per_s=2000.0)):
            journal.append(record)
            live.apply(record)
            _ = live.totals
    again = build_summary(fold(read_journal(tmp_path / "journal")))
    assert build_summary(live) == again
    assert build_summary(live).to_json() == again.to_json()


def test_a_run_whose_coordinator_was_killed_is_reported_as_aborted() -> None:
    records = [record for record in clean_run() if not isinstance(record, RunClosed)][:-3]
    summary = build_summary(fold(records))
    assert summary.run.outcome.value == "aborted"
    assert "it was killed, its machine went down, or its disk was full" in summary.run.reason
    assert {agent.state.value for agent in summary.agents} == {"open"}
    assert summary.totals.operations == 6000
    assert summary.run.duration_s == 3.0


def test_a_journal_that_ends_before_the_run_began_cannot_be_reported() -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        build_summary(Aggregate())


def test_the_summary_has_the_plan_as_a_plan_file() -> None:
    the_plan: Plan = plan(pipeline=7)
    the_plan = msgspec.structs.replace(
        the_plan, load=msgspec.structs.replace(the_plan.load, duration_s=None, requests=Count(5))
    )
    found = build_summary(fold([opened(the_plan)])).plan
    assert found["workload"]["pipeline"] == 7
    assert found["load"]["requests"] == 5
    assert found["load"]["duration"] is None
    assert found["target"]["password"] == "***"


def test_only_a_workload_with_subscribers_has_delivery_figures() -> None:
    deliveries = DeliveryMetrics(expected=9, delivered=7, foreign=3, repeated=1, latency=histogram(2000, 4000))
    frame = accepted("a1", 0, IntervalMetrics(first=0, last=0, pools={"main": PoolMetrics(deliveries=deliveries)}))
    for name, has_figures in (("SUBSCRIBE a", True), ("PUBLISH a __message__", False)):
        the_plan = msgspec.structs.replace(plan(), workload=Workload(commands=(Command(command=name),)))
        summary = build_summary(fold([opened(the_plan), frame, closed()]))
        assert (summary.pubsub is not None) is has_figures
        if summary.pubsub is not None:
            assert (summary.pubsub.expected, summary.pubsub.delivered, summary.pubsub.lost) == (9, 7, 2)
            assert (summary.pubsub.foreign, summary.pubsub.repeated) == (3, 1)
            assert (summary.pubsub.latency_us.min, summary.pubsub.latency_us.max) == (2.0, 4.0)


def staged() -> Summary:
    the_plan = staged_plan(stage(1), stage(1, 2, name="even"), stage(1, 6, Ramp.LINEAR), warmup_s=1)
    closed_get = command(histogram(1000, 2000), errors={"READONLY": 1})
    open_get = command(histogram(3000, 3000), response=histogram(4000, 5000))
    frame = accepted(
        "a1",
        0,
        interval(0, {"GET": closed_get}),
        interval(1, {"GET": closed_get}, stage=1),
        interval(2, {"GET": open_get}, stage=2),
        interval(3, {"GET": open_get}, stage=2),
        interval(3, {"GET": open_get}, stage=3, unsent=2),
    )
    return build_summary(fold([opened(the_plan, ["a1"]), frame, noted("a1", 12), closed(duration_s=4.0)]))


def test_each_stage_has_its_own_numbers() -> None:
    summary = staged()
    found = [(one.name, one.begin_s, one.duration_s, one.model, one.ramp, one.measured) for one in summary.stages]
    assert found == [
        ("warmup", 0.0, 1.0, "closed", None, False),
        ("stage 1", 1.0, 1.0, "closed", None, True),
        ("even", 2.0, 1.0, "open", "step", True),
        ("stage 3", 3.0, 1.0, "open", "linear", True),
    ]
    rates = [(one.from_rate_per_s, one.target_rate_per_s, one.achieved_rate_per_s) for one in summary.stages]
    assert rates == [(None, None, 3.0), (None, None, 3.0), (2.0, 2.0, 4.0), (2.0, 6.0, 2.0)]
    assert [one.wanted_rate_per_s for one in summary.stages] == [None, None, 2.0, 4.0]
    assert [one.stats.operations for one in summary.stages] == [3, 3, 4, 2]
    assert [one.errors for one in summary.stages] == [{"READONLY": 1}, {"READONLY": 1}, {}, {}]
    assert [one.unsent for one in summary.stages] == [0, 0, 0, 2]
    assert [one.stats.latency_us.response is None for one in summary.stages] == [True, True, False, False]


def test_the_target_rate_is_the_mean_over_the_measured_time() -> None:
    def wanted(the_plan: Plan, duration_s: float) -> float | None:
        return build_summary(fold([opened(the_plan), closed(duration_s=duration_s)])).load.wanted_rate_per_s

    ramp = stage(2, 300, Ramp.LINEAR)
    assert wanted(staged_plan(ramp), 2.0) == 150.0
    assert wanted(staged_plan(ramp), 1.0) == 75.0  # cut short
    assert wanted(staged_plan(ramp, stage(2, 50)), 4.0) == 100.0
    assert wanted(staged_plan(ramp, stage(2)), 4.0) is None
    assert wanted(plan(rate_per_s=2000.0), 3.0) == 2000.0
    assert wanted(plan(), 3.0) is None


def test_totals_leave_out_the_warmup_and_the_ledger_includes_it() -> None:
    summary = staged()
    assert (summary.totals.operations, summary.commands["GET"].operations, summary.pools["main"].ok) == (9, 9, 8)
    assert summary.totals.ops_per_s == pytest.approx(8 / 3)
    assert summary.errors == {"READONLY": 1}
    assert summary.checkout_wait_us.count == 4
    assert (summary.ledger.issued, summary.ledger.counted) == (12, 12)
    assert (summary.run.duration_s, summary.load.measured_s) == (4.0, 3.0)
    assert (summary.load.model, summary.load.arrivals, summary.load.target_rate_per_s) == ("mixed", "constant", None)
    assert (summary.load.achieved_rate_per_s, summary.load.unsent) == (3.0, 2)
    assert summary.totals.latency_us.response is not None
    assert summary.totals.latency_us.response.count == 6
    assert sum(one.count for one in summary.latency_bins) == 8


def test_a_load_without_stages_is_one_stage_with_the_totals() -> None:
    summary = build_summary(fold(clean_run(plan(rate_per_s=2000.0))))
    [stage] = summary.stages
    assert (stage.name, stage.stats, stage.achieved_rate_per_s) == ("measure", summary.totals, 2000.0)


# The cost of the load itself


def generator_of(records: Iterable[AnyRecord]) -> GeneratorSummary:
    return build_summary(fold(records)).generator


def test_the_generator_reports_its_cpu_per_operation_and_its_busy_share() -> None:
    records = watched(
        clean_run(plan(rate_per_s=2000.0)),
        {"a1": 0.25, "a2": 0.5},
        loop=0.5,
        turns_ns=[1_000, 2_000],
        late_ns=[10, 1_000_000, 1_000_001],
    )
    found = generator_of(records)
    # Two processes each: 2 * 0.25 + 2 * 0.5 s in each of three seconds, for 6000 operations.
    assert (found.cpu_s, found.cpu_us_per_operation) == (4.5, 750.0)
    assert (found.core_share_max, found.core_share_mean, found.loop_share_mean) == (0.5, 0.5, 0.5)
    assert found.loop_lag_us is not None
    assert (found.loop_lag_us.count, found.loop_lag_us.min, found.loop_lag_us.max) == (12, 1.0, 2.0)
    assert (found.late_sends, found.limit) == (6, False)


def test_the_largest_share_is_of_one_second_and_the_mean_of_all_seconds() -> None:
    records = watched(clean_run(seconds=4), {"a1": 0.4, "a2": 0.3})
    first = next(number for number, record in enumerate(records) if isinstance(record, FrameAccepted))
    records[first] = watched([records[first]], {"a1": 0.8})[0]
    found = generator_of(records)
    assert found.core_share_max == 0.8
    assert found.core_share_mean == pytest.approx(0.5)


def test_the_summary_and_the_verdict_agree_that_the_generator_was_the_limit() -> None:
    summary = build_summary(fold(watched(clean_run(), {"a1": 0.95, "a2": 0.2})))
    assert summary.generator.limit
    assert "the generator, not the server, was the limit" in summary.verdict.reasons[0]


@pytest.mark.parametrize("core", [{}, {"a1": 0.5}])
def test_cpu_per_operation_is_unknown_if_an_agent_does_not_report_it(core: dict[str, float]) -> None:
    found = generator_of(watched(clean_run(), core))
    assert (found.cpu_s, found.cpu_us_per_operation, found.core_share_max, found.core_share_mean) == (None,) * 4
    assert (found.loop_share_mean, found.loop_lag_us, found.late_sends, found.limit) == (None, None, 0, False)


def test_hold_ups_of_the_most_delayed_agent_are_reported() -> None:
    delays = {
        "a1": GeneratorDelays(quota_periods=10, throttled_periods=9, throttled_ns=NS_PER_S // 2),
        "a2": GeneratorDelays(
            quota_periods=30, stalled_ns=NS_PER_S, stall_max_ns=3 * NS_PER_S, stall_at_ns=NS_PER_S // 2
        ),
    }
    found = generator_of(watched(clean_run(), {"a1": 0.1, "a2": 0.1}, delays=delays))
    assert (found.throttled_periods, found.quota_periods, found.throttled_s) == (27, 30, 1.5)
    assert (found.stall_max_s, found.stall_at_s, found.limit) == (3.0, 0.5, True)
    free = generator_of(
        watched(clean_run(), {"a1": 0.1, "a2": 0.1}, delays={"a1": GeneratorDelays(), "a2": GeneratorDelays()})
    )
    assert (free.throttled_periods, free.quota_periods, free.throttled_s) == (0, 0, 0.0)
    assert (free.stall_max_s, free.stall_at_s, free.limit) == (0.0, None, False)
    silent = generator_of(watched(clean_run(), {"a1": 0.1, "a2": 0.1}))
    assert (silent.throttled_periods, silent.quota_periods, silent.throttled_s) == (None, None, None)
    assert (silent.stall_max_s, silent.stall_at_s, silent.limit) == (None, None, False)


def test_an_agent_reports_its_quota_and_the_used_share_of_it() -> None:
    delays = {
        "a1": GeneratorDelays(allowed_ns=NS_PER_S // 2, quota_used_ns=NS_PER_S // 4),
        "a2": GeneratorDelays(allowed_ns=NS_PER_S // 4),  # without a figure of the system, the CPU time of the workers
    }
    records = watched(clean_run(), {"a1": 0.1, "a2": 0.1}, delays=delays)
    agents = build_summary(fold(records)).agents
    assert [(agent.quota_cores, agent.quota_percent_mean) for agent in agents] == [(0.5, 50.0), (0.25, 80.0)]
    assert [agent.host_cpu_percent_mean for agent in agents] == [60.0, 60.0]
    free = build_summary(fold(watched(clean_run(), {"a1": 0.1}, delays={"a1": GeneratorDelays()}))).agents
    assert [(agent.quota_cores, agent.quota_percent_mean) for agent in free] == [(None, None), (None, None)]


def test_a_run_without_operations_has_no_cpu_per_operation() -> None:
    records = watched([opened(agents=["a1"]), accepted("a1", 0, interval(0, {}))], {"a1": 0.5})
    assert (generator_of(records).cpu_s, generator_of(records).cpu_us_per_operation) == (1.0, None)


def test_the_figures_of_the_generator_leave_out_the_warmup() -> None:
    get = {"GET": command(histogram(*[1000] * 1000))}
    warm, rest = (accepted("a1", number, interval(number, get, stage=number)) for number in range(2))
    frames = [*watched([warm], {"a1": 1.0}, late_ns=[5_000_000]), *watched([rest], {"a1": 0.5}, late_ns=[5])]
    found = generator_of([opened(staged_plan(stage(1, 1000), warmup_s=1), ["a1"]), *frames])
    assert (found.cpu_s, found.cpu_us_per_operation) == (1.0, 1000.0)
    assert (found.core_share_max, found.core_share_mean, found.late_sends, found.limit) == (0.5, 0.5, 0, False)


def test_the_load_starts_and_ends_at_a_time_of_the_wall_clock() -> None:
    run = as_json()["run"]
    assert run["load_started_at"] == "2026-03-04T05:06:07.890123+00:00"
    assert run["load_ended_at"] == "2026-03-04T05:06:10.890123+00:00"
    going_on = build_summary(fold(record for record in clean_run() if not isinstance(record, RunClosed))).run
    assert (going_on.load_started_at, going_on.load_ended_at) == (run["load_started_at"], None)
    not_started = build_summary(fold([opened()])).run
    assert (not_started.load_started_at, not_started.load_ended_at) == (None, None)


def test_hits_and_misses_are_those_of_the_commands_whose_replies_show_them() -> None:
    summary = build_summary(fold(looking_up(GET=(3, 1), DEL=(0, 0))))
    found = {name: (stats.hits, stats.misses) for name, stats in summary.commands.items()}
    assert found == {"GET": (6, 2), "DEL": (None, None)}
    assert (summary.totals.hits, summary.totals.misses) == (6, 2)
    [scenario] = summary.scenarios
    assert (scenario.totals.hits, scenario.pools["main"].misses) == (6, 2)


def failing(*samples: ErrorSample) -> list[AnyRecord]:
    """A run whose only second has these errors, and one whose start the journal has by the wall clock."""
    errors = dict[str, int]()
    for sample in samples:
        errors[sample.name] = errors.get(sample.name, 0) + sample.count
    second = interval(0, {"GET": command(histogram(2000), errors=errors)})
    [(name, pool)] = second.pools.items()
    second = msgspec.structs.replace(second, pools={name: msgspec.structs.replace(pool, error_samples=samples)})
    started = RunStarted(t0_ns=1, t0_utc_ns=T0_UTC_NS)
    return [opened(agents=["a1"]), started, accepted("a1", 0, second), closed(duration_s=1.0)]


def test_samples_of_errors_are_ordered_and_have_their_utc() -> None:
    busy = ErrorSample(name="BUSY", message="BUSY no", command="GET", count=2, last_ns=NS_PER_S)
    wrong = ErrorSample(
        name="WRONGTYPE",
        message="WRONGTYPE no",
        command="GET",
        key="key:1",
        endpoint="web1:6379",
        exception="ResponseError",
        count=5,
        first_ns=NS_PER_S // 2,
        last_ns=NS_PER_S,
    )
    rest = ErrorSample(name="WRONGTYPE", count=9)
    found = json.loads(build_summary(fold(failing(busy, rest, wrong))).to_json())
    assert [(each["class"], each["message"], each["count"]) for each in found["error_samples"]] == [
        ("WRONGTYPE", "WRONGTYPE no", 5),
        ("WRONGTYPE", "", 9),
        ("BUSY", "BUSY no", 2),
    ]
    assert found["error_samples"][0] == {
        "class": "WRONGTYPE",
        "message": "WRONGTYPE no",
        "command": "GET",
        "key": "key:1",
        "endpoint": "web1:6379",
        "first_at": "2026-03-04T05:06:08.390123+00:00",
        "last_at": "2026-03-04T05:06:08.890123+00:00",
        "count": 5,
        "first_s": 0.5,
        "last_s": 1.0,
        "exception": "ResponseError",
        "cause": "",
    }
    assert found["scenarios"][0]["error_samples"] == found["error_samples"]
    assert found["errors"] == {"BUSY": 2, "WRONGTYPE": 14}

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console

from common.metrics.error_samples import ErrorSample
from common.metrics.intervals import ConnectionMetrics, DeliveryMetrics, GeneratorDelays, IntervalMetrics, PoolMetrics
from common.plan.schema import Command, Pools, Ramp, Workload
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import AnyRecord, Outcome, RunClosed
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from tests.support.records import (
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


def text(records: Iterable[AnyRecord], *, width: int = 80, hide_histogram: bool = False) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=width), build_summary(fold(records)), hide_histogram=hide_histogram)
    return out.getvalue()


def row(report: str, name: str) -> list[str]:
    return next(line.split() for line in report.splitlines() if line.split()[:1] == [name])


def failing_run(**failed: int) -> list[AnyRecord]:
    get = command(histogram(1_234_000), failures=failed, failed=histogram(*[5 * 10**9] * sum(failed.values())))
    frame = accepted("a1", 0, interval(0, {"GET": get}, retries=4))
    return [opened(), frame, noted("a1", get.operations), noted("a2", 0, lost=True), closed(Outcome.DEGRADED, 1.0)]


def test_the_report_has_a_row_for_each_command_and_one_for_the_totals() -> None:
    report = text(clean_run())
    assert [row(report, name)[1] for name in ("SET", "GET", "DEL", "Totals")] == ["800.0", "1,000", "200.0", "2,000"]
    assert row(report, "Type") == ["Type", "Ops/s", "Avg", "p50", "p90", "p99", "p99.9", "max", "KiB/s", "Errors"]
    assert row(report, "Totals")[-2:] == ["127.0", "0"]


def test_the_report_names_the_load_model() -> None:
    assert "closed loop" in text(clean_run())
    report = text(clean_run(plan(rate_per_s=2000.0)), width=200)
    assert "open loop (constant arrivals): 2,000/s wanted, 2,000/s achieved, 0 never sent" in report
    assert "Response time, from the intended send" in report


def test_the_report_has_the_ledger_and_the_verdict() -> None:
    report = text(clean_run(), width=120)
    assert "issued 6,000, counted 6,000, server calls 6,000: 0 unaccounted" in report
    assert row(report, "Verdict") == ["Verdict", "trusted"]


def test_the_report_names_errors_losses_and_reasons() -> None:
    report = text(failing_run(TimeoutError=2, ConnectionError=7), width=200)
    assert "ConnectionError 7, TimeoutError 2 (90.00% of all operations, took 5,000 ms at most)" in report
    assert "degraded in 1.0 s" in report
    assert "4 retries" in report
    assert row(report, "a2")[3] == "lost"
    assert row(report, "Verdict") == ["Verdict", "suspect"]
    assert "1 of 2 agents lost (a2)" in report


def test_unopened_connections_have_their_causes() -> None:
    causes = {"maxclients": 60, "timeout": 10}
    part = interval(0, {"GET": command(histogram(9))}, open_peak=30, wanted=100, never_opened=causes)
    report = text([opened(agents=["a1"]), accepted("a1", 0, part), noted("a1", 1), closed()], width=200)
    assert "70 of 100 wanted never opened: maxclients 60, timeout 10" in report


def test_connects_have_their_times_and_parts_and_notifications_their_kinds() -> None:
    ms = 1_000_000
    tcp = ConnectionMetrics(connect=histogram(2 * ms), connect_tcp=histogram(ms), connect_handshake=histogram(ms))
    tls = ConnectionMetrics(connect=histogram(9 * ms), connect_tls=histogram(5 * ms), tls_handshakes=1)
    notified = ConnectionMetrics(maintenance={"MOVING": 1, "MIGRATING": 3})
    shown = {}
    for name, connects in {"tcp": tcp, "tls": tls, "notified": notified}.items():
        part = interval(0, {"GET": command(histogram(9))}, connects=connects)
        shown[name] = text([opened(agents=["a1"]), accepted("a1", 0, part), noted("a1", 1), closed()], width=200)
    assert "connects took 2.0 ms (p50), 2.0 ms (p99), 2.0 ms (max); p50 of TCP 1.0 ms, handshake 1.0 ms" in shown["tcp"]
    assert "9.0 ms (max); p50 of TLS 5.0 ms; 1 TLS handshake" in shown["tls"]
    assert "maintenance notifications: MIGRATING 3, MOVING 1" in shown["notified"]
    assert "connects took" not in shown["notified"]
    assert "maintenance" not in shown["tcp"]


def test_failed_attempts_have_their_causes() -> None:
    part = interval(0, {"GET": command(histogram(9))}, failed_by_cause={"refused": 3, "timeout": 4})
    report = text([opened(agents=["a1"]), accepted("a1", 0, part), noted("a1", 1), closed()], width=200)
    assert "7 failed attempts (timeout 4, refused 3), 0 retries" in report
    assert "never opened" not in report


def test_an_error_rate_above_one_percent_is_in_the_first_line() -> None:
    report = text(failing_run(TimeoutError=1, ConnectionError=7, CutShort=2), width=200)
    assert "degraded in 1.0 s, 90.9% of operations failed (ConnectionError 7, CutShort 2 and 1 more kinds): " in report
    few = [
        opened(agents=["a1"]),
        accepted("a1", 0, interval(0, {"GET": command(histogram(*[9] * 99), errors={"ERR": 1})})),
    ]
    assert "failed" not in text([*few, noted("a1", 100), closed()], width=200).splitlines()[1]


def test_the_first_line_does_not_repeat_the_errors_that_the_outcome_names() -> None:
    *records, end = failing_run(ConnectionError=7)
    end = msgspec.structs.replace(end, reason="the target was lost: ConnectionError 7")
    assert "degraded in 1.0 s, 87.5% of operations failed: the target was lost" in text([*records, end], width=200)


def test_many_unsent_operations_are_in_the_first_line() -> None:
    get = command(histogram(*[1000] * 75), failures={"ConnectionError": 25})
    records = [opened(plan(rate_per_s=200.0), ["a1"]), accepted("a1", 0, interval(0, {"GET": get}, unsent=100))]
    report = text([*records, noted("a1", 100), closed(duration_s=1.0)], width=200)
    assert "completed in 1.0 s, 25.0% of operations failed (ConnectionError 25), 50.0% never sent" in report


def test_a_ramp_is_compared_with_its_mean_rate() -> None:
    get = {"GET": command(histogram(*[1000] * 500), response=histogram(*[1000] * 500))}
    of_one = [opened(staged_plan(stage(1, 1000, Ramp.LINEAR)), ["a1"]), accepted("a1", 0, interval(0, get))]
    report = text([*of_one, noted("a1", 500), closed(duration_s=1.0)], width=200)
    assert "500.0/s wanted (a ramp from 0.0 to 1,000), 500.0/s achieved" in report
    two = staged_plan(stage(1, 1000, Ramp.LINEAR, name="up"), stage(1, 500, name="on"))
    frame = accepted("a1", 0, interval(0, get), interval(1, get, stage=1))
    report = text([opened(two, ["a1"]), frame, noted("a1", 1000), closed(duration_s=2.0)], width=200)
    assert row(report, "up")[3:5] == row(report, "on")[3:5] == ["500", "500"]
    assert "2 stages (open loop, constant arrivals): 500.0/s wanted, 500.0/s achieved" in report


def test_the_histogram_can_be_hidden() -> None:
    assert "Service times" in text(clean_run())
    assert "Service times" not in text(clean_run(), hide_histogram=True)


def test_markup_in_a_reason_is_printed_as_text() -> None:
    records = list(clean_run())
    end = closed()
    records[-1] = msgspec.structs.replace(end, reason="the user said [bold]stop[/nonsense]")
    assert "the user said [bold]stop[/nonsense]" in text(records)


def test_several_pools_have_rows_of_their_own() -> None:
    first = interval(0, {"GET": command(histogram(1000))})
    both = msgspec.structs.replace(first, pools=first.pools | {"bulk": first.pools["main"]})
    the_plan = msgspec.structs.replace(plan(), pools=(Pools(), Pools(name="bulk")))
    report = text([opened(the_plan, ["a1"]), accepted("a1", 0, both), noted("a1", 2), closed()])
    assert "pool main" in report
    assert "pool bulk" in report
    assert "pool main" not in text(clean_run())


def test_a_large_fleet_shows_lost_agents_first_and_counts_the_others() -> None:
    names = [f"a{number}" for number in range(40)]
    report = text([opened(agents=names), *(noted(name, 0, lost=name == "a39") for name in names), closed()])
    assert row(report, "a39")[3] == "lost"
    assert "and 30 more" in report


def test_an_empty_run_is_reported() -> None:
    report = text([opened(), closed(Outcome.ABORTED, 0.0)])
    assert "No operation ended." in report
    assert row(report, "Totals")[1:3] == ["0.0", "-"]


def subscribed(**counts: int) -> list[AnyRecord]:
    the_plan = msgspec.structs.replace(plan(), workload=Workload(commands=(Command(command="SUBSCRIBE a"),)))
    latency = histogram(*[1_000_000] * counts.pop("timed", 0))
    pools = {"main": PoolMetrics(deliveries=DeliveryMetrics(latency=latency, **counts))}
    frame = accepted("a1", 0, IntervalMetrics(first=0, last=0, pools=pools))
    return [opened(the_plan), frame, closed()]


def test_only_a_workload_with_subscribers_has_a_line_of_deliveries() -> None:
    assert "Deliveries" not in text(clean_run())
    report = text(subscribed(expected=1003, delivered=1000, timed=1000))
    assert "Deliveries    1,000 of 1,003 expected, 3 lost\n" in report
    assert "latency avg 1.000, p50 1.000, p99 1.000, max 1.000 ms" in report
    report = text(subscribed(expected=7, delivered=7, repeated=2, foreign=4, timed=5), width=120)
    assert "7 of 7 expected, 0 lost, 2 sent twice, 4 from other publishers" in report
    assert "5 of them timed, without those between hosts and those of the warmup" in report
    assert "latency" not in text(subscribed()).partition("Deliveries")[2].partition("Errors")[0]


def test_redirections_and_topology_changes_are_shown_only_if_there_are_any() -> None:
    assert "redirected" not in text(clean_run(), width=200)
    get = command(histogram(1_000))
    frame = accepted("a1", 0, interval(0, {"GET": get}, redirects={"ASK": 1, "MOVED": 2}, topology_refreshes=3))
    records = [opened(), frame, noted("a1", 1), closed(Outcome.COMPLETED, 1.0)]
    report = text(records, width=200)
    assert "redirected by the cluster: MOVED 2, ASK 1" in report
    assert "3 topology refreshes" in report
    connections = build_summary(fold(records)).connections
    assert (connections.redirects, connections.topology_refreshes) == ({"ASK": 1, "MOVED": 2}, 3)


def staged_run(stages: int = 3) -> list[AnyRecord]:
    shapes = [stage(12_345.6, 12_340), stage(100, 1_239_000, Ramp.LINEAR, name="a-name-of-many-letters"), stage(7.25)]
    the_plan = staged_plan(*shapes[:stages], warmup_s=2.5)
    slow = histogram(*[99_000_000_000] * 1000)
    get = command(slow, response=slow, errors={"READONLY": 123_456})
    parts = [interval(number, {"GET": get}, stage=number) for number in range(stages + 1)]
    return [opened(the_plan), accepted("a1", 0, *parts), noted("a1", 124_456 * len(parts)), closed(duration_s=13_000.0)]


def test_the_table_of_stages_fits_80_columns() -> None:
    report = text(staged_run())
    assert max(map(len, report.splitlines())) <= 80
    assert "…" not in report
    table = report[report.index("Stages (ms") : report.index("Service time")]
    assert row(table, "warmup")[1:5] == ["0s", "2.5s", "12.3k", "49.8k"]
    assert "to 1.24M" in table
    assert row(table, "Stage")[-1] == "Errors"
    assert row(table, "warmup")[-1] == "123k"
    assert "of the other numbers, only the ledger" in table
    assert "3 stages (closed and open loop, constant arrivals)" in report
    assert "Response time at a rate" in report


def test_a_single_stage_after_a_warmup_is_reported_like_a_load_without_stages() -> None:
    report = text(staged_run(1))
    assert "Stages (ms" in report
    assert "open loop (constant arrivals): 12,340/s wanted" in report


def test_a_load_without_stages_has_no_table_of_stages() -> None:
    assert "Stages" not in text(clean_run())


def test_operations_without_a_response_time_are_counted() -> None:
    closed_loop = command(histogram(*[100_000] * 90), errors={"READONLY": 10})
    at_a_rate = command(histogram(100_000), response=histogram(100_000), errors={"READONLY": 1})
    parts = [interval(0, {"GET": closed_loop}, stage=0), interval(1, {"GET": at_a_rate}, stage=1, unsent=2)]
    frames = [accepted("a1", 0, *parts), noted("a1", 102)]
    report = text([opened(staged_plan(stage(1), stage(1, 4))), *frames, closed(duration_s=2.0)])
    assert "without 3 of 4 intended operations (75.0%): 2 never sent, 1 failed" in " ".join(report.split())


def test_hold_ups_of_the_generator_are_shown_and_a_quota_replaces_the_cpu_of_the_host() -> None:
    records = watched(
        clean_run(),
        {"a1": 0.04, "a2": 0.1},
        delays={
            "a1": GeneratorDelays(
                allowed_ns=NS_PER_S // 10, quota_periods=10, throttled_periods=9, throttled_ns=NS_PER_S // 2
            ),
            "a2": GeneratorDelays(stalled_ns=NS_PER_S, stall_max_ns=3 * NS_PER_S, stall_at_ns=NS_PER_S // 2),
        },
    )
    report = text(records, width=120)
    assert "throttled by a CPU quota in 27 of 30 periods, 1.50 s in total" in report
    assert "a worker process did not run for 3.0 s, from 0.5 s on" in report
    assert (row(report, "a1")[7], row(report, "a2")[7]) == ("80%*", "60%")
    assert "* of a CPU quota of 0.1 cores" in report
    free = text(watched(clean_run(), {"a1": 0.1, "a2": 0.1}, delays={"a1": GeneratorDelays()}))
    assert "throttled" not in free
    assert "did not run" not in free
    assert "*" not in free


def test_the_cost_of_the_load_is_shown_if_it_is_known() -> None:
    assert row(text(clean_run()), "Generator") == ["Generator", "not", "known"]
    report = text(watched(clean_run(), {"a1": 0.25, "a2": 0.5}), width=120)
    assert (
        "Generator     4.50 s of CPU, 750.0 us per operation; the busiest process used 50% of a core, 50% at " in report
    )
    assert "event loops" not in report
    busy = watched(
        clean_run(plan(rate_per_s=2000.0)), {"a1": 0.9, "a2": 0.9}, loop=0.6, turns_ns=[5_000_000], late_ns=[2_000_000]
    )
    report = text(busy, width=120)
    assert "event loops busy 60% of the time, without a pause for 5.000 ms (p99), 5.000 ms (max)" in report
    assert "6 operations sent more than 1 ms late" in report
    assert max(map(len, text(busy).splitlines())) <= 80


def test_the_report_names_the_utc_of_the_load() -> None:
    assert "from 2026-03-04 05:06:07.890 to 05:06:10.890 UTC" in text(clean_run())
    over_midnight = [closed(duration_s=80_000.0) if isinstance(each, RunClosed) else each for each in clean_run()]
    assert "from 2026-03-04 05:06:07.890 to 2026-03-05 03:19:27.890 UTC" in text(over_midnight)


def test_the_table_of_commands_has_hit_rates_if_replies_show_them() -> None:
    report = text(looking_up(GET=(3, 1), SET=(0, 0)), width=120)
    assert [row(report, name)[-2] for name in ("GET", "SET", "Totals")] == ["75.0%", "-", "75.0%"]
    assert "Hits" not in text(looking_up(SET=(0, 0)), width=120)


def test_the_report_shows_one_sample_of_each_class_and_counts_the_others() -> None:
    def sample(name: str, message: str, count: int, **fields: Any) -> ErrorSample:
        return ErrorSample(name=name, message=message, command="GET", count=count, **fields)

    samples = (
        sample("ERR", "ERR no", 700, endpoint="web1:6379", key="key:1", first_ns=NS_PER_S // 2, last_ns=2 * NS_PER_S),
        sample("ERR", "ERR another", 3),
        sample("ERR", "ERR \x1b[2J", 2),
        sample("ERR", "ERR fourth", 2),
        sample("ERR", "ERR fifth", 2),
        sample("ConnectionError", "Connection closed", 1, first_ns=NS_PER_S),
        ErrorSample(name="ERR", count=1000),
    )
    get = command(histogram(2000), errors={"ERR": 1709}, failures={"ConnectionError": 1})
    second = interval(0, {"GET": get})
    pools = {name: msgspec.structs.replace(pool, error_samples=samples) for name, pool in second.pools.items()}
    report = text([opened(), accepted("a1", 0, msgspec.structs.replace(second, pools=pools)), closed()], width=100)
    lines = report[report.index("\nErrors") : report.index("\nLedger")].splitlines()[1:]
    assert [line.strip() for line in lines[1:]] == [
        "700 x GET key:1 at web1:6379, 0.5 s to 2.0 s: ERR no",
        "1 x GET, at 1.0 s: ConnectionError: Connection closed",
        "3 x GET, 0.0 s to 0.0 s: ERR another",
        r"2 x GET, 0.0 s to 0.0 s: ERR \x1b[2J",
        "and 2 more in summary.json",
    ]

from __future__ import annotations

import io

import msgspec
from rich.console import Console

from common.metrics.intervals import CommandMetrics, merge_commands
from common.plan.schema import Target
from coordinator.analysis.totals.aggregate import fold
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from tests.support.records import accepted, clean_run, command, histogram, interval, opened, plan


def report(nodes: dict[str, CommandMetrics]) -> list[str]:
    """The lines of the report from the table of endpoints on."""
    part = interval(0, {"GET": merge_commands(nodes.values())})
    pool = msgspec.structs.replace(part.pools["main"], primaries=nodes)
    part = msgspec.structs.replace(part, pools={"main": pool})
    cluster = msgspec.structs.replace(plan(), target=Target(url="redis+cluster://h"))
    run = fold([opened(cluster, ["a1"]), accepted("a1", 0, part)])
    return printed(run)


def printed(run: object) -> list[str]:
    out = io.StringIO()
    print_summary(Console(file=out, width=120), build_summary(run))  # type: ignore[arg-type]
    lines = out.getvalue().splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith("Endpoints")), len(lines))
    return lines[begin:]


def test_endpoints_have_a_row_each_the_slowest_first() -> None:
    fast, slow = histogram(*[1_000_000] * 30), histogram(*[5_000_000] * 10)
    lines = report({"h:1": command(fast), "h:2": command(slow, errors={"READONLY": 2})})
    assert lines[0] == "Endpoints, the slowest first (ms: service time)"
    first, second = lines[3].split(), lines[4].split()
    assert (first[:2], first[3], first[6], first[-1]) == (["h:2", "primary"], "28.6%", "5.000", "2")
    assert (second[:2], second[3], second[6], second[-1]) == (["h:1", "primary"], "71.4%", "1.000", "0")


def test_a_large_cluster_has_its_ten_slowest_endpoints_in_the_report() -> None:
    lines = report({f"h:{port}": command(histogram(port * 1_000_000)) for port in range(1, 26)})
    assert [line.split()[0] for line in lines[3:13]] == [f"h:{port}" for port in range(25, 15, -1)]
    assert lines[13] == "and 15 more, see summary.json"


def test_a_target_that_is_one_server_has_no_table_of_endpoints() -> None:
    assert printed(fold(clean_run())) == []


def test_control_characters_in_the_name_of_an_endpoint_are_escaped() -> None:
    lines = report({"\x1b[2J": command(histogram(5)), "h:1": command(histogram(5))})
    assert "\x1b" not in "".join(lines)

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cgroup import CpuGroups, QuotaReading
from tests.support.cgroups import quota_group

V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V1_TOGETHER = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup2 cgroup2 rw,nsdelegate"
STAT_V1 = "nr_periods {}\nnr_throttled {}\nthrottled_time {}\nnr_bursts 0\nburst_time 0\n"
STAT_V2 = "usage_usec {3}\nuser_usec 1\nnr_periods {0}\nnr_throttled {1}\nthrottled_usec {2}\nnr_bursts 0\n"


class Machine:
    """A machine's files, as far as control groups are concerned, below a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def proc(self, cgroup: str, *mounts: str) -> None:
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\n" + "\n".join(mounts) + "\n")

    def v1(self, folder: str, quota_us: int, period_us: int = 100_000) -> None:
        self.write(f"{folder}/cpu.cfs_quota_us", f"{quota_us}\n")
        self.write(f"{folder}/cpu.cfs_period_us", f"{period_us}\n")

    @property
    def cores(self) -> float | None:
        return CpuGroups(self.root).quota_cores


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_control_groups_has_no_quota(machine: Machine) -> None:
    assert CpuGroups(machine.root).folders == ()
    assert CpuGroups(machine.root).read() == QuotaReading()
    machine.proc("", V1, V2)
    assert CpuGroups(machine.root).read() == QuotaReading()


def test_version_1_has_quota_and_period_in_two_files(machine: Machine) -> None:
    machine.proc("3:cpuset:/other\n2:cpu,cpuacct:/jobs/one\n", V1_TOGETHER)
    machine.v1("sys/fs/cgroup/cpu,cpuacct", -1)
    machine.v1("sys/fs/cgroup/cpu,cpuacct/other", 1000)
    assert machine.cores is None
    machine.v1("sys/fs/cgroup/cpu,cpuacct/jobs/one", 25_000, 50_000)
    assert machine.cores == 0.5


def test_version_2_has_both_in_one_file(machine: Machine) -> None:
    machine.proc("0::/user.slice/user-0.slice\n", V2)
    machine.write("sys/fs/cgroup/user.slice/user-0.slice/cpu.max", "max 100000\n")
    assert machine.cores is None
    machine.write("sys/fs/cgroup/user.slice/user-0.slice/cpu.max", "150000 100000\n")
    assert machine.cores == 1.5


def test_the_tightest_quota_of_all_ancestors_counts(machine: Machine) -> None:
    machine.proc("0::/pods/pod/box\n", V2)
    machine.write("sys/fs/cgroup/pods/cpu.max", "400000 100000")
    machine.write("sys/fs/cgroup/pods/pod/cpu.max", "50000 100000")
    machine.write("sys/fs/cgroup/pods/pod/box/cpu.max", "200000 100000")
    machine.write("sys/fs/cgroup/pods/other/cpu.max", "1000 100000")
    assert machine.cores == 0.5


def test_a_machine_with_both_versions_is_limited_by_either(machine: Machine) -> None:
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
    machine.proc("9:name=systemd:/x\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/job\n0::/\n", V1, unified)
    machine.v1("sys/fs/cgroup/cpu/job", 30_000)
    assert machine.cores == 0.3
    machine.write("sys/fs/cgroup/unified/cpu.max", "10000 100000")
    assert machine.cores == 0.1


@pytest.mark.parametrize(
    ("cgroup", "mounted", "own"),
    [
        ("/", "/", ""),  # a namespace of its own
        ("/docker/4f", "/docker/4f", ""),  # none, but only the own group is mounted
        ("/docker/4f/inner", "/docker/4f", "inner"),
        ("/docker/4f", "/", "docker/4f"),
        ("/../other", "/..", "other"),  # moved out of the namespace
        ("/gone (deleted)", "/", "gone"),
    ],
)
def test_in_a_container_paths_are_relative_to_the_mounted_tree(
    machine: Machine, cgroup: str, mounted: str, own: str
) -> None:
    machine.proc(f"0::{cgroup}\n", f"31 23 0:27 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup rw")
    machine.write(f"sys/fs/cgroup/{own}/cpu.max", "70000 100000")
    assert machine.cores == 0.7


def test_a_group_whose_name_the_namespace_hides_is_found_by_its_processes(machine: Machine) -> None:
    machine.proc("0::/inner\n", "31 23 0:27 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw")
    for name, pid, quota in (("a/x", 1, "10000"), ("b/y", os.getpid(), "80000"), ("c/z", 2, "20000")):
        machine.write(f"sys/fs/cgroup/{name}/inner/cgroup.procs", f"7\n{pid}\n")
        machine.write(f"sys/fs/cgroup/{name}/inner/cpu.max", f"{quota} 100000")
    assert machine.cores == 0.8
    machine.write("sys/fs/cgroup/b/y/inner/cgroup.procs", "7\n")
    machine.write("sys/fs/cgroup/cpu.max", "90000 100000")
    assert machine.cores == 0.9, "at least what is mounted limits us too"


def test_a_mount_without_this_process_is_ignored(machine: Machine) -> None:
    machine.proc("0::/mine\n", "31 23 0:27 /theirs /sys/fs/cgroup rw - cgroup2 cgroup rw")
    machine.write("sys/fs/cgroup/cpu.max", "10000 100000")
    assert machine.cores is None


def test_spaces_in_paths_are_octal_escapes(machine: Machine) -> None:
    machine.proc("0::/my job\n", r"31 23 0:27 / /sys/fs/c\040group rw - cgroup2 cgroup rw")
    machine.write("sys/fs/c group/my job/cpu.max", "10000 100000")
    assert machine.cores == 0.1


@pytest.mark.parametrize(
    "limit", ["", "max", "0 100000", "10000 0", "-5 100000", "1 2 3", "ten 100", "\x00", "1e5 100000"]
)
def test_a_malformed_limit_is_no_limit(machine: Machine, limit: str) -> None:
    machine.proc("0::/\n", V2)
    machine.write("sys/fs/cgroup/cpu.max", limit)
    assert machine.cores is None


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=60))
def test_malformed_files_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, cgroup: bytes, mounts: bytes, limit: bytes
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.proc("0::/\n1:cpu:/\n", V2)
    for name, content in (
        ("proc/self/cgroup", cgroup),
        ("proc/self/mountinfo", mounts),
        ("sys/fs/cgroup/cpu.max", limit),
    ):
        machine.write(name, "")
        (machine.root / name).write_bytes(content)
        CpuGroups(machine.root).read()
        machine.proc("0::/\n1:cpu:/\n", V2)


def test_unreadable_files_raise_nothing(machine: Machine) -> None:
    machine.proc("0::/\n", V2)
    (machine.root / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert machine.cores is None


def test_counters_begin_at_the_first_reading(machine: Machine) -> None:
    machine.proc("0::/\n", V2)
    machine.write("sys/fs/cgroup/cpu.max", "10000 100000")
    machine.write("sys/fs/cgroup/cpu.stat", STAT_V2.format(1000, 500, 7_000_000, 90_000))
    groups = CpuGroups(machine.root)
    assert groups.read() == QuotaReading(cores=0.1)
    machine.write("sys/fs/cgroup/cpu.stat", STAT_V2.format(1100, 593, 7_004_000, 95_000))
    assert groups.read() == QuotaReading(
        cores=0.1, periods=100, throttled_periods=93, throttled_ns=4_000_000, used_ns=5_000_000
    )


def test_version_1_counts_in_nanoseconds_and_has_the_used_time_if_both_controllers_are_mounted_together(
    machine: Machine,
) -> None:
    machine.proc("1:cpu,cpuacct:/\n", V1_TOGETHER)
    folder = "sys/fs/cgroup/cpu,cpuacct"
    machine.v1(folder, 200_000)
    machine.write(f"{folder}/cpu.stat", STAT_V1.format(5, 3, 800))
    groups = CpuGroups(machine.root)
    machine.write(f"{folder}/cpu.stat", STAT_V1.format(10, 7, 1800))
    assert groups.read() == QuotaReading(cores=2.0, periods=5, throttled_periods=4, throttled_ns=1000)
    machine.write(f"{folder}/cpuacct.usage", "77\n")
    assert groups.read().used_ns == 77


def test_the_largest_count_of_several_groups_is_used(machine: Machine) -> None:
    machine.proc("0::/pod/box\n", V2)
    for folder, quota in (("pod", "90000"), ("pod/box", "50000")):
        machine.write(f"sys/fs/cgroup/{folder}/cpu.max", f"{quota} 100000")
    groups = CpuGroups(machine.root)
    machine.write("sys/fs/cgroup/pod/cpu.stat", STAT_V2.format(10, 8, 60, 300))
    machine.write("sys/fs/cgroup/pod/box/cpu.stat", STAT_V2.format(12, 2, 40, 200))
    assert groups.read() == QuotaReading(
        cores=0.5, periods=12, throttled_periods=8, throttled_ns=60_000, used_ns=200_000
    )


def test_a_quota_that_is_set_or_removed_later_counts_from_then_on(machine: Machine) -> None:
    machine.proc("0::/\n", V2)
    machine.write("sys/fs/cgroup/cpu.max", "max 100000")
    groups = CpuGroups(machine.root)
    assert groups.read() == QuotaReading()
    machine.write("sys/fs/cgroup/cpu.max", "50000 100000")
    machine.write("sys/fs/cgroup/cpu.stat", STAT_V2.format(10, 8, 60, 300))
    assert groups.read().throttled_periods == 8
    machine.write("sys/fs/cgroup/cpu.max", "max 100000")
    assert groups.read() == QuotaReading(periods=10, throttled_periods=8, throttled_ns=60_000)


THROTTLED = """
import time
from common.cgroup import CpuGroups
groups, until_s = CpuGroups(), time.monotonic() + 20
while groups.read().throttled_periods < 2 and time.monotonic() < until_s:
    sum(range(10_000))
found = groups.read()
print(found.cores, found.throttled_periods >= 2, found.periods >= found.throttled_periods, found.throttled_ns > 0)
"""


def test_a_process_that_computes_is_throttled_by_the_quota_of_its_group() -> None:
    with quota_group(cores=0.2) as group:
        joins = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
        done = subprocess.run([sys.executable, "-c", joins + THROTTLED], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0.2", "True", "True", "True"], done.stderr

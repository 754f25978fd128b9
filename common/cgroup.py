"""Limits of this process's control groups: CPU quotas with their throttling, processes, and memory. Linux only.

A quota limits the CPU time in each period (usually 100 ms). A group that has used its quota is throttled: none of its
processes runs until the next period. Each ancestor of a group may have a quota too. The tightest quota decides how many
cores the process may use, and each quota may throttle it.

Version 1 has `cpu.cfs_quota_us` and `cpu.cfs_period_us`, version 2 has `cpu.max`, both have `cpu.stat`; a machine may
have both versions. In a container the paths in `/proc/self/cgroup` are relative to its namespace, and the mounted tree
may begin above or below its root. A missing, unreadable or malformed file counts as no quota.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

_MOUNT = re.compile(r"\S+ \S+ \S+ (?P<root>\S+) (?P<point>\S+) .*? - (?P<kind>\S+) \S* (?P<options>\S*)")
"""A line of mountinfo: id, parent, device, root, mount point, options and tags, type, source, options."""

_US = 1000
_MAX_SEARCHED = 10_000

_RelativePath: TypeAlias = tuple[int, tuple[str, ...]]
"""A path relative to a namespace's root: (levels up, names down from there)."""


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """A quota, and its counters since the first reading. cores: number of cores that the quota allows, None without a
    quota. periods: periods in which the group had work. throttled_ns: summed over all cores. used_ns: CPU time of all
    processes of the group with the tightest quota, 0 if the system does not report it."""

    cores: float | None = None
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    used_ns: int = 0


class CpuGroups:
    """The control groups of this process that may limit its CPU time: its own and all their ancestors."""

    def __init__(self, root: Path = Path("/")) -> None:
        """root: the directory that has `proc` and `sys`."""
        self.folders = tuple(dict.fromkeys(_folders(root)))
        self._before = {folder: _counters(folder) for folder in self.folders}
        self._limited: set[Path] = set()

    @property
    def quota_cores(self) -> float | None:
        """How many cores the tightest quota allows now; None without a quota."""
        return min(self._quotas().values(), default=None)

    def read(self) -> QuotaReading:
        """The quota now, and its counters since this object was made. Each counter is the largest of all groups, not
        their sum: a process that two groups throttle at the same time stops once."""
        quotas = self._quotas()
        self._limited |= quotas.keys()
        grown = {
            folder: [max(0, now - then) for now, then in zip(_counters(folder), self._before[folder], strict=True)]
            for folder in self._limited
        }
        largest = [max(values) for values in zip((0, 0, 0, 0), *grown.values(), strict=True)]
        tightest = min(quotas, key=lambda folder: quotas[folder], default=None)
        return QuotaReading(
            cores=None if tightest is None else quotas[tightest],
            periods=largest[0],
            throttled_periods=largest[1],
            throttled_ns=largest[2],
            used_ns=0 if tightest is None else grown[tightest][3],
        )

    def _quotas(self) -> dict[Path, float]:
        quotas = {folder: _quota(folder) for folder in self.folders}
        return {folder: cores for folder, cores in quotas.items() if cores is not None}


def _quota(folder: Path) -> float | None:
    limit = _text(folder / "cpu.max") or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
    try:
        quota_us, period_us = (int(field) for field in limit.split())
    except ValueError:  # no quota: "max 100000", or no file
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _counters(folder: Path) -> tuple[int, int, int, int]:
    """(periods, throttled periods, throttled ns, used ns) of a group since its creation."""
    found = {}
    for line in _text(folder / "cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if value.isascii() and value.isdigit():
            found[name] = int(value)
    used_ns = found.get("usage_usec", 0) * _US
    if not used_ns and (value := _text(folder / "cpuacct.usage").strip()).isascii() and value.isdigit():
        used_ns = int(value)
    throttled_ns = found.get("throttled_time", found.get("throttled_usec", 0) * _US)
    return found.get("nr_periods", 0), found.get("nr_throttled", 0), throttled_ns, used_ns


def least_limit(controller: str, *files: str, root: Path = Path("/")) -> int | None:
    """The smallest whole number in these files of this process's groups and their ancestors; None without any.
    controller: "pids", "memory"... files: names in version 2 and version 1."""
    found = [_text(folder / name).strip() for folder in _folders(root, controller) for name in files]
    return min((int(text) for text in found if text.isascii() and text.isdigit()), default=None)


def _folders(root: Path, controller: str = "cpu") -> Iterator[Path]:
    """The folders of each group of this process and of its ancestors, up to the mount point."""
    group_paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            group_paths["cgroup2"] = _relative_path(path)
        elif controller in controllers.split(","):
            group_paths["cgroup"] = _relative_path(path)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        if (mount := _MOUNT.match(line)) is None or mount["kind"] not in group_paths:
            continue
        if mount["kind"] == "cgroup2" or controller in mount["options"].split(","):
            mounted = _relative_path(_unescaped(mount["root"]))
            mount_point = root / _unescaped(mount["point"]).lstrip("/")
            yield from _up_from(group_paths[mount["kind"]], mounted, mount_point)


def _up_from(group: _RelativePath, mounted: _RelativePath, mount_point: Path) -> Iterator[Path]:
    """The folders of a group and of its ancestors. mounted: the group that is mounted at `mount_point`."""
    (levels_up, names), (mounted_up, mounted_names) = group, mounted
    if mounted_up == levels_up and names[: len(mounted_names)] == mounted_names:
        folder = mount_point.joinpath(*names[len(mounted_names) :])
    elif mounted_up > levels_up and not mounted_names:
        # Our namespace begins below the mounted folder, and no file says at which path.
        folder = _find_folder(mount_point, mounted_up - levels_up, names)
    else:
        return
    while folder != mount_point:
        yield folder
        folder = folder.parent
    yield mount_point


def _find_folder(mount_point: Path, levels: int, names: tuple[str, ...]) -> Path:
    """The folder of our group, found by our pid. Its path below the mount point is `levels` unknown names, then
    `names`."""
    own_pid = str(os.getpid())
    for parent in islice(mount_point.glob("/".join(["*"] * levels)), _MAX_SEARCHED):
        folder = parent.joinpath(*names)
        if own_pid in _text(folder / "cgroup.procs").split():
            return folder
    return mount_point


def _relative_path(path: str) -> _RelativePath:
    names = tuple(name for name in path.removesuffix(" (deleted)").split("/") if name)
    levels_up = next((number for number, name in enumerate(names) if name != ".."), len(names))
    return levels_up, names[levels_up:]


def _unescaped(field: str) -> str:
    """A path of mountinfo, in which spaces are octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""

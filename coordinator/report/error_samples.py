"""Samples of errors in the summary of a run, and the most important ones as text. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from common.metrics.error_samples import ErrorSample, merge_samples
from common.metrics.intervals import IntervalMetrics
from common.units import NS_PER_S
from coordinator.report.summary_types import ErrorSampleSummary
from coordinator.report.utc import utc_text

_SHOWN = 4


def error_samples_of(totals: IntervalMetrics, t0_utc_ns: int | None) -> tuple[ErrorSampleSummary, ...]:
    """Return the samples of all pools: the most frequent class first, and the most frequent sample within a class; the
    rest of a class comes last. t0_utc_ns: the start instant by the wall clock; None if the journal does not have it."""
    samples = merge_samples(pool.error_samples for pool in totals.pools.values())
    of_class = Counter[str]()
    for sample in samples:
        of_class[sample.name] += sample.count
    ordered = sorted(samples, key=lambda each: (-of_class[each.name], each.name, each.is_rest, -each.count))
    return tuple(_summary(sample, t0_utc_ns) for sample in ordered)


def _summary(sample: ErrorSample, t0_utc_ns: int | None) -> ErrorSampleSummary:
    return ErrorSampleSummary(
        class_=sample.name,
        message=sample.message,
        command=sample.command,
        key=sample.key,
        endpoint=sample.endpoint,
        first_at=None if t0_utc_ns is None else utc_text(t0_utc_ns + sample.first_ns),
        last_at=None if t0_utc_ns is None else utc_text(t0_utc_ns + sample.last_ns),
        count=sample.count,
        first_s=sample.first_ns / NS_PER_S,
        last_s=sample.last_ns / NS_PER_S,
        exception=sample.exception,
        cause=sample.cause,
    )


def sample_lines(samples: Sequence[ErrorSampleSummary], elsewhere: str) -> list[str]:
    """Return a line for each of the most important samples: first one of each class, then the most frequent others.
    elsewhere: the file that has all of them."""
    described = [sample for sample in samples if sample.command]
    shown = list(_of_each_class(described))[:_SHOWN]
    others = sorted((each for each in described if each not in shown), key=lambda each: -each.count)
    shown += others[: _SHOWN - len(shown)]
    more = len(described) - len(shown)
    return [*map(_line, shown), *([f"and {more} more in {elsewhere}"] if more else [])]


def _of_each_class(samples: Iterable[ErrorSampleSummary]) -> Iterable[ErrorSampleSummary]:
    first: dict[str, ErrorSampleSummary] = {}
    for sample in samples:
        first.setdefault(sample.class_, sample)
    return first.values()


def _line(sample: ErrorSampleSummary) -> str:
    what = " ".join(filter(None, (sample.command, sample.key)))
    place = f" at {sample.endpoint}" if sample.endpoint else ""
    when = f"at {sample.first_s:.1f} s" if sample.count == 1 else f"{sample.first_s:.1f} s to {sample.last_s:.1f} s"
    message = sample.message
    if not message.startswith(sample.class_):
        message = f"{sample.class_}: {message}" if message else sample.class_
    return f"{sample.count:,} x {what}{place}, {when}: {message}"

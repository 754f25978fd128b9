from __future__ import annotations

from coordinator.report.utc import utc_text


def test_an_instant_is_iso_8601_in_utc_with_microseconds() -> None:
    assert utc_text(1_772_600_767_890_123_456) == "2026-03-04T05:06:07.890123+00:00"
    assert utc_text(0) == "1970-01-01T00:00:00.000000+00:00"

"""The wall clock in reports. Pure: with numpy, because `datetime` also reads the clock."""

from __future__ import annotations

import numpy as np


def utc_text(utc_ns: int) -> str:
    """ns since 1970 -> "2026-03-04T05:06:07.890123+00:00": ISO 8601, UTC."""
    return f"{np.datetime64(utc_ns // 1000, 'us')}+00:00"

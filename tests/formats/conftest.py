"""Fixtures of the tests of formats."""

import pytest

from statsfs.formats import metric_families


@pytest.fixture(autouse=True)
def _complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each test is as in a new process.
    monkeypatch.setattr(metric_families, "_complaints", {})

"""Nothing measured outlives its test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is measured stays in the test's own folder."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))

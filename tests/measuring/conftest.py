"""A tiny model on disk and rows for it."""

from __future__ import annotations

import pytest

from tiny import save_model, sums, write_rows


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def additions(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", sums(60))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is measured stays in the test's own folder."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))

"""What several tests of training share."""

from __future__ import annotations

import pytest

from tiny import save_model, sums, write_rows


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def additions(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", sums(40))

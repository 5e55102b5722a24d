"""What tests of federating share: tiny bases and rows."""

from __future__ import annotations

import random

import pytest

from tiny import save_model, sums, write_rows


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="session")
def additions(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", sums(40))


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> str:
    """Words of the class that their first letter tells, and the hospital that they come from."""
    draw, rows = random.Random(0), []
    for index in range(90):
        kind = "abc"[index % 3]
        word = kind + "".join(draw.choices("xyz", k=draw.randint(3, 6)))
        rows.append({"text": word, "label": kind, "hospital": f"h{index % 4}"})
    return write_rows(tmp_path_factory.mktemp("data") / "letters.jsonl", rows)

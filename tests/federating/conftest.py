"""Rows of clients."""

from __future__ import annotations

import random

import pytest

from support.tiny import write_rows


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> str:
    """Words of the class that their first letter tells, and the hospital that they come from."""
    draw, rows = random.Random(0), []
    for index in range(90):
        kind = "abc"[index % 3]
        word = kind + "".join(draw.choices("xyz", k=draw.randint(3, 6)))
        rows.append({"text": word, "label": kind, "hospital": f"h{index % 4}"})
    return write_rows(tmp_path_factory.mktemp("data") / "letters.jsonl", rows)

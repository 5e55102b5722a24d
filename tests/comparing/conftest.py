"""Data to compare on."""

from __future__ import annotations

import random

import pytest

from support.tiny import sums, write_rows


@pytest.fixture(scope="session")
def additions(tmp_path_factory) -> dict[str, str]:
    """Sources of sums: train, test and a second test."""
    folder = tmp_path_factory.mktemp("sums")
    sizes = {"train": (40, 0), "test": (12, 5), "more": (6, 7)}
    return {name: write_rows(folder / f"{name}.jsonl", sums(*each)) for name, each in sizes.items()}


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> str:
    """Texts of two classes that their letters tell."""
    draw = random.Random(0)
    words = ["".join(draw.choice("abc" if i % 2 else "xyz") for _ in range(6)) for i in range(60)]
    rows = [{"text": word, "label": "left" if i % 2 else "right"} for i, word in enumerate(words)]
    return write_rows(tmp_path_factory.mktemp("letters") / "letters.jsonl", rows)


@pytest.fixture(scope="session")
def held(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("held") / "held.jsonl", [{"text": f"held text {i}"} for i in range(4)])

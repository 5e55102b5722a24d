"""Rows of like length in a batch: each row once an epoch, little padding, the same after an interruption."""

from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import replace

import pytest

import luthier as lt
from luthier import data
from luthier.training import Run, Training, train
from luthier.training.checkpoint import checkpoints
from luthier.training.order import SPAN, ByLength


def padded(lengths: list[int], order: list[int], group: int) -> int:
    """Tokens of all batches, padding included."""
    batches = [[lengths[i] for i in order[start : start + group]] for start in range(0, len(order), group)]
    return sum(max(batch) * len(batch) for batch in batches)


@pytest.mark.parametrize("rows, group", [(1003, 8), (8 * SPAN * 3, 8), (5, 8), (8, 8)])
def test_an_epoch(rows, group):
    draw = random.Random(0)
    lengths = [draw.randint(4, 60) for _ in range(rows)]
    order = list(ByLength(lengths, group, seed=0))
    assert sorted(order) == list(range(rows))
    assert order == list(ByLength(lengths, group, seed=0))
    if rows > SPAN * group:
        assert padded(lengths, order, group) < 1.1 * sum(lengths) < padded(lengths, list(range(rows)), group) / 1.4
        firsts = [lengths[i] for i in order[: rows // group * group : group]]
        rising = sum(a < b for a, b in itertools.pairwise(firsts)) / len(firsts)
        assert 0.35 < rising < 0.65  # neither from long to short nor the other way


def test_epochs_and_seeds_differ():
    order = ByLength(list(range(100)), 4, seed=0)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first and list(ByLength(list(range(100)), 4, seed=2)) != first


def test_lengths():
    assert data.length_of({"input_ids": [1, 2], "labels": 3, "also": [{"input_ids": [1, 2, 3]}]}) == 3
    assert data.length_of({"input_values": [0.0] * 7}) == 7
    assert data.length_of({"pixel_values": [[0.0]]}) == 0


def test_resumed_runs_see_the_same_rows(llama, additions, tmp_path):
    settings = Training(epochs=2.5, batch=4, save_every=3, keep=20, lr=1e-2, order="length")
    run = Run(llama, additions, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=settings)
    whole = train(run, progress=False)
    other = replace(run, out=str(tmp_path / "other"), training=replace(settings, order="random"))
    assert train(other, progress=False).losses != whole.losses
    for path in checkpoints(run.folder / "checkpoints"):
        if path.name != "step-15":
            shutil.rmtree(path)
    again = train(run, resume=True, progress=False)
    assert again.losses == whole.losses

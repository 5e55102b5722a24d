"""The memory estimate against what autograd keeps of a whole batch."""

from __future__ import annotations

import pytest

import luthier as lt
from luthier import data, models
from luthier.methods.objectives.sft import SFT
from luthier.training.context import recompute
from luthier.training.estimate import estimate, saved_bytes
from support.tiny import sums, write_rows


@pytest.fixture
def attached(llama, tmp_path):
    loaded = models.load(llama)
    model = lt.attach(loaded.model, lt.DoRA(rank=4))
    source = write_rows(tmp_path / "rows.jsonl", [*sums(8), {"prompt": "1+" * 40, "completion": "2" * 10}])
    features = data.encode_all(data.load(source), loaded.processor, max_length=None)
    return model, features, data.collator_for("causal-lm", loaded.processor)


def test_activations_are_those_of_a_batch(attached):
    model, features, collator = attached
    guess = estimate(model, features, collator, SFT(), batch=6)
    real = saved_bytes(model, collator([features[-1]] * 6), SFT())
    assert guess.activations == pytest.approx(real, rel=0.1)
    trained = lt.trainable(model, count=True)
    assert guess.optimiser == 12 * trained
    assert guess.weights >= 4 * sum(p.numel() for p in model.parameters())


def test_recomputation_saves_activations(attached):
    model, features, collator = attached
    plain = estimate(model, features, collator, SFT(), batch=6).activations
    model.config.use_cache = False
    recompute(model, True)
    assert estimate(model, features, collator, SFT(), batch=6).activations < plain / 2

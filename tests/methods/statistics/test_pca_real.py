"""Streamed principal components of the activations of real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier.core.contracts.statistic import Statistic, rows_of
from luthier.core.sites.collect import collect
from luthier.methods.statistics.pca import PCA

pytestmark = pytest.mark.real

TEXT = "\n".join(file.read_text(encoding="utf-8") for file in sorted(Path(lt.__file__).parent.glob("core/*.py")))


class Rows(Statistic):
    """x"""

    def begin(self):
        return []

    def update(self, held, x, mask):
        return [*held, rows_of(x, mask).clone()]

    def result(self, held):
        return {"rows": torch.cat(held)}


def test_real_activations_lose_less_than_a_hundredth_to_streaming():
    loaded = lt.model("stories15m", task="causal-lm")
    ids = loaded.processor(TEXT[:20_000], verbose=False)["input_ids"][: 24 * 128]
    batches = [{"input_ids": chunk} for chunk in torch.tensor(ids).view(24, 128).split(4)]
    sites = lt.select(loaded.model, "(q_proj | o_proj | gate_proj | down_proj) & layers(3)")
    found = collect(loaded.model, batches, sites, [Rows(), PCA(16, 1.0)])
    for site in sites:
        rows, directions = found[site.path]["rows"].double(), found[site.path]["pca"].double()
        values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
        shares = values.flip(0) / values.sum()
        centred = rows - rows.mean(0)
        captured = (centred @ directions.T).square().sum() / centred.square().sum()
        assert captured > 0.99 * shares[:16].sum()
        assert torch.allclose(found[site.path]["variance"], shares[:16], rtol=0.1)
        leading = vectors.flip(1)[:, :4]
        assert torch.linalg.svdvals(directions @ leading).min() > 0.99

"""Where a new head starts: at how common each class is, so that training need not find that out first."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from luthier.models import Loaded
from luthier.training.prepare import Prepared


def start_head(loaded: Loaded, prepared: Prepared) -> None:
    """Sets the bias of a new head for several classes a text to b_c = log (n_c + ½) / (N - n_c + ½).

    n_c of the N rows have class c. From zero, each class begins at a probability of a half, and AdamW, which moves a
    number by at most the learning rate a step, takes hundreds of steps to unlearn that: until then no class is ever
    told (Lin et al. 2017, arXiv 1708.02002, section 4.1, of rare classes). Heads without a bias stay as they are.
    """
    if prepared.task != "multi-label":
        return
    places = loaded.model.config.label2id
    biases = [bias for name in loaded.new_modules for bias in _biases(loaded.model.get_submodule(name), len(places))]
    if not biases:
        return
    counts = Counter(label for row in prepared.examples.rows for label in row.labels or ())
    rows = len(prepared.examples.rows)
    odds = [0.0] * len(places)
    for label, place in places.items():
        odds[place] = (counts[label] + 0.5) / (rows - counts[label] + 0.5)
    with torch.no_grad():
        biases[-1].copy_(torch.tensor(odds).log())


def _biases(module: nn.Module, classes: int) -> list[Tensor]:
    linear = (each for each in module.modules() if isinstance(each, nn.Linear) and each.out_features == classes)
    return [each.bias for each in linear if each.bias is not None]

"""Layer-wise decay of the learning rate: the lower a layer, the less it moves."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.update import Course, Place, Update
from luthier.forms.full import Full
from luthier.updates._layers import check_layered, check_range

SPREAD = 0.02
"""Standard deviation of fresh matrices, as BERT begins."""


@dataclass(frozen=True)
class LayerDecay(Update):
    """η_l = η d^(L - l)

    l = 0 for the embeddings, 1 to L for the blocks; final norm and head learn at η as the top block does. `reinit`
    starts the top blocks anew (matrices normal with deviation 0.02, norms 1, biases 0), which needs the form full.
    The default d is ELECTRA's (0.9 for its large model).
    """

    paper = "Tinn et al. 2023 (Patterns), arXiv 2112.07869; decay: Clark et al. 2020 (ELECTRA), arXiv 2003.10555"
    neutral = (("decay", 1.0),)

    decay: float = 0.8
    """d: the rate of a layer over that of the one above."""
    reinit: int = 0
    """Blocks at the top that start anew."""

    def bounds(self):
        check_range(self, "decay", 0.0, 1.0)
        check_range(self, "reinit", 0, float("inf"))

    def check(self, form, sites):
        check_layered(self, form, sites)
        blocks = 1 + max(site.layer for site in sites if site.layer is not None)
        if self.reinit and not isinstance(form, Full):
            raise LuthierError(
                f"layerdecay.reinit starts weights anew, which {form.name()} leaves as they are; use full."
            )
        if self.reinit > blocks:
            raise LuthierError(f"layerdecay.reinit is {self.reinit}, and there are {blocks} blocks.")

    def rate(self, course, place, key):
        return self.decay ** max(0, course.depth - place.level)

    def values(self, course, step):
        top = range(course.depth - self.reinit + 1, course.depth + 1)
        return {
            place.key(key): fresh(course, place, parameter)
            for place in course.places
            if step == 0 and place.level in top
            for key, parameter in place.params.items()
        }


def fresh(course: Course, place: Place, like: Tensor) -> Tensor:
    """A tensor as it is before any training, drawn by the seed and the tensor's name."""
    if like.dim() < 2:
        return torch.full_like(like, 0.0 if place.site.path.endswith("bias") else 1.0)
    generator = torch.Generator().manual_seed(crc32(f"{course.seed} {place.name}".encode()))
    return SPREAD * torch.randn(like.shape, generator=generator, dtype=like.dtype)

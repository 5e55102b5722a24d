"""CorDA: the parts of a weight that matter most, or least, for given inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from luthier.core.contracts.init import Init
from luthier.core.errors import LuthierError
from luthier.core.numerics.matrix import wide
from luthier.methods.inits._factors import balanced, check_form, rank_of
from luthier.methods.statistics.moment import Moment

GOOD = 0.05
"""Largest ‖C C⁻¹ - I‖ of an inverse that serves."""


def _root(c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


CONTEXTS: dict[str, Callable[[Tensor], Tensor]] = {"covariance": lambda c: c, "root": _root}
"""What the weight is multiplied with before its SVD."""


@dataclass(frozen=True)
class CorDA(Init):
    """s B A = U_r S_r V_rᵀ C⁻¹ of the SVD W C = U S Vᵀ, with C = E[x xᵀ]; the rest of W stays frozen

    The largest r (mode = instruction, C of rows like those trained on) or the smallest r (mode = knowledge, C of rows
    whose knowledge is to be kept). B = U_r S_r^½ and A = S_r^½ V_rᵀ C⁻¹, each over s^½. To C a multiple of its mean
    diagonal is added, doubled until the inverse is good. With context = root, C^½ takes the place of C: what is kept
    then is the best of rank r for the error on those inputs. The unit of C
    does not change BA, yet B grows with its root and A with the inverse of that: C is here the mean over all tokens
    but padding, so the balance does not depend on how many rows were read, while the authors (and peft, with batches
    of one row) divide each row by its largest |x| and its sum by 256.
    """

    paper = "Yang et al. 2024, arXiv 2406.05223 (code: iboing/CorDA)"
    needs = ("weight", "moment")
    subtract_start = True

    mode: Literal["instruction", "knowledge"] = "instruction"
    """Train the parts that matter most for the measured inputs, or least."""
    context: Literal["covariance", "root"] = "covariance"
    """Multiply the weight with C, as the authors do, or with its root."""
    damping: float = 0.01
    """Share of the mean diagonal that is added to C, at first."""

    def check(self) -> None:
        self.above("damping", 0)

    def statistics(self, form):
        check_form(self.name(), form)
        return (Moment(),)

    def factors(self, form, site, stats):
        rank = rank_of(self.name(), form, site)
        weight = wide(stats["weight"])
        context, inverse = damped(wide(stats["moment"]).to(weight.dtype), self.damping, CONTEXTS[self.context])
        u, s, vt = torch.linalg.svd(weight @ context, full_matrices=False)
        kept = slice(rank) if self.mode == "instruction" else slice(len(s) - rank, None)
        return balanced(form, u[:, kept], s[kept], vt[kept] @ inverse)


def damped(c: Tensor, damping: float, context: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns (M, M⁻¹) of M = context(C + damping · mean diagonal of C), the damping doubled until the inverse is good.

    Raises `LuthierError` for a C that no damping helps.
    """
    eye, level = torch.eye(len(c), dtype=c.dtype, device=c.device), c.diagonal().mean()
    if not (level > 0 and c.isfinite().all()):
        raise LuthierError("corda: the inputs of a layer are all zero or not finite; take other rows, or leave it out.")
    while True:
        found = context(c + damping * level * eye)
        inverse, singular = torch.linalg.inv_ex(found)
        if not singular and matrix_norm(found @ inverse - eye) < GOOD:
            return found, inverse
        damping *= 2

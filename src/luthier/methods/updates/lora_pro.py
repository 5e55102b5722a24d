"""LoRA-Pro: the factors' gradients that come closest to the gradient of the whole weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.contracts.form import Form
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact


@dataclass(frozen=True)
class LoRAPro(Update):
    """gᴬ = s⁻² (BᵀB)⁻¹ ∂A + X A,  gᴮ = s⁻² (I - P_B) ∂B (AAᵀ)⁻¹ - B X

    A step along (gᴬ, gᴮ) moves W by s B gᴬ + s gᴮ A = P_B g + g P_A - P_B g P_A, of all such steps the nearest to
    the gradient g of W. X, which does not change that, solves BᵀB X + X AAᵀ = -s⁻² (BᵀB)⁻¹ ∂A Aᵀ and keeps the pair
    near (∂A, ∂B). While B is zero, gᴬ = 0 and gᴮ = s⁻² ∂B (AAᵀ)⁻¹. Inverses are pseudo-inverses: directions of a
    factor that are rounding errors of its format count as zero. All is computed in float64, since a Gram matrix squares
    a factor's condition, and float32 would lose directions a thousandth of the largest.

    A form whose factors depend on W, as WeGeFT's, moves W by other steps and is refused. AdamW's moments are those of
    the pair, as many as LoRA's. The authors' code keeps moments of the whole weight, and so more memory than full
    fine-tuning's optimiser; its fixed scale 16/8 is here the form's own.
    """

    paper = "Wang et al. 2025 (ICLR), arXiv 2407.18242 (code: mrflogs/LoRA-Pro)"
    family = "reparameterisation"

    def check_form(self, form, sites):
        with torch.device("meta"):
            held = form.init(sites[0], {}) if form.down_projection and not form.needs else {}
        if len(set(held) - {*form.frozen, form.down_projection}) != 1 or scale(form, up_projection(form, held)) is None:
            raise LuthierError(
                f"{self.name()} joins the gradients of two factors with ΔW = s B A, and {form.name()} is none of that "
                "kind; use lora."
            )

    def check_beside(self, form, sites):
        if form.down_projection:  # what has no factors is trained as it is
            self.check_form(form, sites)

    def update(self, grads, state, group):
        a, b = group.form.down_projection, up_projection(group.form, group.params)
        if a not in grads or b not in grads:  # a head that is trained whole
            return grads
        s = scale(group.form, b)
        assert s is not None
        return dict(zip((a, b), nearest(group.params[a], group.params[b], grads[a], grads[b], s), strict=True))


def up_projection(form: Form, params) -> str:
    """Returns the name of the factor that is not the down-projection."""
    return next((key for key in params if key not in (form.down_projection, *form.frozen)), "")


def scale(form: Form, b: str) -> float | None:
    """s of ΔW = s B A, read off factors of a single one; None for a form that is not a product, or one with W."""
    one = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    pairs = [form.factors({form.down_projection: one, b: one}, w) for w in (one, 2 * one)]
    found = [float(pair[0] @ pair[1]) for pair in pairs if pair is not None]
    return found[0] if len(found) == 2 and found[0] == found[1] else None


def nearest(a: Tensor, b: Tensor, da: Tensor, db: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """(gᴬ, gᴮ) for A [..., r, d_in] and B [..., d_out, r] with gradients ∂A and ∂B, in the format of each gradient."""
    slopes, eps = (da, db), torch.finfo(torch.promote_types(a.dtype, b.dtype)).eps
    a, b, da, db = (exact(each) for each in (a, b, da, db))
    lam, u = torch.linalg.eigh(b.mT @ b)
    mu, v = torch.linalg.eigh(a @ a.mT)
    inverse_b, inverse_a = pseudo(lam, u, eps), pseudo(mu, v, eps)
    ga = inverse_b @ da / s**2
    gb = db @ inverse_a / s**2
    gb = gb - b @ (inverse_b @ (b.mT @ gb))
    sums = lam.clamp(min=0)[..., :, None] + mu.clamp(min=0)[..., None, :]  # Sylvester, in the eigenbases
    x = u @ (-(u.mT @ ga @ a.mT @ v) / sums.clamp(min=torch.finfo(sums.dtype).tiny)) @ v.mT
    return (ga + x @ a).to(slopes[0]), (gb - b @ x).to(slopes[1])


def pseudo(values: Tensor, vectors: Tensor, eps: float) -> Tensor:
    """The pseudo-inverse of a Gram matrix from its eigenvalues (ascending) and vectors; `eps` is the factor's."""
    rank = values.shape[-1]
    least = values[..., -1:] * max((rank * eps) ** 2, rank * torch.finfo(values.dtype).eps)
    inverse = torch.where(values > least, 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0)
    return (vectors * inverse[..., None, :]) @ vectors.mT

"""What starts have in common that choose both factors of a low-rank change, from a decomposition of a matrix."""

from __future__ import annotations

from torch import Tensor

from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site, check_rank
from luthier.core.errors import LuthierError


def check_form(init: str, form: Form) -> None:
    """Raises for a form whose change is not s B A, and for one whose sites share their factors."""
    if not form.up_projection:
        serving = [name for name in names("forms") if find("forms", name, Form).up_projection]
        raise LuthierError(
            f"{init} chooses both factors of a low-rank change, and {form.name()} has no such pair; "
            f"these forms have one: {', '.join(serving)}."
        )
    if form.share is not None:
        raise LuthierError(
            f"{init} gives each site factors of its own, so share={form.share!r} cannot hold; leave share out."
        )
    if form.scale <= 0:
        raise LuthierError(f"{init} divides by the form's scale, which is {form.scale}; expected a number above 0.")


def rank_of(init: str, form: Form, site: Site, times: int = 1) -> int:
    """The form's rank at a site of a kind that is a matrix; raises where `times` as many directions do not fit."""
    check_form(init, form)
    if site.kind not in ("affine", "param"):
        raise LuthierError(f"{init} serves linear layers, and {site} is of kind {site.kind}. Leave it out (where).")
    rank = form.to_dict()["rank"]
    check_rank(init, site, times * rank)
    return rank


def balanced(form: Form, u: Tensor, s: Tensor, vt: Tensor) -> dict[str, Tensor]:
    """Factors whose effect, the form's scale included, is U diag(S) Vᵀ, each with the root of S."""
    root = (s / form.scale).sqrt()
    return {form.up_projection: u * root, form.down_projection: root[:, None] * vt}

"""DEALRec: rows that move the loss of all rows and cost effort to learn, from every stratum of that score."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.contracts.selection import Selection, Taken
from luthier.core.errors import LuthierError
from luthier.data.texts import full_text, prompt_text
from luthier.methods.selections._embedded import hashed

if TYPE_CHECKING:
    import numpy as np

WIDTHS = (256, 64)
"""Columns to which the words of prompts and of answers are hashed."""


@dataclass(frozen=True)
class DEALRec(Selection):
    """s_i = norm(ḡᵀ (H + λI)⁻¹ g_i) + γ norm(‖∇L_i‖); per stratum G min(|G|, ⌊m / #strata⌋)

    g_i is the gradient of row i in a surrogate model, ḡ the mean of all, H the Hessian of the surrogate's mean loss: to
    leave row i out raises that loss by ḡᵀ (H + λI)⁻¹ g_i / n. (H + λI)⁻¹ ḡ is found by LiSSA, the fixed point of v ← ḡ
    + (I - (H + λI)/c) v over c. ∇L_i is the gradient of the model that will be trained, projected (its norm is the
    effort). norm maps the least to 0 and the greatest to 1. The hardest rows, the share `drop`, go; the range of the
    others' scores is cut into equal strata, and from each, the smallest first, an equal share of what is left of m is
    drawn.

    The authors' surrogate is a recommender, of which they take one layer. Here it is the ridge regression of the hashed
    words of an answer on those of its prompt (H is exact; no model is needed), or, with `gradients`, the model itself
    by its projected gradients, H their second moment (empirical Fisher). LiSSA runs over all rows and not over drawn
    ones, and stops at `tolerance`; c is the largest eigenvalue and a hundredth more. With the authors' damp and scale
    the recursion gives c (H + damp c I)⁻¹, which orders rows alike; λ here is what is added to H.
    """

    paper = "Lin et al. 2024, arXiv 2401.17197; code Linxyhaha/DEALRec; LiSSA: Agarwal et al. 2017, arXiv 1602.03943"
    targeted = False

    surrogate: Literal["words", "gradients"] = "words"
    """What the influence is computed in: words of the rows, or the model's projected gradients."""
    effort: float = 0.5
    """Weight of the effort, γ; 0: no model is read for it."""
    damping: float = 0.01
    """What is added to the Hessian's diagonal, λ, as a share of its largest eigenvalue."""
    drop: float = 0.1
    """Share of the rows with the highest scores that is left out."""
    strata: int = 25
    """Equal ranges of the score."""
    size: int = 1024
    """Numbers of a projected gradient, a square."""
    tolerance: float = 1e-6
    """Relative change at which LiSSA stops."""
    depth: int = 20000
    """Most steps of LiSSA."""

    def check(self) -> None:
        from math import isqrt

        self.within("effort", 0)
        self.within("drop", 0, 0.99)
        for name in ("damping", "strata", "size", "tolerance", "depth"):
            self.above(name, 0)
        if isqrt(self.size) ** 2 != self.size:
            raise LuthierError(f"dealrec.size is {self.size}; expected a square number, as {isqrt(self.size) ** 2}.")

    @property
    def reads_rows(self) -> bool:
        """For the effort, and for a surrogate of gradients."""
        return self.effort > 0 or self.surrogate == "gradients"

    def score(self, pool):
        import numpy as np

        gradients = np.zeros((0, 0))
        if self.reads_rows:
            gradients = pool.read("dealrec").gradients(pool.examples, self.size, pool.seed)
        if self.surrogate == "words":
            found = self.influence(*words(pool.examples.rows))
        else:
            found = self.influence_of_gradients(gradients)
        if not self.effort:
            return unit(found)
        return unit(found) + self.effort * unit(np.linalg.norm(gradients, axis=1))

    def influence(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """ḡᵀ (H + λI)⁻¹ g_i of the ridge regression of y [rows, o] on x [rows, d], [rows].

        The loss of a row is ½‖x_i W - y_i‖², W fitted under the same λ.
        """
        import numpy as np

        h, damping = self.damped(x)
        w = np.linalg.solve(h + damping * np.eye(len(h)), x.T @ y / len(x))
        residual = x @ w - y
        inverse = self.lissa(h, x.T @ residual / len(x), damping)
        return ((x @ inverse) * residual).sum(1)

    def influence_of_gradients(self, g: np.ndarray) -> np.ndarray:
        """ḡᵀ (GᵀG/n + λI)⁻¹ g_i of gradients [rows, k]; [rows]."""
        g = g.astype("float64")
        h, damping = self.damped(g)
        return g @ self.lissa(h, g.mean(0), damping)

    def damped(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """(XᵀX/n, λ); raises where all rows are zero."""
        import numpy as np

        h = x.T @ x / len(x)
        smaller = h if len(h) <= len(x) else x @ x.T / len(x)  # of the same eigenvalues, zeros aside
        damping = self.damping * max(0.0, float(np.linalg.eigvalsh(smaller)[-1]))
        if not damping:
            raise LuthierError("the rows have no words or gradients, so none has an influence.")
        return h, damping

    def lissa(self, h: np.ndarray, v: np.ndarray, damping: float) -> np.ndarray:
        """(H + λI)⁻¹ v by the recursion; warns where it has not converged."""
        import numpy as np

        scale = 1.01 * (damping / self.damping + damping)  # the largest eigenvalue of H + λI, and a little
        step, held = np.eye(len(h)) - (h + damping * np.eye(len(h))) / scale, v
        norm = float(np.linalg.norm(v)) or 1.0
        for _ in range(self.depth):
            before, held = held, v + step @ held
            left = float(np.linalg.norm(held - before)) * scale / damping  # the most that is still to come
            if left <= self.tolerance * max(norm, float(np.linalg.norm(held))):
                return held / scale
        warnings.warn(
            f"LiSSA has not converged after {self.depth} steps; raise damping ({self.damping:g}) or depth.",
            stacklevel=2,
        )
        return held / scale

    def take(self, pool, rows):
        scores = self.score(pool)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        left = order[math.floor(self.drop * len(order)) :]
        if rows > len(left):
            raise LuthierError(
                f"dealrec leaves out the {len(order) - len(left):,} hardest of {len(order):,} rows, and {rows:,} of "
                f"the other {len(left):,} cannot be taken; take fewer, or lower drop ({self.drop:g})."
            )
        places = stratified([left[i] for i in range(len(left))], scores, self.strata, rows, pool.seed)
        return Taken(sorted(places, key=lambda i: (-scores[i], i)), scores)


def stratified(places: Sequence[int], scores: np.ndarray, strata: int, budget: int, seed: int) -> list[int]:
    """Draws exactly `budget` of `places`: of equal ranges of their scores, the one with fewest rows first, min(|G|,
    ⌊m / #strata left⌋) of each that has rows, m what is left of the budget."""
    import numpy as np

    values = scores[list(places)]
    low, high = float(values.min()), float(values.max())
    which = np.minimum(((values - low) / ((high - low) or 1.0) * strata).astype(int), strata - 1)
    groups = [[places[int(i)] for i in np.flatnonzero(which == s)] for s in range(strata)]
    groups = sorted((group for group in groups if group), key=len)
    draw, found = np.random.default_rng(seed), []
    for number, group in enumerate(groups):
        share = min(len(group), (budget - len(found)) // (len(groups) - number))
        found += [int(group[i]) for i in draw.choice(len(group), share, replace=False)]
    return found


def unit(values: np.ndarray) -> np.ndarray:
    """Maps the least to 0 and the greatest to 1."""
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1.0)


def words(rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Hashed words of what rows ask and of what they answer (labels too), each row of norm 1, or 0 without words."""
    asked = [prompt_text(row) for row in rows]
    answered = [_answer(row, text) for row, text in zip(rows, asked, strict=True)]
    return hashed(asked, WIDTHS[0]), hashed(answered, WIDTHS[1])


def _answer(row: Any, asked: str) -> str:
    if row.label is not None:
        return str(row.label)
    return full_text(row)[len(asked) :] or asked

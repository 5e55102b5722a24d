"""Attributions by the Newton step: what the outputs would be without some rows, from projected gradients.

Everything is streamed: memory holds one k x k matrix and one batch's gradients, however many rows there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.core.numerics.wide import exact

COPIES = 4
"""Places of the projection that each entry of a gradient goes to."""


class SparseProjection:
    """Sparse random projection of an adapter's gradients to k numbers, whose products are right in the mean.

    Each entry goes to `COPIES` places with random signs, 1/√COPIES each (Kane and Nelson 2014); gradients of at most k
    entries stay as they are. The draws follow from the seed and the tensors' names. That of `core.sites.per_sample` is
    dense and two-sided, for weights of whole layers, whose row gradients are never formed; here they are.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], dimension: int, seed: int) -> None:
        self.shapes = dict(shapes)
        self.total = sum(shape.numel() for shape in self.shapes.values())
        self.plain = self.total <= dimension
        self.dimension = self.total if self.plain else dimension
        self.seed = seed
        self.drawn: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Projects gradients [rows, *shape] by name to [rows, k], in float64."""
        if self.plain:
            return torch.cat([exact(gradients[key].flatten(1)).cpu() for key in self.shapes], 1)
        rows = len(next(iter(gradients.values())))
        found = torch.zeros(rows, self.dimension, dtype=torch.float64)
        for key in self.shapes:
            places, signs = self._draw(key)
            flat = exact(gradients[key].flatten(1)).cpu()
            for copy in range(COPIES):
                found.index_add_(1, places[copy], flat * signs[copy])
        return found / COPIES**0.5

    def _draw(self, key: str) -> tuple[Tensor, Tensor]:
        if key not in self.drawn:
            draw = torch.Generator().manual_seed((zlib.crc32(key.encode()) + 7919 * self.seed) % 2**63)
            size = (COPIES, self.shapes[key].numel())
            places = torch.randint(self.dimension, size, generator=draw)
            signs = torch.randint(2, size, generator=draw, dtype=torch.int8) * 2 - 1
            self.drawn[key] = places, signs
        return self.drawn[key]


class NewtonStep:
    """The change of a model when rows are taken out: θ without - θ = (H + λ I)⁻¹ Σ_{i in F} g_i, to second order.

    H is the Gauss-Newton matrix of the rows that stay (with what regularises them, as `ridge`), g_i the gradient of the
    loss of a row that goes, at a minimum of the loss of all. Exact where the loss is quadratic.
    """

    def __init__(self, dimension: int, ridge: float = 0.0) -> None:
        """`ridge` is added to the diagonal of H."""
        self.matrix = ridge * torch.eye(dimension, dtype=torch.float64)
        self.gone = torch.zeros(dimension, dtype=torch.float64)

    def stays(self, jacobian: Tensor, curvature: Tensor) -> None:
        """Adds rows that stay: the Jacobian of their outputs [rows, C, k], and the second derivative of their loss by
        the outputs [rows, C, C]."""
        self.matrix += torch.einsum("nck,ncd,ndl->kl", jacobian, curvature, jacobian)

    def goes(self, gradients: Tensor) -> None:
        """Adds rows that go: the gradients of their loss [rows, k]."""
        self.gone += gradients.sum(0)

    def step(self, damping: float = 0.0) -> Tensor:
        """Returns (H + λ I)⁻¹ Σ g, [k], with λ = `damping` times the mean eigenvalue of H."""
        size = len(self.matrix)
        added = damping * float(self.matrix.trace()) / size
        return torch.linalg.solve(self.matrix + added * torch.eye(size, dtype=torch.float64), self.gone)


def changes(jacobian: Tensor, step: Tensor) -> Tensor:
    """Returns - Σ_{i in F} τ(i → x) for each row x and output, [rows, C]: J(x) times the step."""
    return jacobian @ step


def softmax_curvature(logits: Tensor) -> Tensor:
    """Returns diag(p) - p pᵀ of each row, [rows, C, C]: the second derivative of cross-entropy by the logits."""
    p = exact(logits).cpu().softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

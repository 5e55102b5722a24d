"""Clouds of known intrinsic dimension: linear and curved, in 100 coordinates, clean or with noise in all of them."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 100


def turned(points: Tensor, generator: torch.Generator) -> Tensor:
    """The points [n, d] in the first d of `WIDTH` coordinates, then turned at random."""
    square = torch.randn(WIDTH, WIDTH, generator=generator, dtype=points.dtype)
    return points @ torch.linalg.qr(square).Q[: points.shape[1]]


def gaussian(n: int, d: int, generator: torch.Generator) -> Tensor:
    """A normal cloud in a d-dimensional subspace: linear, of varying density."""
    return turned(torch.randn(n, d, generator=generator, dtype=torch.float64), generator)


def cube(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Uniform in a d-dimensional cube: linear, of constant density, with edges; unit variance."""
    return turned((torch.rand(n, d, generator=generator, dtype=torch.float64) - 0.5) * 12**0.5, generator)


def sphere(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Uniform on the d-dimensional sphere: curved, of constant density, without edges; unit variance in d."""
    points = torch.randn(n, d + 1, generator=generator, dtype=torch.float64)
    return turned(points / points.norm(dim=1, keepdim=True) * d**0.5, generator)


def folded(n: int, d: int, generator: torch.Generator) -> Tensor:
    """sin of random directions and phases of a uniform d-dimensional cube: a nonlinear map into all coordinates."""
    points = (torch.rand(n, d, generator=generator, dtype=torch.float64) - 0.5) * 12**0.5
    directions = torch.randn(d, WIDTH, generator=generator, dtype=torch.float64) / d**0.5
    phases = 2 * torch.pi * torch.rand(WIDTH, generator=generator, dtype=torch.float64)
    return torch.sin(points @ directions + phases)


MANIFOLDS = {"gaussian": gaussian, "cube": cube, "sphere": sphere, "folded": folded}


def sample(name: str, n: int, d: int, *, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Points [n, WIDTH], float64; `noise` is the length of the noise over that of the cloud (root mean squares).

    The noise is normal and falls into all coordinates alike.
    """
    generator = torch.Generator().manual_seed(seed)
    points = MANIFOLDS[name](n, d, generator)
    spread = points.var(dim=0).mean().sqrt()
    return points + noise * spread * torch.randn(points.shape, generator=generator, dtype=torch.float64)

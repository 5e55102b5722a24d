"""Two estimators of another kind, from scikit-dimension: TwoNN is believed where they agree with it."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.numerics.dimension import FEWEST
from luthier.core.numerics.neighbours import checked, distinct

LIMIT = 1000
"""Points beyond which a random sample is taken."""
NEIGHBOURS = 20


def crosscheck(points: Tensor, seed: int = 0, limit: int = LIMIT) -> dict[str, float]:
    """Estimates dimensions of the points [n, d], by estimator, over each point's 20 nearest neighbours.

    "levina-bickel" (2005, maximum likelihood over all 20 distances) errs as TwoNN does, low at high d. "ess" (Johnsson,
    Soneson, Fontes 2015, expected simplex skewness) reads angles: nearly unbiased on flat clouds, high on
    sharply folded ones. More than `limit` distinct points are sampled, which thins the neighbourhoods.
    LuthierError if scikit-dimension is missing, or fewer than 10 points are distinct.
    """
    try:
        import skdim.id
    except ImportError:
        raise LuthierError("a cross-check needs scikit-dimension: pip install 'luthier[dimension]'") from None
    points = checked(points)
    kept = distinct(points).cpu()
    if len(kept) < FEWEST:
        raise LuthierError(f"{len(kept)} distinct points tell no dimension; {FEWEST} are the fewest.")
    chosen = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:limit]]
    cloud = points[chosen.to(points.device)].cpu().double().numpy()
    count = min(NEIGHBOURS, len(cloud) - 1)
    found = {"levina-bickel": skdim.id.MLE(K=count), "ess": skdim.id.ESS(random_state=seed)}
    return {name: float(method.fit(cloud, n_neighbors=count).dimension_) for name, method in found.items()}

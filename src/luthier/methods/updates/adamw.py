"""AdamW as it is: the update that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.update import Update


@dataclass(frozen=True)
class AdamW(Update):
    """Δθ = -η (m̂ / (√v̂ + ε) + λ θ)

    m̂ and v̂ are the moving means of gradient and squared gradient, corrected for their start at zero; the weight
    decay λ stands apart from them. Everything is trained in every step, at one learning rate.
    """

    paper = "Loshchilov, Hutter 2019 (ICLR), arXiv 1711.05101; Adam: Kingma, Ba 2015, arXiv 1412.6980"
    neutral: ClassVar = {}

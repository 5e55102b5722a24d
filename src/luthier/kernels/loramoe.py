"""LoRAMoE's decoded token: one product with all A, one sum over all B."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.form import Params
from luthier.kernels._experts import added_experts, by_adapter, decoding


def token(form: Any, p: Params, x: Tensor, y: Tensor) -> None:
    """y += s Σ_i w_i B_i A_i x over all experts, x [d_in] and y [d_out]."""
    a = p["A"]
    weights = form.weights(torch.mv(p["gate"].to(x.dtype), x)).to(a.dtype)
    inner = torch.mv(a.flatten(0, 1), x.to(a.dtype)).view(a.shape[:2])
    added_experts(y, inner * (form.scale * weights)[:, None], p["B"])


decoder, mixed = decoding(token), by_adapter

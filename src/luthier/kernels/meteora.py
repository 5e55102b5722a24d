"""MeteoRA's decoded token: its gate, and the factors of the experts that it is sent to alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.form import Params
from luthier.kernels._experts import added_experts, by_adapter, decoding


def token(form: Any, p: Params, x: Tensor, y: Tensor) -> None:
    """y += s Σ_i w_i B_i A_i x over the `top` experts, x [d_in] and y [d_out]."""
    weights, places = form.chosen(torch.mv(p["gate"].to(x.dtype), x))
    a, b = p["A"].index_select(0, places), p["B"].index_select(0, places)
    inner = torch.mv(a.flatten(0, 1), x.to(a.dtype)).view(a.shape[:2])
    added_experts(y, inner * (form.scale * weights.to(a.dtype))[:, None], b)


decoder, mixed = decoding(token), by_adapter

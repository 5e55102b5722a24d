"""Experts of a linear layer in generation: what one decoded token costs is starting products, so there are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.form import Params
from luthier.core.contracts.kernel import AssignRows, Frozen, RowAdapters, Run
from luthier.core.contracts.router import ROUTE

Decoder = Callable[[Any, Params, Frozen], Run]
Token = Callable[[Any, Params, Tensor, Tensor], None]
"""`token(form, p, x, y)` adds the experts' outputs to y [d_out], x [d_in]; p as it is stored."""


def edited(form: Any, p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Returns y with the experts by the form's own equation, x [..., d_in] and y [..., d_out]."""
    held = {key: tensor.to(x.dtype) for key, tensor in p.items()}
    return form.post({**held, ROUTE: form.route(held, x)}, x, y)


def decoding(token: Token) -> Decoder:
    """Returns the `decoder` of a kernel: one token goes through `token`, several through the form's own equation."""

    def decoder(form: Any, p: Params, layer: Frozen) -> Run:
        def run(x: Tensor) -> Tensor:
            y = layer(x)
            if x.numel() > x.shape[-1]:
                return edited(form, p, x, y)
            token(form, p, x.view(-1), y.view(-1))
            return y

        return run

    return decoder


def by_adapter(pairs: Sequence[tuple[Any, Params]], layer: Frozen) -> AssignRows:
    """The `mixed` of a kernel: rows of one adapter together, by its form's own equation."""

    def assign_rows(rows: RowAdapters) -> Run:
        own = {k: [i for i, row in enumerate(rows) if row == k] for k in {row for row in rows if row is not None}}
        places = {k: torch.tensor(each, device=layer.weight.device) for k, each in own.items()}

        def run(x: Tensor) -> Tensor:
            y = layer(x)
            x, z = x.view(len(rows), -1, x.shape[-1]), y.view(len(rows), -1, y.shape[-1])
            for k, place in places.items():
                form, p = pairs[k]
                z[place] = edited(form, p, x[place], z[place])
            return y

        return run

    return assign_rows


def added_experts(y: Tensor, inner: Tensor, b: Tensor) -> None:
    """y [d_out] += Σ_i B_i inner_i in place; inner [experts, rank] and B [experts, d_out, rank] of one dtype."""
    if y.dtype == b.dtype:
        y.view(-1, 1).addbmm_(b, inner[..., None])
    else:
        y.add_(torch.bmm(b, inner[..., None]).sum(0).view(-1).to(y.dtype))

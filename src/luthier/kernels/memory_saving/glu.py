"""A gated feed-forward layer, y = down(h), h = act(g) ∘ u, g = gate(x), u = up(x): g and u are all that is kept of h.

Where the layer `down` needs h for its gradients, its kernel recomputes h: a pass over g and u takes a hundredth of
what the products of the layer do, and h is as large as either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels._recompute import mark_recomputable

Act = Callable[[Tensor], Tensor]


def reference(self, x):
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj


def memory_saving(module: Any, x: Tensor) -> Tensor:
    """Computes `reference`, bit for bit."""
    act = module.act_fn
    gate, up = module.gate_proj(x), module.up_proj(x)
    if not (_plain(act) and gate.requires_grad and up.requires_grad):
        return module.down_proj(act(gate) * up)
    room = Room()
    h: Any = _Product.apply(gate, up, act, room)
    return module.down_proj(mark_recomputable(h, partial(_again, act, room), gate, up))


def _plain(act: Act) -> bool:
    """Whether an activation is neither trained nor writes into what it is given."""
    if not isinstance(act, nn.Module):
        return True
    return not (vars(act).get("inplace", False) or any(True for _ in act.parameters()))


class Room:
    """Holds act(g) between the backward pass of `down` and that of h."""

    found: tuple[Tensor, Tensor] | None = None


def _again(act: Act, room: Room, gate: Tensor, up: Tensor) -> Tensor:
    room.found = _activated(act, gate)
    return room.found[1].detach() * up


def _activated(act: Act, gate: Tensor) -> tuple[Tensor, Tensor]:
    """(g, act(g)), the latter with a gradient into the former."""
    with torch.enable_grad():
        g = gate.detach().requires_grad_()
        return g, act(g)


class _Product(torch.autograd.Function):
    """dg = act'(g) (dh ∘ u), du = dh ∘ act(g)."""

    @staticmethod
    def forward(gate: Tensor, up: Tensor, act: Act, room: Room):
        """act(g) ∘ u."""
        return act(gate) * up

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        gate, up, ctx.act, ctx.room = inputs
        ctx.save_for_backward(gate, up)

    @staticmethod
    def backward(ctx: Any, dh: Tensor):
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are wanted
            return *torch.autograd.grad(ctx.act(gate) * up, (gate, up), dh, create_graph=True), None, None
        g, a = ctx.room.found or _activated(ctx.act, gate)
        ctx.room.found = None
        (dg,) = torch.autograd.grad(a, g, dh * up)
        return dg, dh * a.detach(), None, None

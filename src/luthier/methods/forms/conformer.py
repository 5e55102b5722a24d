"""Conformer adapters: a bottleneck whose tokens see their neighbours, by a convolution along the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, ones, zeros
from torch.nn import functional

from luthier.core.contracts.form import ROW_MASK, Form, dropout, kaiming
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Conformer(Form):
    """y' = y + s (U SiLU(N(k * GLU(D LN(h) + a) + b)) + c), h = y (sequential) or x (parallel)

    The convolution module of the Conformer as an adapter: D [2 dim, d] and the gate GLU(u, v) = u sigmoid(v) narrow a
    token to dim, each of these has a kernel k [kernel] of its own along the tokens of the row (depthwise, padded with
    zeros to the same length), U [d_out, dim] widens. Where frames follow each other the neighbours are those in time;
    of AST's patches, those in time within a band of frequency. U and c start at zero, so it starts as a no-op, and D, k
    and the norms have a gradient from the second step on.

    A convolution reads the row: padding is zeroed before it, packed rows are taken apart, and models that write token
    by token are refused, since a token would see the next ones. Behind the feed-forward part is Pfeiffer's place,
    behind the attention as well Houlsby's (`where="output(attention), output(mlp)"` in AST); the default is behind each
    block.

    Differs from the authors' code where that departs from the paper or is not a function of a row: the output of LN is
    used (theirs is overwritten by x), and N is a layer norm over dim where theirs is a batch norm, by which a row would
    depend on the others of its batch (`norm = none` is their module with a batch norm's statistics at their start).
    """

    paper = "Cappellazzo et al. 2023, arXiv 2312.03694; Conformer: Gulati et al. 2020, arXiv 2005.08100"
    family = "additive"
    kinds = ("stream", "affine")
    where = "stream"
    linear = False
    sees = ("mask",)

    dim: int = 8
    """Width of the bottleneck."""
    kernel: int = 31
    """Tokens that the convolution sees, an odd number: the token is in the middle."""
    insertion: Literal["sequential", "parallel"] = "parallel"
    """What the adapter reads: the output or the input of the module."""
    norm: Literal["layer", "none"] = "layer"
    """The norm N behind the convolution."""
    scale: float = 1.0
    """The scale s of the adapter's output."""
    dropout: float = 0.0
    """Dropout on h."""

    def check(self):
        super().check()
        if self.kernel % 2 == 0:
            raise LuthierError(f"conformer.kernel is {self.kernel}; expected an odd number, which has a middle.")

    def init(self, site, stats):
        width = site.d_out if self.insertion == "sequential" else site.d_in
        inner = {"inner_gain": ones(self.dim), "inner_shift": zeros(self.dim)} if self.norm == "layer" else {}
        return inner | {
            "gain": ones(width),
            "shift": zeros(width),
            "down": kaiming(2 * self.dim, width),
            "down_bias": zeros(2 * self.dim),
            "kernel": kaiming(self.dim, self.kernel),
            "kernel_bias": zeros(self.dim),
            "up": zeros(site.d_out, self.dim),
            "up_bias": zeros(site.d_out),
        }

    def post(self, p, x, y):
        """The output after the adapter, y [rows, tokens, d_out]; of an image [rows, height, width, d_out], row by row.

        Raises `LuthierError` for an activation without rows.
        """
        rows = in_rows(self.name(), dropout(y if self.insertion == "sequential" else x, self.dropout))
        h = functional.layer_norm(rows, rows.shape[-1:], p["gain"], p["shift"])
        inner = functional.glu(h @ p["down"].mT + p["down_bias"], -1)
        if ROW_MASK in p:
            inner = inner * p[ROW_MASK][..., None].to(inner.dtype)
        inner = along(inner, p["kernel"], p["kernel_bias"])
        if self.norm == "layer":
            inner = functional.layer_norm(inner, inner.shape[-1:], p["inner_gain"], p["inner_shift"])
        return y + self.scale * (functional.silu(inner) @ p["up"].mT + p["up_bias"]).view(y.shape)


def in_rows(who: str, h: Tensor) -> Tensor:
    """Returns h as [rows, tokens, d]; raises where it has no axis of tokens."""
    if h.dim() < 3:
        raise LuthierError(
            f"{who} reads the tokens of a row, and this place has {list(h.shape)}, without rows of tokens; choose the "
            "output of a block, of its attention or of its feed-forward part (where)."
        )
    return h.flatten(1, -2)


def along(h: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolves each channel of h [rows, tokens, dim] along the tokens with its kernel of [dim, kernel]."""
    return functional.conv1d(h.mT, kernel[:, None], bias, padding="same", groups=len(kernel)).mT

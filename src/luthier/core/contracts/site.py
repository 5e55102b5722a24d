"""Sites: the places of a model that a form can act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["affine", "stream", "input", "embedding", "cache", "param"]


@dataclass(frozen=True)
class Site:
    """One place of a model.

    kind      what a form meets there                               path names
    affine    a linear map: x, W, y                                 the layer
    stream    an activation: the output of a module, [..., d_out]   the module
    input     an activation: the input of a module, [..., d_in]     the module
    embedding a table of `d_in` rows, looked up                     the table
    cache     keys and values: d_out key heads of width d_in        the attention module
    param     a tensor itself, of any shape                         the parameter
    """

    path: str
    kind: Kind
    d_in: int
    d_out: int
    layer: int | None = None
    """Index of the block that holds it, in its own stack; None outside the blocks."""
    bias: bool = False
    experts: int | None = None
    """Length of the leading axis of a 3-D parameter, experts' as a rule: one map for each."""
    maps: int = 1
    """[d_out, d_in] maps that the tensor holds, the product of its leading axes."""
    transposed: bool = False
    """The stored tensor is [d_in, d_out], as GPT-2's Conv1D and some experts keep it."""

    @property
    def type(self) -> str:
        """The path without indices: equal for the same layer of every block."""
        return ".".join(part for part in self.path.split(".") if not part.isdigit())

    @property
    def entries(self) -> int:
        """Entries of the whole tensor."""
        return self.maps * self.d_in * self.d_out

    @property
    def module(self) -> str:
        """Path of the module to adapt: the owner, for a parameter."""
        return self.path.rpartition(".")[0] if self.kind == "param" else self.path

    @property
    def key(self) -> tuple[str, str]:
        """What makes two sites the same."""
        return self.path, self.kind

    def __str__(self) -> str:
        wrapped = {"stream": "output({})", "input": "input({})", "param": "params({})"}
        wrapped["cache"] = "attention({})"
        return wrapped.get(self.kind, "{}").format(self.path)

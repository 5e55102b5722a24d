"""The adapted modules of a model, and their changes as factors or as whole tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from luthier.core.adapters.lower import delta_of, refuse_unmergeable
from luthier.core.adapters.swap import adapters_of
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError
from luthier.core.mapped import evict
from luthier.core.numerics.delta import Delta
from luthier.core.sites.structure import features, lookup_scale


@dataclass(frozen=True, eq=False)
class Layer:
    """A module and the tuner layers of one adapter on it."""

    path: str
    module: nn.Module
    tuners: list[TunerLayer]

    @property
    def kinds(self) -> set[str]:
        """The kinds of the sites that the tuner layers act on."""
        return {tuner.site.kind for tuner in self.tuners}


def layers_of(model: nn.Module, name: str) -> list[Layer]:
    """Returns the modules that the adapter `name` acts on, in the model's order."""
    found = []
    for path, module in model.named_modules():
        if (adapters := adapters_of(module)) and (tuners := adapters.named(name)):
            found.append(Layer(path, module, tuners))
    return found


def trained_whole(layer: Layer) -> bool:
    """Whether a parameter of the module is trained itself, by a form that knows no factors (full, bitfit)."""
    return any(tuner.site.kind == "param" and type(tuner.form).factors is Form.factors for tuner in layer.tuners)


def changed_weights(model: nn.Module, name: str) -> list[Layer]:
    """`layers_of` an adapter that changes weights; raises for one that no weight can express, where merging is none
    either."""
    found = layers_of(model, name)
    for layer in found:
        _refuse_unmergeable(layer)
    return found


@dataclass
class Factoring:
    """How changes become factors: exactly where they have low rank, and no higher one than `rank`, else by SVD at
    `rank` within `tolerance`."""

    rank: int | None = None
    tolerance: float = 0.0
    lost: dict[str, float] = field(default_factory=dict)
    """The {layer: relative error} of the layers that were truncated."""

    def __call__(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """(B [d_out, r], A [r, d_in]) of the change of a layer's weight; of a table, B [width, r] and A [r, rows]."""
        _refuse_elsewhere(layer)
        evict()
        return self.fit(layer, _table(layer) if layer.kinds == {"embedding"} else delta_of(layer.module, layer.tuners))

    def fit(self, layer: Layer, delta: Delta) -> tuple[Tensor, Tensor]:
        """Returns (B, A) of a change of one matrix of a layer."""
        if delta.rank is None or (self.rank is not None and delta.rank > self.rank):
            delta = self._truncated(layer, delta)
        assert delta.A is not None and delta.B is not None
        return delta.B, delta.A

    def _truncated(self, layer: Layer, delta: Delta) -> Delta:
        form = layer.tuners[0].form.name()
        if self.rank is None:
            raise LuthierError(
                f"{form} at {layer.path} is not of low rank; give a rank=… (--rank) and a tolerance (--tolerance) for "
                "a truncated SVD, or merge it instead."
            )
        delta, lost = delta.factor(self.rank)
        if lost > self.tolerance:
            raise LuthierError(
                f"{layer.path}: rank {self.rank} loses {lost:.1%} of the change, more than the tolerance "
                f"{self.tolerance:.1%}. A higher rank loses less; merging loses nothing."
            )
        self.lost[layer.path] = lost
        return delta


def _refuse_unmergeable(layer: Layer) -> None:
    try:
        refuse_unmergeable(layer.tuners)
    except LuthierError as error:
        raise LuthierError(f"{error} `luthier generate --adapter` runs it as it is.") from None


def _refuse_elsewhere(layer: Layer) -> None:
    """Raises for what is not a change of this layer's weight."""
    _refuse_unmergeable(layer)
    if "param" in layer.kinds:
        raise LuthierError(
            f"{layer.tuners[0].form.name()} acts on a parameter of {layer.path}, and such changes are not written in "
            "this format; export it merged instead (--to merged)."
        )
    if len(layer.kinds) > 1:
        raise LuthierError(f"{layer.path} is adapted in several ways at once; export it merged instead (--to merged).")


def _table(layer: Layer) -> Delta:
    tuner = layer.tuners[0]
    factors = tuner.factors(torch.float32, torch.empty(0)) if len(layer.tuners) == 1 else None
    if factors is None:
        raise LuthierError(
            f"{tuner.form.name()} on the table {layer.path} has no low-rank form; export it merged instead."
        )
    assert isinstance(layer.module, nn.Embedding)
    b, a = factors  # what is looked up, and so the change of the table, is scaled by it
    return Delta.low_rank(b / lookup_scale(layer.path, layer.module), a)


def is_dora(layer: Layer) -> bool:
    """Whether DoRA alone acts on a layer, on all tokens and from its own start."""
    tuners = layer.tuners
    plain = len(tuners) == 1 and tuners[0].form.name() == "dora" and tuners[0].site.kind == "affine"
    return plain and tuners[0].form.positions == "all" and not tuners[0].component.subtract_start


def dora_parts(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (s B, A, m) of a layer that DoRA acts on: its scale is inside B."""
    tuner = layer.tuners[0]
    p = tuner.params(torch.float32)
    return tuner.eval_form.scale * p["B"], p["A"], p["m"]


def filled(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors filled up to a rank: B with zeros, so nothing changes, A with unit rows, so that they can be trained."""
    more = rank - len(a)
    return pad(b, (0, more)), torch.cat([a, torch.eye(more, a.shape[1], dtype=a.dtype, device=a.device)])


def nothing(module: nn.Module) -> tuple[Tensor, Tensor]:
    """No change (B, A) of a linear layer that a format names and the adapter leaves alone."""
    d_in, d_out = features(module) or (0, 0)
    return torch.zeros(d_out, 0), torch.zeros(0, d_in)

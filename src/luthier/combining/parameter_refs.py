"""References to the parameters of a base, in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.contracts.combination import Place
from luthier.core.sites.scope import Scope
from luthier.core.sites.structure import features


@dataclass(frozen=True)
class ParameterRef:
    """A reference to a parameter: its name and the module that owns it."""

    path: str
    """The path of the module."""
    key: str
    module: nn.Module

    @property
    def name(self) -> str:
        """The name of the parameter."""
        return f"{self.path}.{self.key}" if self.path else self.key

    @property
    def tensor(self) -> Tensor:
        """The parameter as the model stores it."""
        found = self.module._parameters[self.key]
        assert found is not None
        return found

    @property
    def flipped(self) -> bool:
        """The model stores [d_in, d_out]."""
        return self.key == "weight" and isinstance(self.module, Conv1D)

    def oriented(self, tensor: Tensor) -> Tensor:
        """Returns a tensor of the stored shape as [d_out, d_in], or back."""
        return tensor.mT if self.flipped else tensor

    def place(self, scope: Scope, totals: dict[str, float]) -> Place:
        """Returns the place that a combination sees."""
        return Place(
            site=scope.parameter(self.name, self.flipped),
            shape=tuple(self.oriented(self.tensor).shape),
            depth=_depth(scope, self.path),
            base=lambda: wide(self.oriented(self.tensor)),
            vocabulary=self.key == "weight" and _rows_are_tokens(scope, self),
            totals=totals,
        )


def wide(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32 at least: what deltas are computed in."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def parameter_refs(model: nn.Module) -> list[list[ParameterRef]]:
    """Returns every parameter in the model's order, with all of its names where it is tied."""
    found: dict[int, list[ParameterRef]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in module.named_parameters(recurse=False):
            found.setdefault(id(tensor), []).append(ParameterRef(path, key, module))
    return list(found.values())


def _depth(scope: Scope, path: str) -> int:
    """Blocks in the stack that holds a module (an encoder and a decoder have one each), else in the deepest."""
    own = (len(blocks) for stack, blocks in scope.stacks.items() if path.startswith(f"{stack}."))
    return next(own, scope.depth)


def _rows_are_tokens(scope: Scope, ref: ParameterRef) -> bool:
    if isinstance(ref.module, nn.Embedding):
        return _vocabulary(scope.model) == ref.module.num_embeddings
    sizes = features(ref.module)
    return sizes is not None and scope.layer(ref.path) is None and _vocabulary(scope.model) == sizes[1]


def _vocabulary(model: nn.Module) -> int | None:
    """Tokens of the model, as its input table has them."""
    table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None

"""The structure of a base model: its linear layers, blocks and widths, found without knowing the architecture."""

from __future__ import annotations

import math
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact


class PlainAttributes(nn.Module):
    """A module whose attributes are set without torch's search for what a name held before: parameters and modules keep
    their names. That search was a third of the time that attaching takes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Tensor, nn.Module)):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)


class Attachment(PlainAttributes):
    """A module that is attached to a model and not part of the base; it handles train and eval mode itself."""


def features(module: nn.Module) -> tuple[int, int] | None:
    """Returns (d_in, d_out) of a linear layer, from its attributes (quantised and sharded weights differ in shape)."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Linear):  # bitsandbytes, torchao and Falcon's layers are subclasses
        return module.in_features, module.out_features
    return None


def unfolded_features(module: nn.Module) -> tuple[int, int] | None:
    """Returns (d_in, d_out) of a convolution as a map of its unfolded input: d_in is channels of a group times kernel.

    None for other modules, and for a transposed convolution, whose weight is no such matrix.
    """
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.in_channels // module.groups * math.prod(module.kernel_size), module.out_channels
    return None


def weight_of(module: nn.Module, stored: Tensor | None = None) -> Tensor:
    """The dense weight [d_out, d_in] of a linear layer, or of one that keeps `stored` in place of its own tensor; a
    quantised one is probed with the identity."""
    weight = module._parameters["weight"] if stored is None else stored
    assert weight is not None
    d_in, d_out = features(module) or (0, 0)
    if isinstance(module, Conv1D):
        return weight.mT
    if weight.is_floating_point() and tuple(weight.shape) == (d_out, d_in):
        return weight
    with torch.no_grad():
        eye = torch.eye(d_in, dtype=compute_dtype(module), device=weight.device)
        zero = torch.zeros(1, d_in, dtype=eye.dtype, device=weight.device)
        base = getattr(type(module), "_luthier_base", type(module)).forward
        return (base(module, eye) - base(module, zero)).mT


def lookup_scale(path: str, table: nn.Embedding) -> float:
    """The factor that a table puts on the rows that it looks up (Gemma's square root of the width); 1 as a rule.

    Raises `LuthierError` for a table that does something else with them.
    """
    weight = table._parameters["weight"]
    assert weight is not None
    if type(table) is nn.Embedding:
        return 1.0
    base = getattr(type(table), "_luthier_base", type(table)).forward
    with torch.no_grad():
        row = int(weight.float().norm(dim=1).argmax())
        stored = exact(weight[row])
        try:
            looked_up = exact(base(table, torch.tensor([row], device=weight.device))[0])
        except Exception as error:  # tables of positions raise whatever a missing mask or a shape leads to
            raise LuthierError(f"{path} looks up something else than tokens, so no form acts on it.") from error
        scale = float(looked_up @ stored / (stored @ stored))
    if not torch.allclose(looked_up, scale * stored, rtol=1e-2, atol=1e-6):
        raise LuthierError(f"{path} does more than look its rows up, so no change of them says what it gives.")
    return 1.0 if abs(scale - 1) < 1e-6 else scale


def raw_parameter(model: nn.Module, path: str) -> nn.Parameter:
    """Returns the base's own parameter at `path`, whatever forms act on it."""
    owner, _, name = path.rpartition(".")
    found = model.get_submodule(owner)._parameters[name]
    assert found is not None
    return found


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns the tensor itself, or gathers one that is sharded over processes (every rank must call it)."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether the tensor is sharded over processes (FSDP2, tensor parallelism)."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def writes(model: nn.Module) -> bool:
    """Returns whether this process writes files: all do, except where they share a sharded base."""
    sharded = any(is_sharded(parameter) for _, parameter in base_parameters(model))
    return not sharded or torch.distributed.get_rank() == 0


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a module computes in: that of its first floating parameter, else float32 (quantised weights)."""
    for tensor in module.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def is_quantised(module: nn.Module) -> bool:
    """Returns whether the weight of a linear layer is quantised."""
    weight = module._parameters["weight"]
    assert weight is not None
    plain = type(weight) is nn.Parameter or type(weight.data) is Tensor
    return not (weight.is_floating_point() and plain) or "Params" in type(weight).__name__


def namesake(cls: type[nn.Module], body: dict[str, Any]) -> type[nn.Module]:
    """Creates a subclass with this body and the name of `cls`."""
    body = body | {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(cls.__name__, (cls,), {}, lambda namespace: namespace.update(body))


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside torch.compile and DistributedDataParallel, whose paths and classes are used."""
    inner = model._modules.get("module" if isinstance(model, DistributedDataParallel) else "_orig_mod")
    return model if inner is None else unwrapped(inner)


def adaptable(model: nn.Module) -> nn.Module:
    """`unwrapped`; raises for DistributedDataParallel, which would not average gradients of what is added later."""
    if isinstance(model, DistributedDataParallel):
        raise LuthierError("this model is in DistributedDataParallel already; adapt the model, then wrap it.")
    inner = model._modules.get("_orig_mod")
    return model if inner is None else adaptable(inner)


def base_modules(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules of the base by path, as `named_modules` does, without what is attached to them.

    So a walk takes the same time however many adapters are loaded.
    """
    seen: set[int] = set()
    ahead = [("", model)]
    while ahead:
        path, module = ahead.pop()
        if remove_duplicate and id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        adapted = getattr(type(module), "_luthier_base", None) is not None
        inside = [(n, m) for n, m in module._modules.items() if m is not None and not (adapted and n == "adapters")]
        ahead += [(f"{path}.{n}" if path else n, m) for n, m in reversed(inside)]


def base_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields `named_parameters` of the base, likewise."""
    seen: set[int] = set()
    for path, module in base_modules(model, remove_duplicate=remove_duplicate):
        for name, parameter in module._parameters.items():
            if parameter is not None and not (remove_duplicate and id(parameter) in seen):
                seen.add(id(parameter))
                yield (f"{path}.{name}" if path else name), parameter


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Finds the stacks of blocks: the outermost module lists whose elements hold linear layers."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in base_modules(model):
        inside = any(path.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and _holds_linear(module):
            found[path] = module
    return found


def one_stack(model: nn.Module, who: str) -> str:
    """Returns the path of the only stack of blocks; raises `LuthierError` for `who` where there are none or several."""
    found = list(block_lists(model))
    if len(found) != 1:
        raise LuthierError(
            f"{who} reads what one stack of blocks gives, and {type(model).__name__} has {len(found)} "
            f"({', '.join(found) or 'none'}); choose a model with one."
        )
    return found[0]


def _holds_linear(blocks: nn.ModuleList) -> bool:
    """Whether the elements are blocks: lists of lists are none, whose inner lists hold the blocks."""
    return (
        len(blocks) > 0
        and not isinstance(blocks[0], nn.ModuleList)
        and any(features(m) for _, m in base_modules(blocks[0]))
    )


def width(module: nn.Module) -> int:
    """Returns the width of the residual stream through a module: the size that most of its linear layers share."""
    votes: Counter[int] = Counter()
    for _, child in base_modules(module):
        votes.update(features(child) or ())
    return votes.most_common(1)[0][0] if votes else 0


def channels(module: nn.Module) -> tuple[set[int], set[int]]:
    """Returns (widths that linear layers and norms take as the last axis, those that convolutions and batch norms
    take as the second)."""
    last: set[int] = set()
    second: set[int] = set()
    for _, child in base_modules(module):
        last.update(features(child) or ())
        if isinstance(child, nn.modules.conv._ConvNd):
            second.update((child.in_channels, child.out_channels))
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            second.add(child.num_features)
    return last, second


def stack_owner(model: nn.Module, path: str) -> str:
    """Returns the path of the module that meets the attention mask and the cache of a stack: the innermost
    `PreTrainedModel` above it, or the root."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        above = ".".join(parts[:end])
        if isinstance(model.get_submodule(above), PreTrainedModel):
            return above
    return ""


def decoder_path(model: nn.Module) -> str | None:
    """Returns the path of the decoder of an encoder-decoder; None for other models."""
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return None
    decoder = model.get_decoder()  # type: ignore[operator]
    return next((path for path, module in base_modules(model) if module is decoder), None)


def keep_differentiable(model: nn.Module) -> list[nn.Module]:
    """Stops bitsandbytes from repacking 4-bit weights for CPU inference, which has no backward pass: one pass in
    evaluation mode, and no later training step would run. Returns the modules that were told."""
    told = []
    for module in model.modules():
        if vars(module).get("support_avx512bf16_for_cpu"):
            module.state_dict()  # undoes a packing that has happened
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            told.append(module)
    return told


def base_tensor(module: nn.Module, site: Site) -> Tensor:
    """Returns the base's own weight at a site, [..., d_out, d_in] (a parameter of fewer axes as it is)."""
    if site.kind != "param":
        return full_tensor(weight_of(module))
    tensor = module._parameters[site.path.rpartition(".")[2]]
    assert tensor is not None
    if site.unfolded:
        return full_tensor(tensor).flatten(1)
    return full_tensor(tensor).mT if site.transposed else full_tensor(tensor)


def rope_kinds(config: Any) -> set[str]:
    """Returns the kinds of RoPE that a configuration names (`default`, `yarn`, …), of which blocks may have several."""
    told = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [told] if "rope_type" in told else [kind for kind in told.values() if isinstance(kind, dict)]
    return {kind.get("rope_type", "default") for kind in each}

"""What an adapter does to the parameters of one module, as deltas."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.combining.parameter_refs import wide
from luthier.core.adapters.call import OneHot
from luthier.core.adapters.lower import affine_map, bias_change
from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.structure import weight_of


def lowered(path: str, module: nn.Module, tuners: Sequence[TunerLayer]) -> dict[str, Delta]:
    """Returns `{parameter: change}` of a module under edits that a weight can express; [d_out, d_in] in linear layers.

    Forms of low rank and sparse ones keep their structure.
    """
    changes: dict[str, Delta] = {}
    if own := [tuner for tuner in tuners if tuner.site.kind == "param"]:
        changes = _params(module, own)
        module = at_base(path, module, lambda name: _changed(module, changes, name.rpartition(".")[2]))
    for kind, lower in (("affine", _linear), ("embedding", _table)):
        if acting := [tuner for tuner in tuners if tuner.site.kind == kind]:
            for key, change in lower(path, module, acting).items():
                changes[key] = changes[key] + change if key in changes else change
    return changes


def at_base(path: str, module: nn.Module, get: Callable[[str], Tensor]) -> nn.Module:
    """Returns the module with the parameters of another base, `get(name)`; the module itself stays."""
    counterpart = copy.copy(module)
    held = ((key, tensor) for key, tensor in module._parameters.items() if tensor is not None)
    vars(counterpart)["_parameters"] = {key: nn.Parameter(get(f"{path}.{key}"), False) for key, _ in held}
    return counterpart


def _changed(module: nn.Module, changes: Mapping[str, Delta], key: str) -> Tensor:
    tensor = module._parameters[key]
    assert tensor is not None
    return changes[key].apply(wide(tensor)) if key in changes else tensor.detach()


def _linear(path: str, module: nn.Module, tuners: Sequence[TunerLayer]) -> dict[str, Delta]:
    weight = wide(weight_of(module))
    found = _structured(tuners[0], weight) if len(tuners) == 1 else None
    changes = {"weight": found or Delta.dense_of(affine_map(module, tuners)[0] - weight)}
    if bool((bias := bias_change(module, tuners)).any()):
        if module._parameters.get("bias") is None:
            raise LuthierError(f"{path} has no bias to take the constant that an adapter adds.")
        changes["bias"] = Delta.dense_of(bias)
    return changes


def _structured(tuner: TunerLayer, weight: Tensor) -> Delta | None:
    """The exact factors or entries of a form that has them."""
    if tuner.form.maps(tuner.site) is not None:
        return None
    if (factors := tuner.factors(weight.dtype, weight)) is not None:
        return Delta.low_rank(*factors)
    if tuner.component.subtract_start:
        return None
    entries = tuner.eval_form.entries(tuner.params(weight.dtype))
    return None if entries is None else Delta.sparse(tuple(weight.shape), *entries).united()


def _table(path: str, module: nn.Module, tuners: Sequence[TunerLayer]) -> dict[str, Delta]:
    stored = module._parameters["weight"]
    assert stored is not None
    stored = wide(stored)
    factors = tuners[0].factors(stored.dtype, stored.mT) if len(tuners) == 1 else None
    if factors is not None and type(module) is nn.Embedding:
        return {"weight": Delta.low_rank(factors[1].mT, factors[0].mT)}
    ids = torch.arange(len(stored))
    looked: Any = OneHot(ids)
    base = module(ids).to(stored.dtype)
    y = base
    for tuner in tuners:
        y = tuner.post(Pass(), looked, y)
    gain = (base * stored).sum() / (stored * stored).sum()  # Gemma scales what it looks up
    return {"weight": Delta.dense_of((y - base) / gain)}


def _params(module: nn.Module, tuners: Sequence[TunerLayer]) -> dict[str, Delta]:
    changes: dict[str, Delta] = {}
    for key in dict.fromkeys(tuner.site.path.rpartition(".")[2] for tuner in tuners):
        own = [tuner for tuner in tuners if tuner.site.path.rpartition(".")[2] == key]
        tensor = module._parameters[key]
        assert tensor is not None
        before = wide(tensor)
        found = _structured(own[0], before) if len(own) == 1 and not own[0].site.transposed else None
        after = before
        for tuner in own if found is None else []:
            after = tuner.weight(after)
        changes[key] = found or Delta.dense_of(after - before)
    return changes

"""Merging adapters into the weights and unmerging them again, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.adapters.attach import check_name, state_of
from luthier.core.adapters.call import OneHot
from luthier.core.adapters.control import switch
from luthier.core.adapters.lower import _NOBODY, _stored, affine_map, refuse_unmergeable
from luthier.core.adapters.order import refuse_beneath
from luthier.core.adapters.prefix import refresh_prefixes
from luthier.core.adapters.state import State
from luthier.core.adapters.swap import adapters_of
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.errors import LuthierError
from luthier.core.mapped import evict, spilled
from luthier.core.sites.probe import dummy_inputs, eval_mode
from luthier.core.sites.structure import features, is_quantised, unwrapped


def merge(model: nn.Module, name: str | None = None, *, inputs: Mapping[str, Any] | None = None) -> nn.Module:
    """Merges the enabled adapters (or the one named) into the weights; `unmerge` restores the base bit for bit.

    The originals are kept beside the model until then. A tied tensor that changes in one place only is untied.
    Weights keep their dtype, and rounding to it changes the outputs a little: `rounding` says by how much at most on
    `inputs` (arguments of the model; none: one short row), where it is known how to run the model.

    Raises `LuthierError` for forms that no weight can express, for one that acts on what an adapter makes that is not
    merged with it (a sum behind a scale, say; two sums may change places), and for quantised layers, where
    rounding the sum again costs quality: merge into the base in its original precision instead.
    """
    state, base = state_of(model), unwrapped(model)
    if state.merged:
        raise LuthierError("adapters are merged already; unmerge first.")
    if state.current.rows is not None or state.passes.arranged:
        raise LuthierError("rows are arranged to use adapters of their own; let them go before merging.")
    if name is not None:
        check_name(state, name)
    todo = list(_wanted(base, name))
    for path, module, tuners in todo:
        refuse_unmergeable(tuners)
        refuse_beneath(module, tuners)
        if features(module) and not _only_params(tuners) and is_quantised(module):
            raise LuthierError(
                f"{path} is quantised; merging would round the sum again. Load the base in its original "
                "precision, load the adapter onto it and merge there."
            )
    with eval_mode(base):  # without dropout, whatever mode the model is in
        before = _outputs(base, inputs)
        new: dict[str, Tensor] = {}
        for path, module, tuners in todo:
            new |= _merged(path, module, tuners)
            evict()
        _write(base, state, new)
        state.folded = [tuner for _, _, tuners in todo for tuner in tuners]
        switch(base, name, False)
        after = None if before is None else _outputs(base, inputs)
    if before is not None and after is not None:
        state.rounding = float((after - before).abs().max()), float(before.abs().max())
    return model


def rounding(model: nn.Module) -> tuple[float, float] | None:
    """Returns (largest change of an output by merging, largest output) on probe inputs; None if not known.

    Raises `LuthierError` where nothing is merged.
    """
    state = state_of(model)
    if not state.merged:
        raise LuthierError("nothing is merged.")
    return state.rounding


def _outputs(model: nn.Module, inputs: Mapping[str, Any] | None) -> Tensor | None:
    """The first output, in float32 at least; None for a model that nothing is known to run."""
    if inputs is not None:
        return _first(model(**inputs))
    if not isinstance(model, PreTrainedModel) or next(model.parameters()).is_meta:
        return None
    try:
        return _first(model(**dummy_inputs(model)))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # merging itself runs no model
        return None


def _first(found: Any) -> Tensor | None:
    first = found[0]
    return first.to(torch.promote_types(first.dtype, torch.float32)) if isinstance(first, Tensor) else None


def _wanted(model: nn.Module, name: str | None):
    for path, module in model.named_modules():
        if adapters := adapters_of(module):
            tuners = [s for s in adapters.tuners() if s.enabled and name in (None, s.name)]
            if tuners:
                yield path, module, tuners


def _only_params(tuners: Sequence[TunerLayer]) -> bool:
    return all(tuner.site.kind == "param" for tuner in tuners)


def _merged(path: str, module: nn.Module, tuners: list[TunerLayer]) -> dict[str, Tensor]:
    """{parameter path: new tensor} of one module; a layer's form acts on what a parameter's form makes."""
    kinds = {tuner.site.kind for tuner in tuners}
    own = dict.fromkeys(s.site.path.rpartition(".")[2] for s in tuners if s.site.kind == "param")
    new = {key: _stored(module, key, tuners) for key in own}
    if "affine" in kinds:
        weight, new["bias"] = affine_map(module, tuners)
        new["weight"] = weight.mT if isinstance(module, Conv1D) else weight
        if new["bias"] is not None and module._parameters.get("bias") is None:
            raise LuthierError(f"{path} has no bias to take the constant that merging would add.")
    if "embedding" in kinds:
        new["weight"] = _table(module, tuners)
    return {
        f"{path}.{key}" if path else key: spilled(tensor.to(module._parameters[key].dtype).contiguous())  # type: ignore[union-attr]
        for key, tensor in new.items()
        if tensor is not None
    }


def _table(module: nn.Module, tuners: list[TunerLayer]) -> Tensor:
    """The table whose plain look-up equals the adapted one (Gemma scales what it looks up)."""
    stored = _stored(module, "weight", tuners)
    assert stored is not None
    ids = torch.arange(len(stored), device=stored.device)
    base = _looked_up(module, ids, tuners)
    factor = (base * stored).sum() / (stored * stored).sum()
    y = base
    for tuner in (s for s in tuners if s.site.kind == "embedding"):
        y = tuner.post(_NOBODY, OneHot(ids), y)  # type: ignore[arg-type]
    return stored + (y - base) / factor


def _looked_up(module: nn.Module, ids: Tensor, tuners: list[TunerLayer]) -> Tensor:
    """What the base's table gives, with the edits of those `tuners` that act on its parameter."""
    adapters = adapters_of(module)
    assert adapters is not None
    acting, adapters.params = adapters.params, [tuner for tuner in tuners if tuner.site.kind == "param"]
    try:
        return type(module)._luthier_base.forward(module, ids)  # type: ignore[attr-defined]
    finally:
        adapters.params = acting


def _write(model: nn.Module, state: State, new: dict[str, Tensor]) -> None:
    """Puts tensors in place of parameters, keeping the originals."""
    places: dict[int, list[str]] = {}
    done: dict[str, nn.Parameter] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(path)
    for path, tensor in new.items():
        owner, _, key = path.rpartition(".")
        module = model.get_submodule(owner)
        old = module._parameters[key]
        assert old is not None
        state.merged[path] = old
        others = [p for p in places[id(old)] if p not in new or not torch.equal(new[p], tensor)]
        if others:
            _untie(model, state, path, others)
        first = places[id(old)][0]  # places that stay equal stay one tensor
        if not others and first in done:
            module._parameters[key] = done[first]
        else:
            done[path] = nn.Parameter(tensor, requires_grad=False)
            module._parameters[key] = done[path]


def _untie(model: nn.Module, state: State, path: str, others: list[str]) -> None:
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings, state.untied = False, True
    warnings.warn(f"{path} was tied to {', '.join(others)}; merged, they differ and are untied.", stacklevel=4)


def unmerge(model: nn.Module) -> nn.Module:
    """Restores the base's original tensors and enables the merged adapters again."""
    state, base = state_of(model), unwrapped(model)
    state.passes.alone()
    if not state.merged:
        raise LuthierError("nothing is merged.")
    for path, parameter in state.merged.items():
        owner, _, key = path.rpartition(".")
        base.get_submodule(owner)._parameters[key] = parameter
    if state.untied:
        base.config.tie_word_embeddings = True  # type: ignore[union-attr]
    folded, state.merged, state.folded, state.untied, state.rounding = state.folded, {}, [], False, None
    for container in state.containers:
        container.switch([tuner for tuner in container.tuners() if tuner in folded], True)
    refresh_prefixes(base, state)
    return model

"""A probing pass: one small forward pass that shows what it reaches."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.inputs import NotKnown, dummy_inputs
from luthier.core.sites.structure import Attachment, base_modules, base_parameters, is_sharded


@contextmanager
def eval_mode(model: nn.Module):
    """Sets eval mode without gradients while the context lasts, and restores every module's own flag after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in reversed(flags):  # attachments after what they hold
            if isinstance(module, Attachment):
                module.train(training)  # which also drops what was planned for decoding
            else:
                module.training = training


def run_once(model: nn.Module) -> None:
    """Runs one small forward pass."""
    with eval_mode(model):
        model(**dummy_inputs(model))


def run_bare(model: nn.Module) -> None:
    """Runs one small forward pass; raises `NotKnown` where none can be run."""
    try:
        run_once(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model says to inputs that do not fit it
        raise error if isinstance(error, LuthierError) else NotKnown(model, error) from error


Met = Mapping[str, tuple[Any, Any]]
"""What first entered and left each called module, by path: the shape of a tensor, or the name of another type."""
_met: weakref.WeakKeyDictionary[nn.Module, tuple[int, Met | None]] = weakref.WeakKeyDictionary()


def met(model: nn.Module) -> Met | None:
    """What a small pass meets, found once for a model; None where none can be run: no transformers model, one that is
    sharded, or one whose inputs are not known."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or any(is_sharded(p) for _, p in base_parameters(model)):
        return None
    token = hash(tuple((path, id(module)) for path, module in base_modules(model)))
    known = _met.get(model)
    if known is None or known[0] != token:
        _met[model] = known = token, (_of_shapes if model.device.type == "meta" else _watched)(model)
    return known[1]


_met_by_shapes: dict[tuple[Any, ...], Met | None] = {}


def _of_shapes(model: Any) -> Met | None:
    """What a model without weights meets, which follows from its class, configuration and layers: found once for all
    such, as a pass on the meta device takes much longer than one of a small model."""
    layers = tuple((path, type(module)) for path, module in base_modules(model))
    key = type(model), model.dtype, str(model.config.to_dict()), layers
    if key not in _met_by_shapes:
        _met_by_shapes[key] = _watched(model)
    return _met_by_shapes[key]


def _watched(model: nn.Module) -> Met | None:
    found: dict[str, tuple[Any, Any]] = {}
    hooks = []

    def watch(path: str, module: nn.Module) -> None:
        def note(module, args, kwargs, output) -> None:
            entering = args[0] if args else next(iter(kwargs.values()), None)
            found.setdefault(path, (_shown(entering), _more(module, entering, output) or _shown(output)))

        hooks.append(module.register_forward_hook(note, with_kwargs=True))

    for path, module in base_modules(model):
        watch(path, module)
    try:
        run_once(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model says to inputs that do not fit it
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return found


def may_do_more(module: nn.Module) -> bool:
    """Whether a layer is linear by its class, and has a forward pass of its own."""
    base = getattr(type(module), "_luthier_base", type(module))
    return isinstance(module, nn.Linear) and base.forward is not nn.Linear.forward


def _more(module: nn.Module, entering: Any, output: Any) -> str | None:
    """What leaves a layer that is linear by its class alone: routers of some models are, and choose experts too.

    None where it is W x + b, or cannot be told: of a quantised layer, or one that is adapted already.
    """
    if not may_do_more(module):
        return None
    if not isinstance(output, Tensor):
        return type(output).__name__
    dense = module._parameters["weight"]
    adapted = getattr(type(module), "_luthier_base", None) is not None
    if adapted or dense is None or not isinstance(entering, Tensor) or entering.shape[-1:] != dense.shape[-1:]:
        return None
    if dense.dtype != entering.dtype or output.shape[-1:] != dense.shape[:1]:
        return None
    mapped = nn.functional.linear(entering, dense, module._parameters["bias"])
    near = torch.allclose(mapped, output, rtol=1e-2, atol=1e-2 * float(mapped.abs().max()))
    return None if near else "another function of what enters"


def _shown(value: Any) -> Any:
    first = value[0] if type(value) in (tuple, list) and value else value
    return tuple(first.shape) if isinstance(first, Tensor) else type(value).__name__

"""The fingerprint of a base: its layers, and a digest of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from luthier.core.adapters.attach import find_state
from luthier.core.mapped import evict
from luthier.core.sites.renaming import names_of, nearest
from luthier.core.sites.samples import architecture, class_name, close, values
from luthier.core.sites.structure import base_modules, base_parameters, block_lists, full_tensor, is_sharded
from luthier.core.storage import fingerprint_old

DIGESTED = 32768
"""Values of a tensor that its digest covers at least; of a larger one, it covers a value of every row."""
LEAST = 32
"""The number of values below which two bases are not compared for similarity."""


def fingerprint(model: nn.Module, leave: Iterable[str] = ()) -> dict[str, Any]:
    """Returns `{"model", "architecture", "dtype", "sample", "digests"}` of the base under an adapted model.

    The architecture is a hash of the layers and their sizes, equal for a quantised copy. Every floating parameter and
    stored buffer counts, by each of its names: the sample takes 8 of its values, the digest is a hash of all of its
    bytes up to 32,768 values, and of one value in every row (or more) where it is larger. What is quantised, or on no
    device, cannot be compared with other precisions: its digest is None. Heads stay out that an attached adapter
    replaces whole, and so do the modules of `leave`, which a checkpoint lacks. Where the base is sharded, every process
    must ask, and each tensor is gathered once.
    """
    digests, sample, dtypes, seen = {}, {}, set(), {}
    for path, tensor in _counted(model, tuple(leave)).items():
        if not _comparable(tensor):
            digests[path] = None
            continue
        dtypes.add(str(tensor.dtype).removeprefix("torch."))
        if id(tensor) not in seen:  # tied tensors are read once
            flat = full_tensor(tensor.detach()).reshape(-1)
            seen[id(tensor)] = values(flat), _digest(flat, tensor.shape)
            evict()
        sample[path], digests[path] = seen[id(tensor)]
    return {
        "model": class_name(model),
        "architecture": architecture(model),
        "dtype": sorted(dtypes),
        "sample": sample,
        "digests": digests,
    }


def _counted(model: nn.Module, leave: tuple[str, ...]) -> dict[str, Tensor]:
    """Every parameter, floating or quantised, and every stored floating buffer, except those that a task adds."""
    state = find_state(model)
    replaced = (
        set() if state is None else {site.path for component in state.components for site in replacing(component)}
    )
    inside = _inside(model)
    tables = {f"{path}.weight" for path, m in base_modules(model) if isinstance(m, nn.Embedding)}
    heads = {path for path in replaced if path not in tables and not path.startswith(inside)}
    new = tuple(f"{module}." for module in leave)
    tensors = [*base_parameters(model, remove_duplicate=False), *_buffers(model)]
    return {path: t for path, t in tensors if path not in heads and not path.startswith(new or ("\0",))}


def replacing(component: Any) -> list[Any]:
    """Returns the sites of a component whose tensors replace the base's."""
    return list(component.sites) if component.form.replaces and not component.subtract_start else []


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating buffers that a checkpoint holds; running statistics move in training, whoever trains."""
    for path, module in base_modules(model):
        for name, tensor in module._buffers.items():
            if tensor is None or name in module._non_persistent_buffers_set or isinstance(module, _NormBase):
                continue
            if tensor.is_floating_point():
                yield (f"{path}.{name}" if path else name), tensor


def _comparable(tensor: Tensor) -> bool:
    plain = type(tensor.data) is Tensor or is_sharded(tensor)  # a quantised tensor has other values
    return tensor.is_floating_point() and plain and not tensor.is_meta


def _inside(model: nn.Module) -> tuple[str, ...]:
    """What the paths of tensors inside the blocks start with; of a model without blocks, every path does."""
    return tuple(f"{path}." for path in block_lists(model)) or ("",)


def _digest(flat: Tensor, shape: torch.Size) -> str:
    """A hash of evenly spaced values, in the precision that they have: along diagonals, so that every row is met."""
    step = max(1, min(len(flat) // DIGESTED, shape[-1] - 1 if shape else 1))
    taken = flat[::step].cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(str(tuple(shape)).encode() + taken.tobytes(), digest_size=8).hexdigest()


def differences(stored: dict[str, Any], model: nn.Module) -> str | None:
    """Returns why the base of `stored` is not `model`; None if it is. Rounding to another dtype is allowed for.

    A head that one of the two lacks is not a difference: another task has another.
    """
    if stored["architecture"] != architecture(model):
        return f"its layers differ ({stored['model']} there, {class_name(model)} here{_first_lost(stored, model)})"
    if not stored["digests"]:
        return fingerprint_old.differences(stored, model)
    return compared(stored, fingerprint(model), _inside(model))


def _first_lost(stored: Mapping[str, Any], model: nn.Module) -> str:
    """The first tensor of a stored base that the model has not, beside the nearest that it has."""
    names = names_of(model)
    lost = next((path for path in stored["sample"] if path not in names), None)
    if lost is None:
        return ", of another size or number"
    return f"; its {lost} is not here{nearest(lost, model).rstrip('.')}"


def compared(stored: dict[str, Any], here: dict[str, Any], inside: tuple[str, ...]) -> str | None:
    """Why two fingerprints of one architecture are of two bases, whose blocks' paths start with `inside`."""
    one_sided = sorted(p for p in {*stored["digests"]} ^ {*here["digests"]} if p.startswith(inside))
    if one_sided:
        there = one_sided[0] in stored["digests"]
        return f"it has {one_sided[0]}, this base not" if there else f"this base has {one_sided[0]}, it not"
    shared = [path for path in stored["sample"] if path in here["sample"]]
    if not shared and stored["sample"]:
        return "none of its weights can be compared with this base"
    if stored["dtype"] == here["dtype"]:
        wrong = (path for path in shared if stored["digests"][path] != here["digests"][path])
    else:
        wrong = (path for path in shared if not close(stored["sample"][path], here["sample"][path], exact=False))
    return next((f"its weights differ (first in {path})" for path in wrong), None)


def unseen(stored: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Returns the tensors of the base that a spec of an older format says nothing about; empty for a present one."""
    if stored["digests"]:
        return []
    return [path for path, tensor in base_parameters(model) if _comparable(tensor) and path not in stored["sample"]]


def sample_of(get: Callable[[str], Tensor | None], paths: Iterable[str]) -> dict[str, list[float]]:
    """Returns the sample of other weights; `get(name)` gives a tensor, or None without one."""
    found = {path: get(path) for path in paths}
    return {path: values(tensor) for path, tensor in found.items() if tensor is not None}


def matrices(model: nn.Module, most: int = 32) -> list[str]:
    """Returns some matrices of evenly spaced blocks, by which similarity is judged."""
    found = list(_matrices(model))
    stride = max(1, len(found) // most)
    return found[:: stride + (stride > 1 and stride % 2 == 0)][:most]  # an even stride keeps step with the blocks


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    inside = _inside(model)
    return {p: t for p, t in base_parameters(model) if p.startswith(inside) and t.dim() > 1 and _comparable(t)}


def base_similarity(sample: dict[str, list[float]], model: nn.Module) -> float | None:
    """Cosine between sampled weights and those of `model`, from -1 to 1; None where too few can be compared.

    About 1 for a base that grew out of the other, about 0 for two that were trained apart. Matrices inside the blocks
    are compared, each at its own scale: norms look alike everywhere, and tables may have other rows.
    """
    here = _matrices(model)
    pairs = [(torch.tensor(sample[path]), torch.tensor(values(here[path]))) for path in sample if path in here]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape and bool(a.any()) and bool(b.any())]
    if sum(len(a) for a, _ in pairs) < LEAST:
        return None
    theirs, ours = (torch.cat([t / t.norm() for t in side]) for side in zip(*pairs, strict=True))
    return float(theirs @ ours / (theirs.norm() * ours.norm()))

"""What pyreft's files say: interventions by their class, the places that they act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError, near
from luthier.core.sites.structure import block_lists
from luthier.methods.forms._reft import stored
from luthier.methods.forms.consreft import ConsReFT
from luthier.methods.forms.direft import DiReFT
from luthier.methods.forms.lobireft import LobiReFT
from luthier.methods.forms.loreft import LoReFT
from luthier.methods.forms.noreft import NoReFT

Tensors = Mapping[str, Tensor]
FIELDS = [
    "layer",
    "component",
    "unit",
    "max_number_of_units",
    "low_rank_dimension",
    "intervention_type",
    "intervention",
    "subspace_partition",
    "group_key",
    "intervention_link_key",
    "moe_key",
    "source_representation",
    "hidden_source_representation",
    "latent_dim",
]
"""A representation is saved as the list of these."""
WRAPPED = "base_model.model."
"""How the paths of a model start that peft wrapped."""
BUFFERS = ("embed_dim", "interchange_dim")
"""Whole numbers that every class but LoreftIntervention saves beside its tensors; none of them reads these."""
POSITIONS = "luthier_positions"
"""Where a configuration that is written here says the positions, which pyreft itself saves nowhere and passes over."""
ORTHONORMAL = 3e-6
"""Largest entry of R Rᵀ - I that counts as rounding of float32."""


def representations(folder: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the representations by name of field, with the class of the intervention and the key of its file."""
    listed, kinds, keys = (config.get(k) for k in ("representations", "intervention_types", "sorted_keys"))
    if not all(isinstance(each, list) for each in (listed, kinds, keys)) or not listed:
        raise LuthierError(f"{folder / 'config.json'} is not a configuration of pyreft's, or a damaged one.")
    assert isinstance(listed, list) and isinstance(kinds, list) and isinstance(keys, list)
    if not len(listed) == len(kinds) == len(keys):
        raise LuthierError(f"{folder / 'config.json'} lists {len(listed)} places and {len(keys)} keys; it is damaged.")
    found = []
    for each, kind, key in zip(listed, kinds, keys, strict=True):
        place = dict(zip(FIELDS, each, strict=False)) if isinstance(each, list) else each
        if not isinstance(place, dict) or not isinstance(kind, str) or not isinstance(key, str):
            raise LuthierError(f"{folder / 'config.json'} is not a configuration of pyreft's, or a damaged one.")
        found.append({**place, "class": _class(kind), "key": key})
    return found


def _class(kind: str) -> str:
    """The name of one of pyreft's own classes, from how a class is printed; the whole path of any other."""
    path = kind.removeprefix("<class '").removesuffix("'>")
    module, _, name = path.rpartition(".")
    return name if module.rpartition(".")[2] == "interventions" else path


def site_of(folder: Path, place: Mapping[str, Any], model: nn.Module) -> tuple[str, str]:
    """Returns (kind, path) of a place: a block by its number, or a module by the path that pyvene takes."""
    component, layer = place.get("component"), place.get("layer")
    if place.get("unit", "pos") != "pos" or place.get("max_number_of_units", 1) != 1:
        raise LuthierError(
            f"{folder} edits units {place.get('unit')!r}; only single positions (pos) have an equal here."
        )
    for key in ("subspace_partition", "intervention_link_key"):
        if place.get(key) is not None:
            raise LuthierError(f"{folder}: {key}={place[key]!r} has no equal here.")
    blocks = list(block_lists(model))
    kinds = {"output": "stream", "input": "input"}
    if component in ("block_output", "block_input") and isinstance(layer, int) and len(blocks) == 1:
        return kinds[component.removeprefix("block_")], f"{blocks[0]}.{layer}"
    raw = re.fullmatch(r"([\w.\[\]]+)\.(output|input)", component) if isinstance(component, str) else None
    if raw is None:
        raise LuthierError(
            f"{folder} edits {component!r}; what leaves or enters a block or a named module has an equal."
        )
    path = re.sub(r"\[(\d+)\]", r".\1", raw[1])
    known = [name for name, _ in model.named_modules()]
    if path not in known and path.removeprefix(WRAPPED) in known:
        raise LuthierError(
            f"{folder} was trained beside an adapter of peft's ({raw[1]}), which pyreft does not save with it; the "
            "edits alone would do something else."
        )
    if path not in known:
        raise LuthierError(f"{folder} edits {path}, which this {type(model).__name__} lacks{near(path, known)}")
    return kinds[raw[2]], path


def _taken(folder: Path, held: Tensors, *names: str) -> list[Tensor]:
    missing = [name for name in names if name not in held]
    if missing:
        raise LuthierError(f"{folder} lacks {missing[0]} (it holds {', '.join(sorted(held))}); it is damaged.")
    return [held[name] for name in names]


def _loreft(folder: Path, held: Tensors) -> tuple[type[Form], dict[str, Tensor]]:
    weight, bias, rotation = _taken(folder, held, "weight", "bias", "rotate_layer")
    _refuse_zeros(folder, rotation)
    if orthonormal(rotation):
        return LoReFT, {"R": stored(rotation.mT.contiguous()), "W": weight, "b": bias}
    return NoReFT, {"W1": weight, "W2": rotation.mT, "b": bias}  # the same equation, which rounded rows still obey


def _noreft(folder: Path, held: Tensors) -> tuple[type[Form], dict[str, Tensor]]:
    w1, b, w2 = _taken(folder, held, "learned_source.weight", "learned_source.bias", "proj_layer.weight")
    return NoReFT, {"W1": w1, "W2": w2, "b": b - held.get("proj_layer.bias", torch.zeros_like(b))}


def _nodireft(folder: Path, held: Tensors) -> tuple[type[Form], dict[str, Tensor]]:
    w1, b, w2 = _taken(folder, held, "learned_source.weight", "learned_source.bias", "proj_layer.weight")
    return DiReFT, {"W1": w1, "W2": w2, "b": b}


def _direft(folder: Path, held: Tensors) -> tuple[type[Form], dict[str, Tensor]]:
    w1, b = _taken(folder, held, "learned_source.weight", "learned_source.bias")
    return DiReFT, {"W1": w1, "W2": _rotation(folder, held).mT.contiguous(), "b": b}


def _fixed(form: type[Form]) -> Callable[[Path, Tensors], tuple[type[Form], dict[str, Tensor]]]:
    def read(folder: Path, held: Tensors) -> tuple[type[Form], dict[str, Tensor]]:
        (b,) = _taken(folder, held, "learned_source")
        return form, {"R": stored(_rotation(folder, held).mT.contiguous()), "b": b}

    return read


def _rotation(folder: Path, held: Tensors) -> Tensor:
    """The matrix [d, r] with orthonormal columns that torch's parametrisation makes of what it stores."""
    start = "rotate_layer.parametrizations.weight."
    (stored,) = _taken(folder, held, f"{start}original")
    if stored.dim() != 2 or stored.shape[0] < stored.shape[1]:
        raise LuthierError(f"{folder}: a rotation is {tuple(stored.shape)}; expected more rows than columns.")
    return parametrised(folder, {k.removeprefix(start): t for k, t in held.items() if k.startswith(start)})


def parametrised(folder: Path, held: Tensors) -> Tensor:
    """Returns the matrix that torch's orthogonal parametrisation makes of what it stores (`original`, `0.base`), with
    orthonormal rows or columns, whichever are fewer."""
    (stored,) = _taken(folder, held, "original")
    if stored.dim() != 2 or not stored.numel():
        raise LuthierError(f"{folder}: a rotation is {tuple(stored.shape)}; expected a matrix.")
    layer = nn.Linear(stored.shape[1], stored.shape[0], bias=False)
    torch.nn.utils.parametrizations.orthogonal(layer)
    try:
        layer.load_state_dict({f"parametrizations.weight.{key}": tensor for key, tensor in held.items()})
        rotation = layer.weight.detach()
    except RuntimeError as error:
        raise LuthierError(f"{folder}: the rotation is not as torch stores one: {error}") from None
    _refuse_zeros(folder, rotation if len(rotation) >= rotation.shape[1] else rotation.mT)
    return rotation


def _refuse_zeros(folder: Path, rotation: Tensor) -> None:
    """torch multiplies what its reflectors give by the whole part of a diagonal of -1, which any decay makes 0."""
    if rotation.dim() == 2 and not bool(rotation.any(dim=0).all()):
        raise LuthierError(
            f"{folder}: the rotation of an intervention is zero, so that it edited nothing where it was trained. "
            "Weight decay does that to torch's orthogonal parametrisation from the first step on: train it without."
        )


def orthonormal(rotation: Tensor) -> bool:
    """Returns whether the columns of a matrix [d, r] are orthonormal to rounding."""
    if rotation.dim() != 2:
        return False
    error = rotation.double().mT @ rotation.double() - torch.eye(rotation.shape[1])
    return bool(error.abs().max() < ORTHONORMAL)


CLASSES: Mapping[str, Callable[[Path, Tensors], tuple[type[Form], dict[str, Tensor]]]] = {
    "LoreftIntervention": _loreft,
    "NoreftIntervention": _noreft,
    "NodireftIntervention": _nodireft,
    "DireftIntervention": _direft,
    "ConsreftIntervention": _fixed(ConsReFT),
    "LobireftIntervention": _fixed(LobiReFT),
}
"""What pyreft's classes hold, as one of our forms and its tensors. Dropout and activations are not saved there; the
activation is taken to be linear, as it is unless somebody says otherwise."""


def trained(folder: Path, held: Tensors, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Parameters of the model that were trained beside the interventions, as full ones; untouched ones are left out."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in held.items():
        if name not in known:
            raise LuthierError(
                f"{folder} holds {name}, which is not a parameter of this {type(model).__name__}{near(name, known)}"
            )
        if known[name].shape != tensor.shape:
            have, want = tuple(tensor.shape), tuple(known[name].shape)
            raise LuthierError(f"{folder}: {name} is {have}; this base expects {want}.")
    moved = {n: t for n, t in held.items() if not torch.equal(known[n].detach().to(t), t)}
    return {name: {"theta": tensor} for name, tensor in moved.items()}


def read(folder: Path, kind: str, held: Tensors) -> tuple[type[Form], dict[str, Tensor]]:
    """Returns the form of an intervention, and its tensors under our names."""
    if kind not in CLASSES:
        raise LuthierError(f"{folder}: {kind} has no equal here; {', '.join(CLASSES)} have.")
    form, tensors = CLASSES[kind](folder, held)
    rank = {key: t.shape for key, t in tensors.items()}
    if any(t.dim() != (1 if key == "b" else 2) for key, t in tensors.items()):
        raise LuthierError(f"{folder}: the tensors of {kind} have shapes {rank}; it is damaged.")
    return form, tensors

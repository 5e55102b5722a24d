"""What pyreft's files hold, of an adapter that edits states at positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.tuner import TunerLayer
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import block_lists
from luthier.interop.formats._layers import Layer
from luthier.interop.formats._pyreft_read import BUFFERS, FIELDS, POSITIONS, orthonormal
from luthier.methods.forms._reft import ReFT, RotatedReFT

CLASS = "<class 'pyreft.interventions.{}Intervention'>"
"""How pyreft names a class, as Python prints it."""
ALIKE = {"loreft": "Loreft", "noreft": "Noreft", "consreft": "Consreft", "lobireft": "Lobireft"}
"""The class of each of our forms; a DiReFT has two (see `_class`)."""
NUMBERED = frozenset(
    [
        f"{family}{end}"
        for family in ("Llama", "Qwen2", "Gemma", "GPT2")
        for end in ("Model", "ForSequenceClassification")
    ]
    + [
        f"{family}ForCausalLM"
        for family in ("Llama", "Qwen2", "Gemma", "Gemma2", "Mistral", "Olmo", "GPTNeo", "GPTNeoX")
    ]
    + ["GPT2LMHeadModel", "MistralModel", "Gemma2Model", "OlmoModel", "GPTNeoModel", "GPTNeoXModel"]
)
"""Classes of models whose blocks pyvene 0.1.8 finds by their numbers (`type_to_module_mapping`)."""
ELSEWHERE = "Export it in another format, or let it run here (`luthier generate --adapter`)."


def contents(model: nn.Module, layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Returns config.json and `{file: tensors}`: an intervention for each place and group of positions, and parameters
    of the model that were trained with them.

    Raises `LuthierError` for forms that pyreft has no class for, and layers at different positions.
    """
    edits = {layer.path: [each for each in layer.tuners if each.site.kind != "param"] for layer in layers}
    edits = {path: tuners for path, tuners in edits.items() if tuners}
    if not edits:
        raise LuthierError("pyreft's folders hold edits of states (loreft, direft, …), and this adapter has none.")
    groups = _groups(edits)
    config: dict[str, Any] = {"mode": "parallel", POSITIONS: groups}
    rows: dict[str, list[Any]] = {key: [] for key in (*SAVED, "sorted_keys")}
    files: dict[str, dict[str, Tensor]] = {}
    turns = [(n, path, own[n]) for n in range(len(groups)) for path, own in edits.items() if n < len(own)]
    for turn, path, tuner in turns:
        kind, tensors = _intervention(path, tuner)
        layer, component = _component(model, path, tuner.site.kind)
        width, key = tuner.site.d_out, _key(layer, component, turn)
        place = {"layer": layer, "component": component, "unit": "pos", "max_number_of_units": 1}
        place["low_rank_dimension"] = len(tuner.params(torch.float32)["b"])
        told = (True, width, CLASS.format(kind), [place.get(field) for field in FIELDS], key)
        for listed, value in zip(rows.values(), told, strict=True):
            listed.append(value)
        files[f"intkey_{key}.bin"] = tensors | ({} if kind == "Loreft" else _buffers(width))
    trained = {t.site.path: _whole(model, t) for layer in layers for t in layer.tuners if t.site.kind == "param"}
    return config | rows, files | ({"pytorch_model.bin": trained} if trained else {})


SAVED = ("intervention_constant_sources", "intervention_dimensions", "intervention_types", "representations")
"""What the configuration lists of each intervention."""


def _groups(edits: dict[str, list[TunerLayer]]) -> list[str]:
    """The positions of the first, second, … edit of a layer, the same for all layers that have one."""
    groups = [each.form.positions for each in max(edits.values(), key=len)]
    for path, tuners in edits.items():
        own = [each.form.positions for each in tuners]
        if own != groups[: len(own)]:
            raise LuthierError(
                f"{path} is edited at {', '.join(own)} and other layers at {', '.join(groups)}; a folder of pyreft's "
                f"says no positions, and whoever runs it gives one list for all layers. {ELSEWHERE}"
            )
    return groups


def _intervention(path: str, tuner: TunerLayer) -> tuple[str, dict[str, Tensor]]:
    """(the name of pyreft's class, its tensors) of an edit."""
    form, kind = tuner.eval_form, tuner.site.kind
    if not isinstance(form, ReFT) or kind not in ("stream", "input", "affine"):
        raise LuthierError(
            f"{form.name()} acts on {tuner.site}, and pyreft's classes edit what leaves or enters a module: loreft, "
            f"noreft, direft, consreft, lobireft. {ELSEWHERE}"
        )
    if tuner.component.subtract_start:
        raise LuthierError(
            f"{path}: the start of {form.name()} is subtracted, for which pyreft has no place. {ELSEWHERE}"
        )
    p = tuner.params(torch.float32)
    rotation = form.rotation(p) if isinstance(form, RotatedReFT) else None
    name = form.name()
    if name == "loreft" and rotation is not None:
        return ALIKE[name], {"weight": p["W"], "bias": p["b"], "rotate_layer": rotation.mT}
    if rotation is not None:
        return ALIKE[name], {"learned_source": p["b"], **_parametrised(rotation)}
    source = {"learned_source.weight": p["W1"], "learned_source.bias": p["b"]}
    if name == "direft" and orthonormal(p["W2"].mT):
        return "Direft", {**source, **_parametrised(p["W2"])}
    return ALIKE.get(name, "Nodireft"), {**source, "proj_layer.weight": p["W2"]}


def _parametrised(rotation: Tensor) -> dict[str, Tensor]:
    """What torch's orthogonal parametrisation stores of R [r, d]: minus the identity, and its rows completed to a
    square matrix."""
    rank, width = rotation.shape
    whole = torch.linalg.qr(rotation.mT.double(), mode="complete").Q.float()
    start = "rotate_layer.parametrizations.weight"
    return {
        f"{start}.original": -torch.eye(width, rank),
        f"{start}.0.base": torch.cat([rotation.mT, whole[:, rank:]], 1),
    }


def _buffers(width: int) -> dict[str, Tensor]:
    return {name: torch.tensor(width) for name in BUFFERS}


def _component(model: nn.Module, path: str, kind: str) -> tuple[int, str]:
    """(layer, component) of pyvene's: a block by its number where it finds blocks so, else a module by its path."""
    end, stacks = "input" if kind == "input" else "output", list(block_lists(model))
    stack, _, number = path.rpartition(".")
    if stacks == [stack] and type(model).__name__ in NUMBERED:
        return int(number), f"block_{end}"
    return 0, re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path) + f".{end}"


def _key(layer: int, component: str, turn: int) -> str:
    """How pyvene calls an intervention, and its file."""
    block = component.startswith("block_")
    return f"{f'layer_{layer}_' if block else ''}comp_{component.replace('.', '_')}_unit_pos_nunit_1#{turn}"


def _whole(model: nn.Module, tuner: TunerLayer) -> Tensor:
    """A parameter as its adapter has trained it."""
    owner, _, name = tuner.site.path.rpartition(".")
    stored = model.get_submodule(owner)._parameters[name]
    assert stored is not None
    return tuner.weight(stored.detach())

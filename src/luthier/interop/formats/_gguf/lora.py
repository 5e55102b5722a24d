"""The change in a GGUF file, as pairs of factors by the paths of transformers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features
from luthier.interop.formats._factors import Pair
from luthier.interop.formats._gguf.architectures import Architecture
from luthier.interop.formats._gguf.file import Names
from luthier.interop.formats._gguf.reading import Beside

SUFFIXES = (".lora_a", ".lora_b")
ALORA = "adapter.alora.invocation_tokens"


def pairs_of(held: Beside, model: Any, architecture: Architecture) -> dict[str, Pair]:
    """Returns `{path: factors}`; raises `LuthierError` for another architecture, and for tensors of other places."""
    said = held.values.get("general.architecture")
    if said != architecture.name:
        raise LuthierError(f"{held.path} is for llama.cpp's {said}, and this base is its {architecture.name}.")
    if ALORA in held.values:
        raise LuthierError(
            f"{held.path} acts from certain tokens on alone (aLoRA), and programs of llama.cpp differ in where: its "
            "server begins one token before them, others at the first of all. Import the folder of peft's that it was "
            "made of, which comes in as it was trained."
        )
    tensors, paths = _factors(held), _paths(model, architecture)
    alpha = float(held.values.get("adapter.lora.alpha") or 0.0)
    return {
        paths[name]: _pair(held, name, paths[name], tensors, model, architecture, alpha)
        for name in _places(held, tensors, paths, model)
    }


def _factors(held: Beside) -> dict[str, Tensor]:
    """The factors; weights of norms, which llama.cpp passes over, are told."""
    tensors = held.tensors()
    norms = sorted(name for name in tensors if name.endswith("_norm.weight"))
    if norms:
        warnings.warn(
            f"{held.path} holds {len(norms)} weights of norms ({norms[0]}, …). llama.cpp passes over them, and so "
            "does this: the adapter acts as it does there.",
            stacklevel=2,
        )
    strange = [name for name in tensors if name not in norms and not name.endswith(SUFFIXES)]
    if strange:
        raise LuthierError(f"{held.path} holds {strange[0]}, which is not a factor of a change.")
    return {name: tensor for name, tensor in tensors.items() if name not in norms}


def _paths(model: nn.Module, architecture: Architecture) -> dict[str, str]:
    """`{name in the file: path}` of the layers and tables that llama.cpp has a place for."""
    config: Any = model.config
    names, found = Names(architecture, config.num_hidden_layers), {}
    for path, module in model.named_modules():
        if features(module) or isinstance(module, nn.Embedding):
            try:
                found[names(f"{path}.weight")] = path
            except LuthierError:  # it has no place, so no file can name it
                continue
    return found


def _places(held: Beside, tensors: dict[str, Tensor], paths: dict[str, str], model: Any) -> list[str]:
    places = list(dict.fromkeys(name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors))
    for name in places:
        if any(name + suffix not in tensors for suffix in SUFFIXES):
            raise LuthierError(f"{held.path} holds one of the two factors of {name} alone; it is incomplete.")
        if name not in paths:
            raise LuthierError(f"{held.path} changes {name}, which this {type(model).__name__} lacks.")
        if paths[name] == "lm_head" and model.config.tie_word_embeddings:
            raise LuthierError(f"{held.path} changes {name}, and this base has no head of its own (it is tied).")
    return places


def _pair(
    held: Beside, name: str, path: str, tensors: dict[str, Tensor], model: Any, architecture: Architecture, alpha: float
) -> Pair:
    """B and A as transformers has them; the strength is alpha / r, and 1 where alpha is 0 or not said."""
    a, b = (tensors[name + suffix] for suffix in SUFFIXES)
    if a.dim() != 2 or b.dim() != 2:
        raise LuthierError(f"{held.path}: the factors of {name} have {a.dim()} and {b.dim()} dimensions; expected 2.")
    scale = alpha / b.shape[1] if alpha else 1.0
    if isinstance(model.get_submodule(path), nn.Embedding):
        if model.config.tie_word_embeddings:
            raise LuthierError(
                f"{held.path} changes the table {name}, which is the head too in this base; llama.cpp has no "
                "defined answer for that."
            )
        return Pair(b, a.mT.contiguous(), scale)  # it is looked up: [rows, r]
    return Pair(architecture.factor(f"{path}.weight", b, model.config), a, scale)

"""What a GGUF file says of its model and transformers' reader leaves out: biases, widths, scales, rotary positions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.models.convert._bytelevel import Metadata

if TYPE_CHECKING:
    from torch import Tensor

Said = Callable[[str], Any]
LARGEST = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the models of 27B parameters, whose queries llama.cpp scales by the width over the heads."""
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
"""A tensor that tells each of these settings."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Llama 3's own, of 8,192 positions at first."""
FREQUENCIES = "rope_freqs.weight"
LONG = ("rope_factors_long.weight", "rope_factors_short.weight")


def completed(config: Any, metadata: Metadata, tensors: Mapping[str, Any]) -> Any:
    """Returns the configuration with all that the file says; raises `LuthierError` for what is not read here."""
    architecture = metadata.of("general.architecture")

    def said(key: str) -> Any:
        return metadata.of(f"{architecture}.{key}")

    known = config.to_dict()
    for key, name in BIASES.items():
        if key in known and name in tensors:
            setattr(config, key, True)
    width = said("attention.key_length")
    if width and "head_dim" in known and "global_head_dim" not in known:  # Gemma 4's is of the layers that see far
        config.head_dim = width
    if width and said("attention.value_length") not in (None, width):
        raise LuthierError(f"{metadata.weights.name}: keys and values of two widths are not read here.")
    if "query_pre_attn_scalar" in known and width:
        config.query_pre_attn_scalar = query_scale(config)
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if key in known and (cap := said(key)):
            setattr(config, key, cap)
    if "rope_parameters" in known:
        _positions(config, said, metadata.weights.name, tensors)
    return config


def _positions(config: Any, said: Said, name: str, tensors: Mapping[str, Any]) -> None:
    """Sets the rotary positions; of layers of two kinds, those that see far are scaled, as in llama.cpp."""
    if set(LONG) & set(tensors):
        raise LuthierError(
            f"{name} scales its positions by factors for short and for long texts ({LONG[0]}), which are not read "
            "here; take the model in safetensors."
        )
    parameters = dict(config.rope_parameters)
    nested = "full_attention" in parameters
    far = dict(parameters["full_attention"] if nested else parameters)
    if theta := said("rope.freq_base"):
        far["rope_theta"] = theta
    if far.get("rope_type", "default") == "default":
        far |= _scaling(config, said, name, tensors, far["rope_theta"])
    turned, width = said("rope.dimension_count"), head_width(config)
    if turned and turned < width:
        far["partial_rotary_factor"] = turned / width
    near = said("rope.freq_base_swa")
    if nested and near:
        parameters["sliding_attention"] = {**parameters["sliding_attention"], "rope_theta": near}
    config.rope_parameters = {**parameters, "full_attention": far} if nested else far


def head_width(config: Any) -> int:
    """Returns the numbers of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def query_scale(config: Any) -> int:
    """What llama.cpp divides the squares of Gemma's queries by, which no file says."""
    largest = config.num_hidden_layers == LARGEST.get(config.model_type)
    return config.hidden_size // config.num_attention_heads if largest else head_width(config)


def _scaling(config: Any, said: Said, name: str, tensors: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """How positions are scaled, as transformers says it."""
    kind, factor = said("rope.scaling.type"), said("rope.scaling.factor") or said("rope.scale_linear")
    first = said("rope.scaling.original_context_length")
    if FREQUENCIES in tensors:
        import torch

        factors = torch.tensor(tensors[FREQUENCIES].data.reshape(-1).copy()).float()
        return _by_factors(factors, theta, first or 8192, config.max_position_embeddings)
    if kind == "none" or not factor or factor == 1:
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and first:
        attention = said("rope.scaling.attn_factor")
        told = {} if attention is None else {"attention_factor": attention * (0.1 * math.log(factor) + 1)}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": first, **told}
    raise LuthierError(f"{name} scales its positions in a way that is not read here ({kind}); take it in safetensors.")


def _by_factors(factors: Tensor, theta: float, first: int, longest: int) -> dict[str, Any]:
    """What divides each frequency: Llama 3's rule where it is that, else the factors themselves."""
    import torch

    scale = round(float(factors.max()), 4)
    if torch.allclose(_llama3(len(factors), theta, scale, first), factors, rtol=1e-3):
        return {"rope_type": "llama3", "factor": scale, "original_max_position_embeddings": first, **LLAMA3}
    each = factors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": each,
        "long_factor": each,
        "attention_factor": 1.0,
        "original_max_position_embeddings": longest,
    }


def _llama3(count: int, theta: float, factor: float, first: int) -> Tensor:
    import torch

    frequencies = theta ** -(torch.arange(count, dtype=torch.float32) / count)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    kept = ((first * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - kept) / factor + kept)


def check_whole(metadata: Metadata, tensors: Mapping[str, Any], model: Any, missing: list[str]) -> None:
    """Raises `LuthierError` where the model has a tensor that the file does not give, or the file holds numbers that
    are not in the model: it would answer otherwise than in llama.cpp."""
    name = metadata.weights.name
    if missing:
        raise LuthierError(
            f"{name} holds no weights for {missing[0]} of the {type(model).__name__} that transformers' reader makes "
            f"of it ({len(missing)} are missing), which would be drawn at random; take the model in safetensors."
        )
    held = sum(int(each.n_elements) for key, each in tensors.items() if not _beside(key, model.config))
    kept = {id(each): each for each in model.state_dict(keep_vars=True).values()}  # buffers too; tied ones once
    taken = sum(each.numel() for each in kept.values())
    twice = int(tensors["output.weight"].n_elements) if "output.weight" in tensors else 0
    if held not in (taken, taken + twice):
        raise LuthierError(
            f"{name} holds {held:,} numbers, and {taken:,} are in the {type(model).__name__} that transformers' reader "
            "makes of it, which would answer otherwise; take the model in safetensors."
        )
    _check_turned(metadata, model)


def _beside(name: str, config: Any) -> bool:
    """Whether a tensor is none of the model's parameters: factors of positions, or of a block behind its layers, which
    predicts further tokens."""
    block = re.match(r"blk\.(\d+)\.", name)
    return name in (FREQUENCIES, *LONG) or (block is not None and int(block[1]) >= config.num_hidden_layers)


def _check_turned(metadata: Metadata, model: Any) -> None:
    """Raises where fewer numbers of a head turn with the position than the model's class can say."""
    turned = metadata.of(f"{metadata.of('general.architecture')}.rope.dimension_count")
    rotary = dict(model.get_decoder().named_children()).get("rotary_emb") if turned else None
    held = {len(buffer) for key, buffer in rotary.named_buffers() if key.endswith("inv_freq")} if rotary else set()
    if held and turned // 2 not in held:
        raise LuthierError(
            f"{metadata.weights.name}: positions turn {turned} numbers of each head, and {2 * max(held)} in "
            f"{type(model).__name__}; take the model in safetensors."
        )

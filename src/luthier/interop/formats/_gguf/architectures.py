"""The architectures that leave as GGUF: their names there, their sizes, and where their tensors differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.interop.formats._rotary import halved, paired, rotated_heads
from luthier.models.convert.gguf_config import head_width, query_scale

Metadata = Callable[[Any, Any], None]
"""Tells a `GGUFWriter` what a configuration says."""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names and stores a model of transformers."""

    name: str
    """`general.architecture`."""
    metadata: Metadata
    activation: str = "silu"
    paired: bool = False
    """Queries and keys keep the two numbers that a rotation mixes side by side; transformers keeps them half a head
    apart."""
    norm_shift: float = 0.0
    """What transformers adds to the weight of a norm when it runs."""
    rope_factors: bool = False
    """It reads `rope_freqs.weight`, by which each rotary frequency is divided."""

    def tensor(self, name: str, tensor: Tensor, config: Any) -> Tensor:
        """Returns a tensor of the base (or the factor B of its change) as llama.cpp stores it."""
        if self.paired and (heads := rotated_heads(name, config)):
            tensor = paired(tensor, heads)
        return tensor + self.norm_shift if self.norm_shift and name.endswith("norm.weight") else tensor

    def factor(self, name: str, factor: Tensor, config: Any) -> Tensor:
        """Returns a factor B as transformers has it; what `tensor` undoes."""
        heads = rotated_heads(name, config) if self.paired else None
        if heads and factor.shape[0] % (2 * heads):
            raise LuthierError(f"{name} is changed in {factor.shape[0]} rows, which are not those of {heads} heads.")
        return halved(factor, heads) if heads else factor


def _sizes(writer: Any, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)


def _rotary(writer: Any, config: Any) -> None:
    _sizes(writer, config)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _gemma3(writer: Any, config: Any) -> None:
    _sizes(writer, config)
    kinds = config.rope_parameters
    writer.add_rope_freq_base(kinds["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(kinds["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", _rotary, paired=True, rope_factors=True),
    "mistral": Architecture("llama", _rotary, paired=True),
    "qwen2": Architecture("qwen2", _rotary),
    "qwen3": Architecture("qwen3", _rotary),
    "gemma3_text": Architecture("gemma3", _gemma3, activation="gelu_pytorch_tanh", norm_shift=1.0),
}
"""By the `model_type` of transformers."""


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture of a causal language model; raises `LuthierError` for one that does not leave, or that is set
    in a way that llama.cpp has no word for."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    found = ARCHITECTURES.get(kind)
    if found is None or not type(model).__name__.endswith("ForCausalLM"):
        raise LuthierError(
            f"{type(model).__name__} ({kind}) is none of the models that leave as GGUF: language models of type "
            f"{', '.join(ARCHITECTURES)}. Export it merged (--to merged) and try llama.cpp's own converter."
        )
    for why in _unsaid(found, config):
        raise LuthierError(f"{type(model).__name__}: {why}, which llama.cpp's {found.name} has no word for.")
    return found


def _unsaid(found: Architecture, config: Any) -> list[str]:
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    window = getattr(config, "sliding_window", None) and found.name != "gemma3"
    layers = getattr(config, "layer_types", None) or []
    why = [f"its activation is {activation}"] if activation != found.activation else []
    why += ["its attention has a sliding window"] if window and ("sliding_attention" in layers or not layers) else []
    if found.name == "gemma3":
        why += (
            [] if layers == _gemma3_layers(len(layers)) else ["its layers attend in another order than 5 near, 1 far"]
        )
        why += [] if config.query_pre_attn_scalar == query_scale(config) else ["its queries have a scale of their own"]
    for each in _ropes(config):
        kind = each.get("rope_type", "default")
        if kind != "default" and not (kind == "llama3" and found.rope_factors):
            why.append(f"its rotary positions are of type {kind}")
        if each.get("partial_rotary_factor", 1.0) != 1.0:
            why.append("its rotary positions turn a part of each head")
    return why


def _gemma3_layers(count: int) -> list[str]:
    return ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]


def _ropes(config: Any) -> list[dict[str, Any]]:
    given = config.rope_parameters
    return [given] if "rope_theta" in given else list(given.values())


def rope_factors(model: Any) -> Tensor | None:
    """What each rotary frequency is divided by, [head / 2], where positions are scaled (llama3)."""
    rope = _ropes(model.config)[0]
    if rope.get("rope_type", "default") == "default":
        return None
    width = head_width(model.config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return plain / model.get_decoder().rotary_emb.inv_freq.float().cpu()

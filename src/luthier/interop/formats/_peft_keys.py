"""The keys of peft's files: which tensor of which layer one is, whatever the adapter was called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from luthier.core.errors import LuthierError

PREFIX = "base_model.model."
"""What peft puts before the base's own names."""
FACTORS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}
FACTORS |= {"lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m", "lora_B.bias": "b"}
"""Ends of LORA's keys, and what we call the tensors."""
TOKENS = "token_adapter.trainable_tokens_delta"
"""End of the key of a table's trained rows."""
OWN = r"lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|trainable_tokens_delta"
NAMED = re.compile(rf"\.({OWN}|hada_\w+|lokr_\w+|vera_\w+)\.(?!(?:weight|bias)$)([^.]+)(?=(?:\.(?:weight|bias))?$)")
"""A key of a model's own, which holds the adapter's name behind peft's; what `save_pretrained` writes has none."""
ASIDE = re.compile(r"\.(lora_monteclora_sampler|lora_velora_embed|ranknum|rotary_emb\.inv_freq)(\.|$)")
"""What draws MonteCLoRA's noise and compresses VeLoRA's activations, in training alone; the rank that AdaLoRA's layers
had at first, which its configuration says; and rotary frequencies, which the base's does."""
CONSTANT = re.compile(r"\.(position_ids|attn\.(masked_)?bias)$")


def without_name(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by the keys that `save_pretrained` gives them; raises for several adapters in one file."""
    names = {match[2] for key in tensors if (match := NAMED.search(key))}
    if len(names) > 1:
        raise LuthierError(
            f"{folder} holds several adapters in one file ({', '.join(sorted(names))}); save each by itself "
            "(peft's save_pretrained(selected_adapters=[…]))."
        )
    copies = "|".join(map(re.escape, {"default", *names}))
    return {
        re.sub(rf"\.modules_to_save\.(?:{copies})\.", ".modules_to_save.", NAMED.sub(r".\1", key)): tensor
        for key, tensor in tensors.items()
    }


def that_count(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that peft's model computes with, where a file has several of one parameter: of a module that
    is saved whole, `bias="all"` also writes the module that it left, and the copy under its wrapper's name. What acts
    in training alone (`ASIDE`) does not count."""
    return {
        key: tensor
        for key, tensor in tensors.items()
        if ".original_module." not in key
        and not ASIDE.search(key)
        and (".modules_to_save." not in key or key.replace(".modules_to_save.", ".") not in tensors)
    }


def unwrapped(key: str) -> str:
    """Returns a key without peft's prefix and what stands before it: trainers hold peft's model in others of theirs."""
    return key.partition(PREFIX)[2] or key


def divided(key: str, ends: Mapping[str, str]) -> tuple[str, str | None]:
    """Returns (path, our name of the tensor) of a key; (path of a parameter, None) of one that has no such end."""
    plain = unwrapped(key)
    for end, name in {**ends, TOKENS: "rows"}.items():
        if plain.endswith(f".{end}"):
            return plain[: -len(end) - 1], name
    return re.sub(
        r"\.(token_adapter\.base_layer|base_layer|modules_to_save|original_module)\.",
        ".",
        plain,
    ), None


def constants(names: Iterable[str], model: nn.Module) -> set[str]:
    """Returns the keys of buffers that older transformers saved and no training moves: numbers of positions, masks."""
    matches = {key: match[0] for key in names if (match := CONSTANT.search(key))}
    own = [path for path, _ in model.named_parameters()]
    return {key for key, end in matches.items() if not any(path.endswith(end) for path in own)}


def refuse_empty(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises for a placeholder for what other processes held; a layer of which AdaLoRA left nothing is a matrix."""
    empty = next((key for key, tensor in tensors.items() if tensor.shape == (0,)), None)
    if empty is not None:
        raise LuthierError(
            f"{folder}: {empty} is empty. DeepSpeed's ZeRO-3 leaves such placeholders where parameters were not "
            "gathered before they were saved; save it with stage3_gather_16bit_weights_on_model_save, or from "
            "accelerator.get_state_dict(model)."
        )

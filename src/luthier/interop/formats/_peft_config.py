"""What a configuration of peft's says that has no equal here, and why; what is true of merging it instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.errors import LuthierError

TOLD = [
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "use_qalora",
    "qalora_group_size",
    "ensure_weight_tying",
    "feedforward_modules",
    "init_ia3_weights",
    "lora_bias",
    "megatron_core",
    "megatron_config",
    "trainable_token_indices",
    "velora_config",
    "loraplus_lr_ratio",
    "loraplus_lr_embedding",
    "loraplus_weight_decay",
    "lorap_lr_ratio",
    "lorap_emb_lr",
    *("alpha", "rank_dropout", "rank_dropout_scale", "module_dropout", "use_effective_conv2d"),  # LoHa, LoKr
    *("decompose_both", "decompose_factor"),
    *("vera_dropout", "d_initial", "projection_prng_key", "save_projection"),
    *("lora_dtype", "swift_type"),  # ms-swift's own
    *("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),  # AdaLoRA
    *("token_indices", "init_weights"),  # TRAINABLE_TOKENS
    "target_parameters",
    *("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    *("encoder_hidden_size", "prefix_projection"),  # PREFIX_TUNING, whose file holds what its MLP made
]
"""Settings that are read here, or that say how the adapter was trained and not what it does."""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is."""


WHY: Mapping[str, str] = {
    "alora_invocation_tokens": "it acts from the invocation tokens of a prompt on, where no form of ours begins. "
    "It cannot be merged either: a merged weight acts at every token. Run it with peft.",
    "layer_replication": "it repeats layers of the base, which is another model then.",
    "kasa_config": "it cuts the base's weights down as peft loads it.",
    "arrow_config": "it routes between other adapters.",
    "use_bdlora": "its factors are block-diagonal, and are stored by block.",
    "monteclora_config": "its factors are drawn anew around their means.",
}
"""Why a setting that is on has no equal here."""
ALSO_MERGED = "Merge it with peft (merge_and_unload) and use the model."


SHARED = "Run it with peft, whose merge would change {} as well, with which it shares its weight."


def merging(names: Iterable[str], model: nn.Module) -> str:
    """Returns the advice to merge what is not read, where peft's merge gives the same outputs: not where the weight of
    an adapted layer is that of another layer too (a tied table and head)."""
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path.removesuffix(".weight"))
    told = {name.removeprefix("base_model.model.") for name in names if "token_adapter" not in name}
    for paths in owners.values():
        base = [path for path in paths if f"{path}.weight" not in told]  # of one that is saved whole, peft has a copy
        adapted = [path for path in base if any(name.startswith(f"{path}.") for name in told)]
        others = [path for path in base if path not in adapted]
        if adapted and others:
            return SHARED.format(others[0])
    return ALSO_MERGED


def refuse_unknown(folder: Path, config: Mapping[str, Any], merged: Callable[[], str]) -> None:
    """Raises for a setting that is on and that changes what the adapter does in a way unknown here; `merged` is what to
    do with it instead."""
    strange = [key for key, value in config.items() if key not in TOLD and value]
    if strange:
        why = WHY.get(strange[0], "what it does is not known here, so the adapter could do something else.")
        raise LuthierError(f"{folder}: {strange[0]}={config[strange[0]]!r}: {why}")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        random = re.fullmatch(r"pissa_niter_\d+", str(start)) is not None
        raise LuthierError(
            f"{folder}: init_lora_weights={start!r} takes its start off the base's weights when peft loads it"
            + (", by a random method that finds another start each time; only what was saved with " if random else ". ")
            + ("" if random else f"{merged()} Saved with ")
            + "path_initial_model_for_weight_conversion=…, it is a LoRA as any other."
        )


WEIGHTS = frozenset(
    {
        *("ADAMSS", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA"),
        *("MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING"),
        *("TINYLORA", "UNILORA", "VBLORA", "WAVEFT"),
    }
)
"""Methods that change weights alone, which peft merges exactly."""
PROMPTS = frozenset(
    {
        *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "CARTRIDGE"),
        "ADAPTION_PROMPT",
    }
)
"""Methods that put learned vectors before the tokens, or their keys and values."""


def refuse_method(folder: Path, method: str, read: Mapping[str, Any], merged: Callable[[], str]) -> None:
    """Raises for a method of peft's that is not among those that are `read`; `merged` is what to do with one that
    changes weights."""
    if method in read:
        return
    if method in WEIGHTS:
        advice = merged()
    elif method in PROMPTS:
        advice = "It adds learned vectors to the prompt, which no weight can hold: run it with peft."
    else:
        advice = "Run it with peft."
    raise LuthierError(f"{folder} is peft's {method}, which is not read here; {', '.join(read)} are. {advice}")

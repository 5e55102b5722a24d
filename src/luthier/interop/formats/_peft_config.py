"""What a configuration of peft's says that has no equal here, and why; what is true of merging it instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.positions import Invocation
from luthier.core.errors import LuthierError
from luthier.interop.formats._peft_keys import unwrapped

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
    "use_bdlora",
    "alora_invocation_tokens",
    "monteclora_config",  # noise that is drawn in training alone
    *("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    *("encoder_hidden_size", "prefix_projection"),  # PREFIX_TUNING, whose file holds what its MLP made
]
"""Settings that are read here, or that say how the adapter was trained and not what it does."""
WHY: Mapping[str, str] = {
    "layer_replication": "it repeats layers of the base, which is another model then.",
    "kasa_config": "it cuts the base's weights down as peft loads it. {merged}",
    "arrow_config": "it routes between other adapters.",
}
"""Why a setting that is on has no equal here."""
UNKNOWN = (
    "what it does is not known here, so the adapter could do something else. If it is of training alone, take it out "
    "of adapter_config.json."
)
ALSO_MERGED = "Merge it with peft (merge_and_unload) and use the model."


SHARED = "Run it with peft, whose merge would change {} as well, with which it shares its weight."


def merging(names: Iterable[str], model: nn.Module) -> str:
    """Returns the advice to merge what is not read, where peft's merge gives the same outputs: not where the weight of
    an adapted layer is that of another layer too (a tied table and head), which may have changes of its own."""
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path.removesuffix(".weight"))
    told = {unwrapped(name) for name in names if "token_adapter" not in name}
    for paths in owners.values():
        base = [path for path in paths if f"{path}.weight" not in told]  # of one that is saved whole, peft has a copy
        adapted = [path for path in base if any(name.startswith(f"{path}.") for name in told)]
        others = [path for path in base if path not in adapted[:1]]
        if adapted and others:
            return SHARED.format(others[0])
    return ALSO_MERGED


def refuse_unknown(folder: Path, config: Mapping[str, Any], merged: Callable[[], str]) -> None:
    """Raises for a setting that is on and that changes what the adapter does in a way unknown here; `merged` is what to
    do with it instead."""
    strange = [key for key, value in config.items() if key not in TOLD and value]
    if strange:
        why = WHY.get(strange[0], UNKNOWN)
        why = why.format(merged=merged()) if "{merged}" in why else why
        raise LuthierError(f"{folder}: {strange[0]}={config[strange[0]]!r}: {why}")


def positions_of(folder: Path, config: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Returns the positions of an activated LoRA (aLoRA), which starts at its invocation, or all.

    Raises for damage, and where `others`, by what they are called, are not empty: changes that no token narrows.
    """
    told = config.get("alora_invocation_tokens")
    if told is None or told == []:
        return "all"
    if not isinstance(told, list) or not all(type(each) is int and each >= 0 for each in told):
        raise LuthierError(f"{folder}: alora_invocation_tokens is {told!r}; expected tokens, whole numbers.")
    if held := [name for name, found in others.items() if found]:
        raise LuthierError(
            f"{folder}: alora_invocation_tokens={told!r} narrows linear layers to tokens behind an invocation, and the "
            f"folder also holds {held[0]}, which would act at every token here, as a merged weight would. Run it with "
            "peft."
        )
    if config.get("task_type") != "CAUSAL_LM":
        raise LuthierError(
            f"{folder}: alora_invocation_tokens={told!r} with task_type={config.get('task_type')!r}: peft looks for an "
            "invocation in models of CAUSAL_LM alone, so that nothing acts there. Set task_type to CAUSAL_LM if it was "
            "trained so. A merged weight would act at every token."
        )
    return str(Invocation(tuple(told)))


PLAIN = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base as it is, in small letters."""
OFF = "takes its start off the base's weights when peft loads it"
NOT_HELD = "took its start off the base's weights in training, and the folder does not hold what was taken: "
STARTS: Mapping[str, tuple[str, bool, bool]] = {
    r"pissa|olora": (f"{OFF}.", True, True),
    r"pissa_niter_\d+": (f"{OFF}, by a random method that finds another start each time.", False, True),
    r"loftq": ("quantises the base's weights when peft loads it, and takes its start off them.", True, False),
    r"corda": (f"{NOT_HELD}peft does not load it without what was measured then.", False, True),
    r"lora_ga": (f"{NOT_HELD}peft loads it on the base as it was, where it answers otherwise.", False, True),
}
"""What each other value does, whether peft merges it rightly, and whether peft saves it as a plain LoRA."""
CONVERTED = "Saved with path_initial_model_for_weight_conversion=…, it is a LoRA as any other."


def refuse_start(
    folder: Path, config: Mapping[str, Any], names: Callable[[], Iterable[str]], merged: Callable[[], str]
) -> None:
    """Raises for factors of layers that start off the base's weights, in peft or in training; tables start plainly."""
    told = config.get("init_lora_weights", True)
    start = told.lower() if isinstance(told, str) else told
    if start in PLAIN or not any(".lora_A." in name for name in names()):
        return
    found = next((each for value, each in STARTS.items() if re.fullmatch(value, str(start))), None)
    if found is None:
        raise LuthierError(f"{folder}: init_lora_weights={told!r}: {UNKNOWN}")
    why, merges, converts = found
    converts &= not (config.get("use_rslora") and (config.get("rank_pattern") or config.get("alpha_pattern")))
    advice = [*([merged()] if merges else []), *([CONVERTED] if converts else [])]
    raise LuthierError(" ".join([f"{folder}: init_lora_weights={told!r} {why}", *advice]))


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

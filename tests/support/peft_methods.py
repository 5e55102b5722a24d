"""Folders that peft writes: other methods than LORA, each of its registry, and settings of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from support.peft_cases import SEEN, TIED, Case, lora


def pruned(model: Any) -> None:
    """AdaLoRA's configuration after its budget: which directions of each layer are left."""
    config = model.peft_config["default"]
    layers = [name for name, _ in model.named_parameters() if ".lora_E." in name]
    kept = [[True, False, True, True], [False, True, False, False], [False] * 4]
    config.rank_pattern = {
        name.removeprefix("base_model.model.").removesuffix(".default"): kept[turn % 3]
        for turn, name in enumerate(layers)
    }


OTHERS: dict[str, Case] = {
    "adalora after its budget": Case(
        lambda: peft.AdaLoraConfig(target_modules=["q_proj", "v_proj"], total_step=10, init_r=4, lora_alpha=3),
        after=pruned,
    ),
    "adalora on a convolution": Case(
        lambda: peft.AdaLoraConfig(target_modules=["patch_embeddings", "pwconv1"], total_step=10, init_r=4), "conv"
    ),
    "loha of a kernel of its own": Case(
        lambda: peft.LoHaConfig(target_modules=["downsampling_layer.1"], r=2, use_effective_conv2d=True),
        "conv",
        reading=False,
    ),
    "tokens of a tied table": Case(
        lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=SEEN), settings=TIED
    ),
    "tokens of a shared table alone": Case(
        lambda: peft.TrainableTokensConfig(target_modules=["shared"], token_indices=SEEN), "t5"
    ),
    "ia3 on a convolution": Case(
        lambda: peft.IA3Config(target_modules=["patch_embeddings"], feedforward_modules=[]), "conv", reading=False
    ),
    "loha on a convolution": Case(
        lambda: peft.LoHaConfig(target_modules=["patch_embeddings"], r=2), "conv", reading=False
    ),
    "lokr on a convolution": Case(
        lambda: peft.LoKrConfig(target_modules=["patch_embeddings"], r=2), "conv", reading=False
    ),
    "vera without its projections": Case(
        lambda: peft.VeraConfig(target_modules=["q_proj"], r=4, save_projection=False), reading=False
    ),
    "vera without its projections on a tied head": Case(
        lambda: peft.VeraConfig(target_modules=["lm_head"], r=4, save_projection=False), settings=TIED, reading=False
    ),
    "ia3 on a tied head": Case(
        lambda: peft.IA3Config(target_modules=["lm_head", "k_proj"], feedforward_modules=[]), settings=TIED
    ),
    "norms beside a tied head": Case(
        lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"], modules_to_save=["lm_head"]),
        settings=TIED,
    ),
}
"""Settings of other methods."""


QV = ["q_proj", "v_proj"]
SPECIAL: dict[str, dict[str, Any]] = {
    "ADALORA": {"target_modules": QV, "total_step": 10, "init_r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM"},
    "C3A": {"target_modules": QV, "block_size": 8},
    "FOURIERFT": {"target_modules": QV, "n_frequency": 50},
    "IA3": {"target_modules": [*QV, "down_proj"], "feedforward_modules": ["down_proj"]},
    "MISS": {"target_modules": QV, "r": 4},
    "SHIRA": {"target_modules": QV, "r": 2},
    "PSOFT": {"target_modules": QV, "r": 4},
    "ROAD": {"target_modules": QV, "group_size": 8},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": SEEN},
    "VBLORA": {"target_modules": QV, "vector_length": 8, "num_vectors": 16, "topk": 2, "r": 4},
    "WAVEFT": {"target_modules": QV, "n_frequency": 50},
}
"""Settings of methods that do not take the usual ones on a tiny model."""
GENERIC: tuple[dict[str, Any], ...] = (
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
    {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4},
    {"task_type": "CAUSAL_LM"},
    {},
)


def of_method(kind: Any) -> Callable[[], Any]:
    """A configuration of a method of the registry, the first of the usual ones that it takes."""

    def make() -> Any:
        reasons = []
        for settings in [SPECIAL[kind.value]] if kind.value in SPECIAL else GENERIC:
            try:
                config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings)
                peft.get_peft_model(Case(lambda: None).base(), config)
                return PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings)
            except Exception as error:
                reasons.append(f"{settings}: {type(error).__name__}: {error}")
        raise AssertionError(f"say in SPECIAL how to configure peft's {kind.value}: " + "; ".join(reasons))

    return make


def _mixture() -> Any:
    """X-LoRA mixes LoRA folders that lie somewhere else."""
    import tempfile

    folder = tempfile.mkdtemp()
    peft.get_peft_model(Case(lambda: None).base(), lora("q_proj")()).save_pretrained(folder)
    return peft.XLoraConfig(hidden_size=32, task_type="CAUSAL_LM", adapters={"one": folder})


METHODS = {kind.value: Case(of_method(kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
METHODS["XLORA"] = Case(_mixture, settings={"use_cache": False})

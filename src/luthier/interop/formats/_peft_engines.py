"""What engines that serve adapters take of peft's folders: what they refuse or pass over, and how to write for them.

By the loaders of vLLM 0.33.0, SGLang 0.5.23 and text-generation-inference 3 (`adapters/lora.py`, where nothing was
released since), and by running transformers 5.23's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_modules, features
from luthier.interop.formats._diffusion import PARTS
from luthier.interop.formats._layers import filled, nothing

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank can be."""
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that SGLang runs as one; of an adapter on some of them it raises KeyError, or passes over it."""
WITHOUT_LORA = {
    *("GPT2LMHeadModel", "BertForMaskedLM", "Gemma3nForConditionalGeneration", "GPT2ForSequenceClassification"),
    *("ModernBertForSequenceClassification", "ModernBertForTokenClassification", "RobertaForTokenClassification"),
    "XLMRobertaForTokenClassification",
    *("BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM", "DeepseekV32ForCausalLM"),
    *("DeepseekV4ForCausalLM", "FalconForCausalLM", "FalconMambaForCausalLM", "GlmMoeDsaForCausalLM"),
    *("GPTJForCausalLM", "Gemma3nForCausalLM", "KimiLinearForCausalLM", "Mamba2ForCausalLM"),
    *("MambaForCausalLM", "MiMoV2FlashForCausalLM", "StableLmForCausalLM", "Zamba2ForCausalLM"),
}
"""Classes that vLLM 0.33.0 has code of its own for, which takes no LoRA (no SupportsLoRA among its bases)."""
SGLANG = (
    *(*SIBLINGS[0], "o_proj", *SIBLINGS[1], "down_proj", "embed_tokens", "lm_head"),
    *("qkv_proj", "gate_up_proj", "q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj"),
)
"""Names of the layers whose sizes SGLang knows for any model (`get_default_hidden_dim`)."""
TGI = (*SIBLINGS[0], "o_proj", *SIBLINGS[1], "down_proj", "lm_head")
"""Names of all layers that text-generation-inference adapts."""
MERGE = "Export it merged (--to merged)."
TWO_STACKS = ("WhisperForConditionalGeneration",)
"""Encoder-decoders that the engines run."""
UNLIKE = "No other layout helps; `luthier serve` runs it."
PLAIN = "Export it with --rank, as plain factors, or merged (--to merged)."
BLOCK = re.compile(r"(?P<stack>.+)\.(?P<number>\d+)\.(?P<inside>[^\d]+)")


@dataclass(frozen=True)
class Held:
    """What a folder of peft's holds: its configuration, the layers of its factors, and the base."""

    config: Mapping[str, Any]
    names: Collection[str]
    """Paths of layers with factors, under the base's own names."""
    model: nn.Module

    @property
    def base(self) -> str:
        """The base's class in transformers."""
        return vars(type(self.model)).get("_luthier_base", type(self.model)).__name__

    @property
    def method(self) -> str:
        """How peft calls its method, DoRA and aLoRA by themselves."""
        if self.config.get("alora_invocation_tokens"):
            return "aLoRA"
        return "DoRA" if self.config.get("use_dora") else str(self.config["peft_type"])

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max([self.config["r"], *self.config["rank_pattern"].values()])


@dataclass(frozen=True)
class Engine:
    """An engine, and why it would not answer as the adapter does."""

    label: str
    why: Callable[[Held], str | None]
    """A reason that no other layout helps against, with the way out; None where there is none."""
    lacks: Callable[[Held], list[str]] | None = None
    """The layers that have to be there too, with factors that change nothing; such an engine wants one rank as well."""


def _plain(held: Held) -> str | None:
    if held.method != "LORA":
        ways = {"DoRA": PLAIN, "IA3": PLAIN, "PREFIX_TUNING": UNLIKE, "aLoRA": UNLIKE, "POLY": UNLIKE}
        return f"it takes LoRA, and this is {held.method}. {ways.get(held.method, MERGE)}"
    return None


def _vllm(held: Held) -> str | None:
    heads = [each for each in held.config.get("modules_to_save") or () if each not in ("classifier", "score")]
    experts = [each for each in held.names if each.endswith(".experts")]
    if why := _plain(held) or _not_run(held):
        return why
    if held.base in WITHOUT_LORA:
        return f"its own code of {held.base} takes no LoRA. {MERGE}"
    if heads:
        return f"it takes no modules_to_save ({heads[0]}). {MERGE}"
    if any(f"{each}.base_layer" not in held.names for each in experts):
        return f"it takes the changes of both parameters of experts together, and one is here. {MERGE}"
    if held.rank > RANKS[-1]:
        return f"it takes ranks up to {RANKS[-1]}, and this has {held.rank}. {MERGE}"
    return None


def _sglang(held: Held) -> str | None:
    if why := _plain(held) or _not_run(held) or _nothing_beside(held):
        return why
    if other := next((each for each in held.names if each.rpartition(".")[2] not in SGLANG), None):
        return f"it adapts {', '.join(SGLANG)} alone, and this changes {other}. {MERGE}"
    if not isinstance(held.config["target_modules"], list):
        return f"it finds layers by the last word of their names, which others share. {MERGE}"
    return None


def _tgi(held: Held) -> str | None:
    if why := _plain(held) or _part(held) or _nothing_beside(held):
        return why
    other = next((each for each in held.names if each.rpartition(".")[2] not in TGI), None)
    return f"it adapts {', '.join(TGI)} alone, and this changes {other}. {MERGE}" if other else None


def _part(held: Held) -> str | None:
    told = f"it runs no {held.base}. Write it for diffusers (--to diffusers, or kohya)."
    return told if held.base in PARTS else None


def _not_run(held: Held) -> str | None:
    config = getattr(held.model, "config", None)
    if why := _part(held):
        return why
    if getattr(config, "is_encoder_decoder", False) and held.base not in TWO_STACKS:
        return f"it runs no {held.base}. `luthier generate` and `luthier predict` do."
    return None


def _nothing_beside(held: Held) -> str | None:
    if held.config.get("target_parameters"):
        return f"it does not read target_parameters. {MERGE}"
    if held.config.get("modules_to_save"):
        return f"it passes over modules_to_save ({held.config['modules_to_save'][0]}). {MERGE}"
    return None


def _transformers(held: Held) -> str | None:
    if held.base == "UNet2DConditionModel":
        return "the base is a model of diffusers. Export it for that (--to diffusers)."
    if held.method == "PREFIX_TUNING":
        return "it takes no prefixes. `PeftModel.from_pretrained` of peft itself does."
    if held.method == "POLY":
        return "it hands no task_ids on. `PeftModel.from_pretrained` of peft itself does."
    if held.method == "aLoRA":
        return (
            "it looks for no invocation, so that nothing acts there. `PeftModel.from_pretrained` of peft itself does."
        )
    return None


def _siblings(held: Held) -> list[str]:
    """Layers beside the adapted ones that SGLang runs as one with them."""
    known = {path for path, module in base_modules(held.model) if features(module)}
    found = [
        f"{owner}.{other}"
        for owner, _, name in (path.rpartition(".") for path in held.names)
        for group in SIBLINGS
        if name in group
        for other in group
    ]
    return [path for path in dict.fromkeys(found) if path in known and path not in held.names]


def _every_block(held: Held) -> list[str]:
    """Layers of other blocks by the names of the adapted ones: TGI drops a kind of layer that one block lacks."""
    insides = {(match["stack"], match["inside"]) for each in held.names if (match := BLOCK.fullmatch(each))}
    found = []
    for path, module in base_modules(held.model):
        match = BLOCK.fullmatch(path)
        if match and (match["stack"], match["inside"]) in insides and features(module) and path not in held.names:
            found.append(path)
    return found


ENGINES: Mapping[str, Engine] = {
    "vllm": Engine("vLLM", _vllm),
    "sglang": Engine("SGLang", _sglang, _siblings),
    "tgi": Engine("text-generation-inference", _tgi, _every_block),
    "transformers": Engine("transformers' load_adapter", _transformers),
}


def fitted(engine: Engine, held: Held, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns {layer: (B, A)} as an engine takes it; raises `LuthierError` where no layout would do."""
    if why := engine.why(held):
        raise LuthierError(f"{engine.label} would not run this adapter: {why}")
    if engine.lacks is None:
        return dict(pairs)
    more = {path: nothing(held.model.get_submodule(path)) for path in engine.lacks(held)}
    return {path: filled(b, a, held.rank) for path, (b, a) in {**pairs, **more}.items()}


def remarks(held: Held) -> list[str]:
    """Returns who takes a folder and who does not, in a sentence each."""
    takes, others = ["peft"], []
    for name, engine in ENGINES.items():
        if why := engine.why(held):
            others.append(f"{engine.label} does not: {why}")
        elif engine.lacks is not None and (held.config["rank_pattern"] or engine.lacks(held)):
            others.append(f"{engine.label} takes one rank, and all layers of a kind; write it with --engine {name}.")
        else:
            takes.append(engine.label + (f" (--max-lora-rank {_room(held.rank)})" if name == "vllm" else ""))
    return [f"It loads in {', '.join(takes)}.", *others]


def _room(rank: int) -> int:
    return next(each for each in RANKS if each >= rank)


def as_pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns {layer: (B, A)} of tensors by peft's names."""
    ends = (("lora_B.weight", "lora_A.weight"), ("lora_embedding_B", "lora_embedding_A"))
    return {
        key.removesuffix(f".{b}"): (tensor, tensors[f"{key.removesuffix(b)}{a}"])
        for key, tensor in tensors.items()
        for b, a in ends
        if key.endswith(f".{b}")
    }


def as_tensors(pairs: Mapping[str, tuple[Tensor, Tensor]], tables: Collection[str]) -> dict[str, Tensor]:
    """Returns tensors by peft's names; `tables` are the layers that are looked up."""
    found: dict[str, torch.Tensor] = {}
    for path, (b, a) in pairs.items():
        names = ("lora_embedding_A", "lora_embedding_B") if path in tables else ("lora_A.weight", "lora_B.weight")
        found |= {f"{path}.{names[0]}": a, f"{path}.{names[1]}": b}
    return found

"""Folders that peft writes: the settings of LORA, each on a tiny model."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers

from support.architectures import ARCHITECTURES

TIED = {"tie_word_embeddings": True}
SEEN: list[int] = ARCHITECTURES["llama"].inputs()["input_ids"][0, 2:4].tolist()
"""Tokens of the inputs."""


@dataclass(frozen=True)
class Case:
    """One configuration on one model; `settings` change the model's."""

    make: Callable[[], Any]
    name: str = "llama"
    settings: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Any], None] = lambda model: None
    """Done to peft's model after its tensors were moved."""
    saved: dict[str, Any] = field(default_factory=dict)
    """Given to `save_pretrained`."""
    live: bool = False
    """Whether peft does not load what it saved, so that the model that it trained is what counts."""
    reading: bool = True
    """Whether it is to be read; the others are refused."""

    def base(self):
        if self.name == "conv":
            return convolutional()
        architecture = ARCHITECTURES[self.name]
        return dataclasses.replace(architecture, settings=architecture.settings | self.settings).build()

    def inputs(self) -> dict[str, Any]:
        return ARCHITECTURES["vit" if self.name == "conv" else self.name].inputs()

    def fitted(self, called: str = "default"):
        """peft's model with every tensor that it trains moved; `called` is the adapter's name."""
        torch.manual_seed(0)
        model = peft.get_peft_model(self.base(), self.make(), adapter_name=called).eval()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data += (0.02 if "magnitude" in key else 0.1) * torch.randn_like(parameter)
        self.after(model)
        return model


def convolutional():
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        num_channels=3, patch_size=4, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=16, num_labels=3
    )
    return transformers.ConvNextForImageClassification(config).eval()


def lora(*targets: str, **settings) -> Callable[[], Any]:
    return lambda: peft.LoraConfig(**{"target_modules": list(targets) or None, "r": 4, "lora_alpha": 6, **settings})


BLOCKS = {"target_modules_bd_a": ["o_proj"], "target_modules_bd_b": ["q_proj"], "nblocks": 2, "match_strict": False}
"""Of BD-LoRA: which modules have A in blocks, and which B."""


LORA: dict[str, Case] = {
    "lora": Case(lora("q_proj", "v_proj")),
    "all-linear": Case(lora(target_modules="all-linear")),
    "an expression": Case(lora(target_modules=r".*\.1\.(self_attn|mlp)\.(q_proj|down_proj)")),
    "rank_pattern": Case(lora("q_proj", "k_proj", rank_pattern={"k_proj": 2, r"layers\.1\.self_attn\.q_proj": 7})),
    "alpha_pattern": Case(lora("q_proj", "k_proj", alpha_pattern={"k_proj": 3})),
    "rslora": Case(lora("q_proj", use_rslora=True, rank_pattern={r"layers\.1\..*": 9})),
    "dora": Case(lora("q_proj", "down_proj", use_dora=True)),
    "dora on a table": Case(lora("embed_tokens", use_dora=True), reading=False),
    "bias all": Case(lora("q_proj", bias="all"), "qwen2"),
    "bias lora_only": Case(lora("q_proj", bias="lora_only"), "qwen2"),
    "layers_to_transform": Case(lora("q_proj", layers_to_transform=[0, 2])),
    "layers_pattern": Case(lora("q_proj", layers_to_transform=1, layers_pattern="layers")),
    "exclude_modules": Case(lora("q_proj", "v_proj", exclude_modules=["model.layers.1.self_attn.q_proj"])),
    "exclude_modules by expression": Case(lora("q_proj", "v_proj", exclude_modules=r".*\.2\..*")),
    "fan_in_fan_out": Case(lora("c_attn", "c_proj", fan_in_fan_out=True), "gpt2"),
    "dora on Conv1D": Case(lora("c_attn", fan_in_fan_out=True, use_dora=True), "gpt2"),
    "a table": Case(lora("embed_tokens", "q_proj")),
    "a tied table": Case(lora("embed_tokens", "q_proj"), settings=TIED),
    "a tied table and head": Case(lora("embed_tokens", "lm_head", "q_proj"), settings=TIED),
    "a tied table, kept tied": Case(lora("embed_tokens", "q_proj", ensure_weight_tying=True), settings=TIED),
    "a tied head": Case(lora("lm_head", "q_proj"), settings=TIED),
    "modules_to_save": Case(lora("q_proj", modules_to_save=["input_layernorm", "lm_head"])),
    "modules_to_save embed_tokens": Case(lora("q_proj", modules_to_save=["embed_tokens"])),
    "modules_to_save embed_tokens, tied": Case(lora("q_proj", modules_to_save=["embed_tokens"]), settings=TIED),
    "modules_to_save lm_head, tied": Case(lora("q_proj", modules_to_save=["lm_head"]), settings=TIED),
    "modules_to_save both, tied": Case(lora("q_proj", modules_to_save=["embed_tokens", "lm_head"]), settings=TIED),
    "modules_to_save embed_tokens, kept tied": Case(
        lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True), settings=TIED
    ),
    "modules_to_save lm_head, kept tied": Case(
        lora("q_proj", modules_to_save=["lm_head"], ensure_weight_tying=True), settings=TIED
    ),
    "modules_to_save both, kept tied": Case(
        lora("q_proj", modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True), settings=TIED
    ),
    "modules_to_save a block": Case(lora("q_proj", modules_to_save=["model.layers.1.mlp"])),
    "a new head": Case(lora("query", task_type="SEQ_CLS"), "bert"),
    "save_embedding_layers": Case(lora("q_proj"), saved={"save_embedding_layers": True}),
    "save_embedding_layers, tied": Case(lora("q_proj"), settings=TIED, saved={"save_embedding_layers": True}),
    "target_parameters": Case(lora("q_proj", target_parameters=["mlp.experts.gate_up_proj"]), "mixtral"),
    "trainable_token_indices": Case(lora("q_proj", trainable_token_indices=SEEN)),
    "trainable_token_indices, tied": Case(lora("q_proj", trainable_token_indices=SEEN), settings=TIED),
    "trainable_token_indices of two": Case(
        lora("q_proj", trainable_token_indices={"embed_tokens": SEEN, "lm_head": [4, 7, 9]})
    ),
    "conv layers": Case(lora("embeddings.patch_embeddings", "pwconv1"), "conv"),
    "conv layers at ranks of their own": Case(
        lora("patch_embeddings", "pwconv1", use_rslora=True, rank_pattern={"patch_embeddings": 2}), "conv"
    ),
    "lora_bias on a convolution": Case(lora("patch_embeddings", lora_bias=True), "conv"),
    "convolutions of sounds": Case(lora("conv_layers.1.conv", "q_proj"), "wav2vec2"),
    "a grouped convolution": Case(lora("dwconv", r=16), "conv", reading=False),
    "dora on conv layers": Case(lora("patch_embeddings", use_dora=True), "conv", reading=False),
    "mica": Case(lora("q_proj", "embed_tokens", init_lora_weights="mica")),
    "Gaussian": Case(lora("q_proj", init_lora_weights="Gaussian")),
    "pissa on a table": Case(lora("embed_tokens", init_lora_weights="pissa")),
    "MonteCLoRA": Case(lora("q_proj", monteclora_config=peft.MontecloraConfig())),
    "BD-LoRA": Case(lora("q_proj", "o_proj", use_bdlora=BLOCKS)),
    "BD-LoRA beside plain layers": Case(lora("q_proj", "o_proj", "up_proj", use_bdlora=BLOCKS)),
    "KaSA": Case(lora("q_proj", kasa_config=peft.KasaConfig()), reading=False),
    "VeLoRA": Case(lora("q_proj", velora_config=peft.VeloraConfig())),
    "layers_pattern of two lists": Case(
        lora("q", "wi", layers_to_transform=[1], layers_pattern=["layer", "block"]), "t5"
    ),
    "layers_to_transform in lists of lists": Case(lora("q", "wi", layers_to_transform=[0]), "t5"),
    "modules_to_save by the end of a name": Case(lora("q_proj", modules_to_save=["norm"])),
    "modules_to_save by the end of a tied name": Case(lora("q_proj", modules_to_save=["head"]), settings=TIED),
    "a tied head beside its table saved whole": Case(lora("lm_head", modules_to_save=["embed_tokens"]), settings=TIED),
    "a head of two layers": Case(lora("query", "dense", task_type="SEQ_CLS"), "roberta"),
    "a head named by two": Case(lora("q_lin", modules_to_save=["pre_classifier", "classifier"]), "distilbert"),
    "pissa": Case(lora("q_proj", init_lora_weights="pissa"), reading=False),
    "olora": Case(lora("q_proj", init_lora_weights="olora"), reading=False),
    "olora on a tied table": Case(lora("embed_tokens", init_lora_weights="olora"), settings=TIED),
    "olora beside tokens of a tied table": Case(
        lora("q_proj", init_lora_weights="olora", trainable_token_indices=SEEN), settings=TIED, reading=False
    ),
    "olora beside a tied table saved whole": Case(
        lora("q_proj", init_lora_weights="olora", modules_to_save=["embed_tokens"]), settings=TIED, reading=False
    ),
    "olora on a head beside its tied table saved whole": Case(
        lora("lm_head", init_lora_weights="olora", modules_to_save=["embed_tokens"]), settings=TIED, reading=False
    ),
    "dora on a tied table": Case(lora("embed_tokens", "q_proj", use_dora=True), settings=TIED, reading=False),
    "lora_bias": Case(lora("q_proj", "k_proj", lora_bias=True), "qwen2"),
    "lora_bias on Conv1D": Case(lora("c_attn", fan_in_fan_out=True, lora_bias=True), "gpt2"),
    "lora_bias without a bias": Case(lora("q_proj", lora_bias=True), reading=False),
    "lora_bias on fused layers": Case(lora("qkv_proj", lora_bias=True), "phi3", reading=False),
    "a scaled table": Case(lora("embed_tokens", "q_proj"), "gemma3"),
    "a scaled table saved whole": Case(lora("q_proj", modules_to_save=["embed_tokens"]), "gemma3"),
    "a scaled table, both saved": Case(
        lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True), "gemma3"
    ),
    "tokens of a scaled table": Case(lora("q_proj", trainable_token_indices=SEEN), "gemma3"),
    "aLoRA": Case(
        lora(
            *("q_proj", "down_proj"),
            **{"alora_invocation_tokens": SEEN, "task_type": "CAUSAL_LM"},
            **{"rank_pattern": {"down_proj": 2}, "use_rslora": True},
        )
    ),
    "aLoRA on Conv1D beside a table": Case(
        lora(
            "c_attn",
            **{"alora_invocation_tokens": SEEN, "task_type": "CAUSAL_LM"},
            **{"fan_in_fan_out": True, "modules_to_save": ["wte"]},
        ),
        "gpt2",
    ),
    "aLoRA with lora_bias": Case(
        lora("q_proj", alora_invocation_tokens=SEEN, task_type="CAUSAL_LM", lora_bias=True), "qwen2", reading=False
    ),
    "aLoRA of no task": Case(lora("q_proj", alora_invocation_tokens=SEEN), reading=False),
    "layer_replication": Case(lora("q_proj", layer_replication=[[0, 2], [1, 3]]), reading=False),
    "qalora": Case(lora("q_proj", use_qalora=True)),
    "experts": Case(lora("q_proj", "gate"), "mixtral"),
    "seq2seq": Case(lora("q", "v"), "t5"),
    "bias all and lora_bias": Case(lora("query", bias="all", lora_bias=True, task_type="SEQ_CLS"), "bert"),
    "a shared table at a rank of its own": Case(lora("shared", "o", rank_pattern={"o": 2}), "t5"),
    "dora on a tied table and head": Case(lora("embed_tokens", "lm_head", use_dora=True), settings=TIED, reading=False),
    "a table of positions that reads a mask": Case(lora("embed_positions", "q_proj"), "opt", reading=False),
    "bias all beside a new head": Case(lora("query", "value", bias="all", task_type="SEQ_CLS"), "bert"),
    "a shared table": Case(lora("shared", "q"), "t5"),
    "a shared table saved whole": Case(lora("q", modules_to_save=["shared"]), "t5"),
    "a shared table saved whole, said to be tied": Case(
        lora("q", modules_to_save=["shared"], ensure_weight_tying=True), "t5"
    ),
    "tokens of a shared table": Case(lora("q", trainable_token_indices=SEEN), "t5"),
    "a tied head of T5, kept tied": Case(lora("lm_head", "q", ensure_weight_tying=True), "t5", live=True),
    "a tied table of GPT-2, said to be tied": Case(lora("wte", "lm_head", ensure_weight_tying=True), "gpt2", live=True),
    "a token of a tied table": Case(lora("c_fc", trainable_token_indices=SEEN[:1]), "gpt2"),
    "tokens and save_embedding_layers": Case(
        lora("q_proj", trainable_token_indices=SEEN), saved={"save_embedding_layers": True}
    ),
}


TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"),
    "gpt2": ("c_attn", "c_proj", "c_fc", "wte", "lm_head", "wpe"),
    "t5": ("q", "k", "v", "o", "wi", "wo", "shared", "lm_head"),
    "bert": ("query", "key", "value", "dense", "word_embeddings"),
    "gemma3": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"),
    "mixtral": ("q_proj", "v_proj", "gate", "embed_tokens", "lm_head"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
}
SAVED = {"gpt2": ("wte", "ln_f", "lm_head", "wpe"), "t5": ("shared", "lm_head", "final_layer_norm")}
SAVED |= {"bert": ("classifier", "LayerNorm", "pooler")}
TASK = {"t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}


def mixed(seed: int) -> Case:
    """A case of settings that are drawn together; whether peft takes them is not known before."""
    r = random.Random(seed)
    name = r.choice(sorted(TARGETS))
    targets = r.sample(TARGETS[name], r.randint(1, min(4, len(TARGETS[name]))))
    where = r.choice([*targets, r".*\.1\..*", r"layers\.0\..*"])
    choices = {
        "rank_pattern": {where: 3},
        "alpha_pattern": {where: 0.5},
        "use_rslora": True,
        "use_dora": True,
        "bias": r.choice(["all", "lora_only"]),
        "lora_bias": True,
        "layers_to_transform": r.choice([0, [0], [1, 0]]),
        "exclude_modules": r.choice([[targets[0]], r".*\.0\..*"]),
        "modules_to_save": list(r.sample(SAVED.get(name, ("embed_tokens", "lm_head", "norm", "input_layernorm")), 2)),
        "trainable_token_indices": SEEN,
        "ensure_weight_tying": True,
        "target_modules": r.choice(["all-linear", rf".*({'|'.join(targets)})"]),
        "task_type": TASK.get(name, "CAUSAL_LM"),
        "init_lora_weights": r.choice(["gaussian", "orthogonal", "olora"]),
    }
    taken = {key: value for key, value in choices.items() if r.random() < 0.2}
    conv1d = {"fan_in_fan_out": True} if name == "gpt2" else {}
    tied = TIED if name in ("llama", "qwen2") and r.random() < 0.3 else {}
    settings = {"r": r.choice([1, 2, 4]), "lora_alpha": r.choice([1, 3, 7.5]), **conv1d, **taken}
    wanted = () if "target_modules" in taken else targets
    return Case(lora(*wanted, **settings), name, settings=tied)

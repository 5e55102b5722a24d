"""The models that are measured: the base, Luthier's forms, peft's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from bench.speed.machine import Size, device
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import luthier as lt
from luthier.methods.objectives._cross_entropy import causal_loss

FLOOR = "frozen base"
QKVUD = "q_proj, k_proj, v_proj, up_proj, down_proj"
FORMS = {
    "lora r8": (lt.LoRA(rank=8), "all-linear"),
    "lora r8, dropout .05": (lt.LoRA(rank=8, dropout=0.05), "all-linear"),
    "wegeft r64 shared": (lt.WeGeFT(rank=64, alpha=128.0, share="type"), QKVUD),
    "dora r8": (lt.DoRA(rank=8), "all-linear"),
    "loreft r8 f7+l7": (lt.LoReFT(rank=8, positions="f7+l7"), "stream"),
    "bottleneck 32": (lt.Bottleneck(dim=32), "stream"),
    "ia3": (lt.IA3(), "all-linear"),
    "prefix 16": (lt.Prefix(length=16), "attention"),
}
PEFT = {
    "peft lora r8": {},
    "peft lora r8, dropout .05": {"lora_dropout": 0.05},
    "peft dora r8": {"use_dora": True},
}
THROUGH = (FLOOR, "lora r8", "wegeft r64 shared", "dora r8", "loreft r8 f7+l7")
"""What is timed through a faster library as well, where the machine has one."""
Build = Callable[[], nn.Module]


def base(size: Size, dtype: torch.dtype) -> LlamaForCausalLM:
    """The frozen model in training mode, random weights: only its cost counts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
    )
    with device():
        return LlamaForCausalLM(config).to(dtype).train().requires_grad_(False)


def floor(size: Size, dtype: torch.dtype) -> nn.Module:
    """The base, with gradients through all its activations and into nothing."""
    model = base(size, dtype)
    model.model.embed_tokens.register_forward_hook(lambda module, args, y: y.requires_grad_())
    return model


def full(size: Size, dtype: torch.dtype) -> nn.Module:
    """Full fine-tuning."""
    return base(size, dtype).requires_grad_(True)


def peft_model(size: Size, dtype: torch.dtype, settings: dict) -> nn.Module:
    """peft's LoRA on the same layers."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **settings)
    return peft.get_peft_model(base(size, dtype), config)


class InChunks(nn.Module):
    """A step as `luthier train` takes it: a few tokens' logits at a time (`methods/objectives/_cross_entropy.py`)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        """`.loss`."""
        return SimpleNamespace(loss=causal_loss(self.model, batch))


def trained(size: Size, dtype: torch.dtype) -> dict[str, Build]:
    """Everything that takes a training step; the floor first."""
    found: dict[str, Build] = {FLOOR: lambda: floor(size, dtype)}
    found |= {k: lambda f=f, w=w: lt.attach(base(size, dtype), f, where=w) for k, (f, w) in FORMS.items()}
    found["lora r8, loss in chunks"] = lambda: InChunks(lt.attach(base(size, dtype), *FORMS["lora r8"]))
    found |= {k: lambda s=s: peft_model(size, dtype, s) for k, s in PEFT.items()}
    return found | {"full fine-tuning": lambda: full(size, dtype)}


def decoded(size: Size, dtype: torch.dtype) -> dict[str, Build]:
    """What decodes a token: the base, forms on it, LoRA folded in, peft's LoRA."""
    found: dict[str, Build] = {FLOOR: lambda: base(size, dtype)}
    forms = {name: pair for name, pair in FORMS.items() if "dropout" not in name}
    found |= {k: lambda f=f, w=w: lt.attach(base(size, dtype), f, where=w) for k, (f, w) in forms.items()}
    found["lora r8, merged"] = lambda: lt.merge(lt.attach(base(size, dtype), lt.LoRA(rank=8)))
    return found | {"peft lora r8": lambda: peft_model(size, dtype, {})}


def mixed_lora(size: Size, dtype: torch.dtype, count: int) -> nn.Module:
    """A base with `count` LoRAs."""
    model = base(size, dtype)
    for index in range(count):
        lt.attach(model, lt.LoRA(rank=8), name=f"a{index}", check=not index)
    return model


def mixed_peft(size: Size, dtype: torch.dtype, count: int) -> nn.Module:
    """peft's base with as many."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = peft.get_peft_model(base(size, dtype), config, adapter_name="a0")
    for index in range(1, count):
        model.add_adapter(f"a{index}", config)
    return model

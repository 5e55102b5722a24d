"""What the tests of exports share: small models with tokenizers, adapters moved off their starts."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import torch

import luthier as lt
from support.architectures import ARCHITECTURES

ROWS = 424


def build(name: str, **settings) -> Any:
    """A small model of an architecture."""
    architecture = ARCHITECTURES[name]
    return dataclasses.replace(architecture, settings=architecture.settings | settings).build()


def moved(model: Any, size: float = 0.1) -> Any:
    """The model, the trained parameters of its adapters moved."""
    for parameter in lt.trainable(model).values():
        parameter.data += size * torch.randn_like(parameter)
    return model


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of fixed tokens, in double precision."""
    ids = torch.arange(12, 60).reshape(2, 24) if ids is None else ids
    with torch.no_grad():
        return model(ids).logits.double()


def byte_level() -> Any:
    """A byte-level BPE of 367 tokens, fewer than the rows of the models."""
    return importlib.import_module("support.tiny_tokenizers").make("chatml")


def characters() -> Any:
    """A SentencePiece-like BPE: a space opens each text, and bytes stand in for characters that it lacks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    text = ["The cat sat on the mat, and the hat sat on the cat.", "Once upon a time there was a little cat."] * 4
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], max_token_length=8
    )
    core.train_from_iterator(text, trainer)
    core = Tokenizer.from_str(core.to_str())
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

"""What a tokenizer must have before it is used: a vocabulary and a pad token."""

from __future__ import annotations

from typing import Any

from luthier.core.errors import LuthierError

_RESERVED = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<|vision_pad|>",
    "<|endoftext|>",
)
"""Tokens that vocabularies hold for padding, or that end documents and never a turn, best first."""


def refuse_endless(tokenizer: Any, name: str) -> None:
    """Raises for a tokenizer whose longest text is not a number: transformers takes what its file says."""
    longest = getattr(tokenizer, "model_max_length", 0)
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise LuthierError(
            f"the tokenizer of {name} says model_max_length {longest!r:.60}; expected a number (tokenizer_config.json)."
        )


def refuse_empty(processor: Any, name: str) -> None:
    """Raises for a tokenizer of special tokens only: what transformers makes where no files are."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(processor, PreTrainedTokenizerBase):
        return
    if processor.vocab_size <= len(processor.all_special_tokens):
        raise LuthierError(
            f"{name} holds no tokenizer: put its tokenizer files beside the weights (tokenizer.save_pretrained)."
        )


def set_pad_token(model: Any, processor: Any) -> None:
    """Gives a decoder a pad token other than the one that ends a turn, and tells its configuration.

    Padding with the end token teaches a model never to stop once pads are masked by their id, and
    makes sequence classifiers look for the last token in the wrong place. So where the pad token is
    absent or is the end token, an existing token takes its place: one reserved for padding, else the
    unknown token. The vocabulary never grows. GPT-2, with one special token for all, pads with it:
    mask by the attention mask, never by id.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(processor, PreTrainedTokenizerBase) or model.config.is_encoder_decoder:
        return
    tokenizer = processor
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.pad_token = _choose(tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _choose(tokenizer: Any) -> str | None:
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    candidates = [token for token in _RESERVED if token in special]
    candidates += [tokenizer.unk_token, tokenizer.eos_token]
    usable = [token for token in candidates if token and token != tokenizer.eos_token]
    return usable[0] if usable else tokenizer.eos_token

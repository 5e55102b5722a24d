"""Models that write down what they hear: which they are, and what their tokenizers have to know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.models.trust import trusted

SPEECH = "speech-to-text"
"""The task of encoder-decoders that write down what is said."""


def heard() -> set[str]:
    """Returns the classes of encoder-decoders that write down what they hear, which those of a chat do not."""
    from transformers.models.auto import modeling_auto as auto

    found, chats = auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    return {name for kind, name in found.items() if kind not in chats}


def with_languages(processor: Any, path: Path | str, **source: Any) -> Any:
    """Returns the processor of a speech model, its tokenizer told the language and task that the model's generation
    config names, and whether there are several to choose from; others are left as they are."""
    from transformers import GenerationConfig, ProcessorMixin, WhisperTokenizer

    tokenizer = vars(processor).get("tokenizer") if isinstance(processor, ProcessorMixin) else None
    if not isinstance(tokenizer, WhisperTokenizer):
        return processor
    try:
        config = GenerationConfig.from_pretrained(path, trust_remote_code=trusted(), **source)
    except OSError:  # a folder of before there were such files
        return processor
    tokenizer.init_kwargs["is_multilingual"] = bool(getattr(config, "is_multilingual", False))
    language, task = (getattr(config, name, None) for name in ("language", "task"))
    if language is not None or task is not None:
        language = language.strip("<|>") if isinstance(language, str) else None
        tokenizer.set_prefix_tokens(language=language, task=task)
    return processor

"""GGUF (llama.cpp): quantised weights made dense float32, the tokenizer from the metadata."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.convert._save import filled
from luthier.models.quiet import quiet

_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Values of `tokenizer.ggml.pre` whose vocabularies were learned with every digit split off first
(llama.cpp, `llm_tokenizer_bpe`). transformers leaves that split out, so that the last space or newline
of a run before a digit becomes a token of its own, which the model never saw."""


def convert(weights: Path, target: Path) -> None:
    """Saves model and tokenizer of `weights` as a safetensors folder; tied embeddings stay tied."""
    reader = _open(weights)
    with quiet(), redirect_stderr(io.StringIO()):  # its reader draws bars of its own
        tokenizer = _tokenizer(weights, reader)
        model = _dense(_load(weights))
        tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _open(weights: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise LuthierError("a .gguf file needs gguf: pip install 'luthier[gguf]'") from None
    try:
        return GGUFReader(weights)
    except (ValueError, IndexError) as error:
        raise LuthierError(f"{weights} is no readable GGUF file: {error}") from None


def _tokenizer(weights: Path, reader: Any) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    field = reader.get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    return tokenizer


def _load(weights: Path) -> Any:
    import torch
    import transformers

    from luthier.models.beside import WITHOUT

    options: dict[str, Any] = {"gguf_file": weights.name, "dtype": torch.float32, "adapter_kwargs": WITHOUT}
    if "GgufConfig" in dir(transformers):  # newer releases may keep the blocks packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(weights.parent, **options)


def _dense(model: Any) -> Any:
    """The same model without the mark of its quantised origin, which `save_pretrained` refuses."""
    config = copy.deepcopy(model.config)
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    dense = filled(type(model), config, model.state_dict())
    dense.generation_config = model.generation_config
    return dense

"""GGUF (llama.cpp): quantised weights made dense float32, the tokenizer from the metadata."""

from __future__ import annotations

import copy
import io
import textwrap
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.models.convert._bytelevel import Metadata, byte_level
from luthier.models.convert._gguf_header import check_header
from luthier.models.convert._save import filled
from luthier.models.older import for_older_readers
from luthier.models.quiet import quiet


def convert(weights: Path, target: Path) -> None:
    """Saves model and tokenizer of `weights` as a safetensors folder; tied embeddings stay tied."""
    reader = _open(weights)
    with guarded(f"{weights} is not a readable GGUF file"):
        _refuse_no_model(weights, Metadata(weights, reader))
    with quiet(), redirect_stderr(io.StringIO()):  # its reader draws bars of its own
        with guarded(f"the tokenizer of {weights.name} cannot be read"):
            tokenizer = _tokenizer(weights, reader)
        with guarded(f"the model in {weights.name} cannot be read"):
            model = _dense(_load(weights))
        tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        for_older_readers(target)


def _open(weights: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise LuthierError("a .gguf file needs gguf: pip install 'luthier[gguf]'") from None
    check_header(weights)
    with guarded(f"{weights} is not a readable GGUF file"):
        return GGUFReader(weights)


def _refuse_no_model(weights: Path, said: Metadata) -> None:
    """Raises for a file that holds a part of a model, or something beside one."""
    parts, kind, architecture = (
        said.of("split.count") or 1,
        said.of("general.type") or "model",
        said.of("general.architecture"),
    )
    if parts > 1:
        raise LuthierError(
            f"{weights.name} is one of {parts} parts of a model; join them first: llama-gguf-split --merge "
            "FIRST-PART OUT.gguf."
        )
    if kind == "adapter":
        raise LuthierError(f"{weights.name} is an adapter in GGUF (LoRA), no model; give the model's own file.")
    if kind in ("mmproj", "projector", "imatrix") or architecture == "clip":
        raise LuthierError(f"{weights.name} is a {kind} file, which goes beside a language model; give that one's.")
    if not architecture:
        raise LuthierError(f"{weights.name} does not say what model it holds (general.architecture).")


def _tokenizer(weights: Path, reader: Any) -> Any:
    said = Metadata(weights, reader)
    kind = said("model")
    if kind == "gpt2":
        return byte_level(said)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, trust_remote_code=False)
    except Exception as error:
        raise LuthierError(f"the tokenizer of {weights.name} ({kind or 'none'}) cannot be read: {error}") from error


def _load(weights: Path) -> Any:
    import torch
    import transformers

    from luthier.models.beside import WITHOUT

    options: dict[str, Any] = {"gguf_file": weights.name, "dtype": torch.float32, "adapter_kwargs": WITHOUT}
    if "GgufConfig" in dir(transformers):  # newer releases may keep the blocks packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(weights.parent, trust_remote_code=False, **options)
    except Exception as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …").rstrip(".")
        raise LuthierError(f"transformers cannot read the model in {weights.name}: {reason}.") from error


def _dense(model: Any) -> Any:
    """The same model without the mark of its quantised origin, which `save_pretrained` refuses."""
    config = copy.deepcopy(model.config)
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    dense = filled(type(model), config, model.state_dict())
    dense.generation_config = model.generation_config
    return dense

"""GGUF (llama.cpp): quantised weights made dense float32, the tokenizer from the metadata."""

from __future__ import annotations

import copy
import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.models.convert._bytelevel import Metadata, byte_level
from luthier.models.convert._save import filled
from luthier.models.convert.gguf_config import check_whole, completed
from luthier.models.convert.gguf_header import Header, read_header
from luthier.models.older import for_older_readers
from luthier.models.quiet import quiet

LARGER = 8
"""How many times what a file holds its metadata may mean: some layers lack a part, and some parts are shared."""


def convert(weights: Path, target: Path) -> None:
    """Saves model and tokenizer of `weights` as a safetensors folder; tied embeddings stay tied."""
    reader = _open(weights)
    with quiet(), redirect_stderr(io.StringIO()):  # its reader draws bars of its own
        with guarded(f"the tokenizer of {weights.name} cannot be read"):
            tokenizer = _tokenizer(weights, reader)
        with guarded(f"the model in {weights.name} cannot be read"):
            model = _dense(_load(weights, reader))
        tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        for_older_readers(target)


def _open(weights: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise LuthierError("a .gguf file needs gguf: pip install 'luthier[gguf]'") from None
    check(weights)
    with guarded(f"{weights} is not a readable GGUF file"):
        return GGUFReader(weights)


def check(weights: Path) -> None:
    """Raises `LuthierError` for a file that holds no model to be read; it reads the header alone, so it is fast."""
    with guarded(f"{weights} is not a readable GGUF file"):
        header = read_header(weights)
    _refuse_no_model(weights, header)
    with guarded(f"{weights} is not a readable GGUF file"):
        _refuse_oversized(weights, header)


def _refuse_no_model(weights: Path, header: Header) -> None:
    """Raises for a file that holds a part of a model, or something beside one."""
    said = header.values
    parts, kind = said.get("split.count", 1), said.get("general.type", "model")
    if parts > 1:
        raise LuthierError(
            f"{weights.name} is one of {parts} parts of a model; join them first: llama-gguf-split --merge "
            "FIRST-PART OUT.gguf."
        )
    if kind == "adapter" or "adapter.type" in said:
        raise LuthierError(f"{weights.name} is an adapter in GGUF (LoRA), not a model; give the model's own file.")
    if kind in ("mmproj", "projector", "imatrix") or said.get("general.architecture") == "clip":
        kind = "mmproj" if kind == "model" else kind  # older files do not say their kind
        raise LuthierError(f"{weights.name} is a {kind} file, which goes beside a language model; give that one's.")
    if not said.get("general.architecture"):
        raise LuthierError(f"{weights.name} does not say what model it holds (general.architecture).")


def _refuse_oversized(weights: Path, header: Header) -> None:
    """Raises for metadata that mean a model much larger than the tensors are: it would be made before they are read."""
    size = header.largest
    layers, width = size("block_count"), size("embedding_length")
    if not layers or not width:  # the reader would take a size of its own, and draw what the file has no tensors for
        raise LuthierError(
            f"{weights.name} is damaged: its metadata do not say how many layers of what width it has (block_count, "
            "embedding_length). Fetch the file again."
        )
    heads = max(size("attention.head_count"), size("attention.head_count_kv")) * size("attention.key_length")
    inner = max(
        size("feed_forward_length"), size("expert_count") * size("expert_feed_forward_length"), size("ssm.inner_size")
    )
    meant = width * max(layers * (width + heads + inner), size("vocab_size"))
    held = sum(map(math.prod, header.shapes))
    if layers > len(header.shapes) or meant > LARGER * held:
        raise LuthierError(
            f"{weights.name} is damaged or incomplete: its metadata tell of {layers:,} layers of width {width:,}, at "
            f"least {meant:,} parameters, and its {len(header.shapes):,} tensors hold {held:,}. Fetch the file again."
        )


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


def _load(weights: Path, reader: Any) -> Any:
    import torch
    import transformers

    from luthier.models.beside import WITHOUT

    said, tensors = Metadata(weights, reader), {tensor.name: tensor for tensor in reader.tensors}
    source: dict[str, Any] = {"gguf_file": weights.name}
    options: dict[str, Any] = {"dtype": torch.float32, "adapter_kwargs": WITHOUT, "output_loading_info": True}
    if "GgufConfig" in dir(transformers):  # newer releases may keep the blocks packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _read_by_transformers(weights):
        config = transformers.AutoConfig.from_pretrained(weights.parent, trust_remote_code=False, **source)
    config = completed(config, said, tensors)
    with _read_by_transformers(weights):
        cls: Any = transformers.AutoModelForCausalLM
        model, report = cls.from_pretrained(weights.parent, config=config, trust_remote_code=False, **source, **options)
    check_whole(said, tensors, model, sorted(report["missing_keys"]))
    return model


@contextmanager
def _read_by_transformers(weights: Path) -> Iterator[None]:
    try:
        yield
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

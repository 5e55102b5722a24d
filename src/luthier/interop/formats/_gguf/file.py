"""The file itself: names and dtypes of tensors, a model's and an adapter's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.mapped import active, evict
from luthier.interop.formats._gguf import k_quants
from luthier.interop.formats._gguf.architectures import Architecture

_OWN = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_FILE_TYPES = {
    **{"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"},
    **{"q4_k_m": "MOSTLY_Q4_K_M", "q5_k_m": "MOSTLY_Q5_K_M", "q6_k": "MOSTLY_Q6_K"},
}


def library() -> Any:
    """Returns the package `gguf`; raises `LuthierError` without it."""
    try:
        import gguf
    except ImportError:
        raise LuthierError("writing GGUF needs gguf: pip install 'luthier[gguf]'") from None
    return gguf


@contextmanager
def writing(path: Path, architecture: Architecture) -> Iterator[Any]:
    """A `GGUFWriter` that takes metadata and tensors while the context lasts, and then writes the file."""
    writer = library().GGUFWriter(path, architecture.name, use_temp_file=active())
    if active():  # beside what is written, not in the system's folder, which may be in memory
        writer.temp_file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - the writer closes it
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Names:
    """The names of a base's tensors in GGUF."""

    def __init__(self, architecture: Architecture, blocks: int) -> None:
        gguf = library()
        keys = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map = gguf.get_tensor_name_map(keys[architecture.name], blocks)
        self._architecture = architecture

    def __call__(self, name: str) -> str:
        """Raises `LuthierError` for a tensor that the architecture has no place for."""
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise LuthierError(
                f"llama.cpp's {self._architecture.name} has no place for {name}; export it merged instead."
            )
        return found


def own_dtype(model: nn.Module) -> str:
    """The dtype that most of a model's matrices are in already."""
    dtype = next((p.dtype for p in model.parameters() if p.dim() == 2 and p.is_floating_point()), torch.float32)
    return _OWN.get(dtype, "f32")


def file_type(writer: Any, dtype: str) -> None:
    """Says what most tensors are stored in."""
    gguf = library()
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add(writer: Any, name: str, tensor: Tensor, dtype: str) -> float:
    """Adds a tensor in a dtype; returns the relative error that it costs (0: exact)."""
    gguf = library()
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    wanted = gguf.GGMLQuantizationType[dtype.upper() if tensor.dim() > 1 else "F32"]
    if wanted.name == "Q8_0" and values.shape[-1] % 32:  # a block of 32 numbers shares a scale
        wanted = gguf.GGMLQuantizationType.F16
    mixed = wanted.name in {*k_quants.SMALLER, "Q5_0", "Q5_1"}
    stored = k_quants.quantize(values, wanted) if mixed else gguf.quants.quantize(values, wanted)
    writer.add_tensor(name, stored, raw_dtype=wanted)
    again = gguf.quants.dequantize(stored, wanted) if wanted.name != "F32" else values
    evict()
    size = _norm(values)
    return _norm(values, again) / size if size else 0.0


def _norm(values: Any, less: Any = None, rows: int = 1024) -> float:
    """The root of the sum of squares of an array, or of its difference from another, some rows at a time."""
    parts = range(0, len(values), rows)
    taken = (values[i : i + rows] if less is None else values[i : i + rows] - less[i : i + rows] for i in parts)
    return sum(float((part.astype("float64") ** 2).sum()) for part in taken) ** 0.5


def add_model(writer: Any, architecture: Architecture, model: Any, tensors: Mapping[str, Tensor], dtype: str):
    """Adds a model's tensors, a tied head left out; returns `{name: relative error}` of those that are not exact."""
    blocks = model.config.num_hidden_layers
    names = Names(architecture, blocks)
    table = tensors[_path_of(model, model.get_input_embeddings())]
    twice = [name for name, t in tensors.items() if name.startswith("lm_head.") and t.data_ptr() == table.data_ptr()]
    lost = {}
    for name, tensor in tensors.items():
        if name in twice:
            continue
        own, stored = names(name), architecture.tensor(name, tensor, model.config)
        kind = dtype
        if dtype in k_quants.MIXTURES:
            tied = bool(twice) or "lm_head.weight" not in tensors
            kind = k_quants.stored_as(dtype, own, stored.shape[-1], blocks, tied)
        error = add(writer, own, stored, kind)
        lost |= {name: error} if error else {}
    return lost


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(f"{path}.weight" for path, module in model.named_modules() if module is wanted)

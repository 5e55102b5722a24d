"""A model as an ONNX graph, under the names that those who run it look for."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.swap import generative
from luthier.core.errors import LuthierError
from luthier.core.records import recorded, write_json
from luthier.core.sites.caches import cache_argument, cache_in
from luthier.core.sites.probe import eval_mode

BESIDE = 1_500_000_000
"""Bytes of weights from which on they lie in a file of their own; a file of ONNX holds 2 GB at most."""
PAST = re.compile(r"(?:input\.|output\.)?(?:cache|past_key_values)\.layers\.(\d+)\.(key|value)s")
BATCH, BEFORE, NEXT = 2, 5, 3
"""Rows, tokens in the cache and new tokens of what is traced: all differ, so that none is taken for another."""


def check(model: Any) -> None:
    """Raises for a model whose graph is not written here, and where the exporter is not installed."""
    takes = inspect.signature(type(model).forward).parameters
    why = None
    if "input_ids" not in takes or getattr(model.config, "is_encoder_decoder", False):
        why = "it is neither a language model nor an encoder of text"
    elif generative(model) and (other := _other_states(model)):
        why = f"its cache holds {other}, and a graph takes keys and values of all tokens alone"
    if why:
        raise LuthierError(
            f"{type(model).__name__} is not written in ONNX: {why}. Export it merged (--to merged), and use the model."
        )
    _exporter()


def _exporter() -> tuple[Any, Any]:
    from luthier.models.quiet import quiet

    try:
        with quiet():
            import onnxruntime  # type: ignore[import-not-found]  # noqa: F401
            from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter  # type: ignore[import-not-found]

            return OnnxExporter(), OnnxConfig(dynamic=True)
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise LuthierError(
            f"ONNX needs an exporter of transformers, onnx, onnxscript and onnxruntime ({reason}): pip install "
            "'luthier[onnx]'"
        ) from error


def _other_states(model: Any) -> str | None:
    """What a cache holds beside keys and values of every token; None where it holds nothing else."""
    layers = getattr(cache_of(model), "layers", None)
    if layers is None:
        return "states of its own"
    from transformers.cache_utils import DynamicLayer

    return next((type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer), None)


def _ids(rows: int, width: int, model: Any) -> Tensor:
    size = model.get_input_embeddings().num_embeddings
    return (torch.arange(rows * width, device=model.device).view(rows, width) * 7 + 3) % size


def cache_of(model: Any) -> Any:
    """Returns the cache that a model makes of the rows that are traced."""
    with eval_mode(model):
        return cache_in(model(input_ids=_ids(BATCH, BEFORE, model), use_cache=True))


def inputs_of(model: Any, processor: Any) -> dict[str, Any]:
    """Returns inputs to trace a model with: rows with padding, and a cache where it writes text."""
    takes = inspect.signature(type(model).forward).parameters
    writes = generative(model)
    total = BEFORE + NEXT if writes else BEFORE
    mask = torch.ones(BATCH, total, dtype=torch.long)
    mask[0, 0] = 0
    found: dict[str, Any] = {"input_ids": _ids(BATCH, NEXT if writes else BEFORE, model), "attention_mask": mask}
    if writes:
        if "position_ids" in takes:
            found["position_ids"] = positions(mask)[:, -NEXT:]
        found |= cache_argument(model, deepcopy(cache_of(model)))
    elif "token_type_ids" in takes and "token_type_ids" in processor.model_input_names:
        found["token_type_ids"] = torch.zeros_like(mask)
    return found


def positions(mask: Tensor) -> Tensor:
    """Returns the position of each token of rows that are padded on the left."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def graph_of(model: nn.Module, processor: Any) -> Any:
    """Returns the graph (an `onnx_ir.Model`), with names as optimum and transformers.js have them."""
    exporter, config = _exporter()
    with _silent(), eval_mode(model):
        graph = exporter.export(model, inputs_of(model, processor), config=config).program
    for values, prefix in ((graph.graph.inputs, "past_key_values"), (graph.graph.outputs, "present")):
        for value in values:
            if match := PAST.fullmatch(value.name):
                value.name = f"{prefix}.{match[1]}.{match[2]}"
    _name_axes(graph.graph, model)
    return graph


def _name_axes(graph: Any, model: Any) -> None:
    """Gives axes the names and numbers that optimum gives them; transformers.js makes its empty cache by these."""
    import onnx_ir  # type: ignore[import-not-found]

    axes: dict[str, tuple[str | int, ...]] = dict.fromkeys(
        ("input_ids", "position_ids", "token_type_ids"), ("batch_size", "sequence_length")
    )
    axes["attention_mask"] = ("batch_size", "total_sequence_length" if generative(model) else "sequence_length")
    for turn, layer in enumerate(cache_of(model).layers if generative(model) else ()):
        for kind, states in (("key", layer.keys), ("value", layer.values)):
            heads, width = states.shape[1], states.shape[3]
            axes[f"past_key_values.{turn}.{kind}"] = ("batch_size", heads, "past_sequence_length", width)
            axes[f"present.{turn}.{kind}"] = ("batch_size", heads, "total_sequence_length", width)
    names = {
        str(old): new
        for value in graph.inputs
        for old, new in zip(value.shape, axes[value.name], strict=True)
        if isinstance(new, str)
    }
    for value in [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]:
        if value.shape is not None:
            told = axes.get(value.name) or [names.get(str(axis), axis) for axis in value.shape]
            value.shape = onnx_ir.Shape(told)


@contextmanager
def _silent() -> Iterator[None]:
    """Holds back what exporters tell of their own working: stages, packages of other versions, optional operators."""
    from luthier.models.quiet import quiet

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def save(graph: Any, file: Path) -> Path:
    """Writes a graph as one file, or with its weights beside it where they are too large for that."""
    import onnx_ir  # type: ignore[import-not-found]

    held = [value.const_value for value in graph.graph.initializers.values()]
    large = sum(tensor.nbytes for tensor in held if tensor is not None) > BESIDE
    onnx_ir.save(graph, str(file), external_data=f"{file.name}_data" if large else None)
    return file


def tell_of_weights_beside(file: Path, config: Path) -> None:
    """Has transformers.js fetch the weights beside a graph too, which it does only where the configuration says so."""
    if file.with_name(f"{file.name}_data").exists():
        with recorded(config) as told:
            write_json(config, told | {"transformers.js_config": {"use_external_data_format": True}})


def quantised(file: Path) -> Path:
    """Returns the file beside it whose matrices have 4 bits and a scale for 32 numbers, instead of this one."""
    import onnx  # type: ignore[import-not-found]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-not-found]

    small = file.with_name("model_q4.onnx")
    beside = file.with_name(f"{file.name}_data")
    with _silent():
        made = MatMulNBitsQuantizer(onnx.load(file), block_size=32, is_symmetric=True)
        made.process()
        made.model.topological_sort()  # type: ignore[union-attr]  # wrapped by process()
        graph = made.model.model  # type: ignore[union-attr]
        large = sum(len(each.raw_data) for each in graph.graph.initializer) > BESIDE
        onnx.save_model(graph, str(small), save_as_external_data=large, location=f"{small.name}_data")
    for each in (file, beside):
        each.unlink(missing_ok=True)
    return small

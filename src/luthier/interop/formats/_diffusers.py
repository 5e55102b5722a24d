"""Names and scales in the files of diffusers' pipelines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.interop.formats._diffusion import PARTS, refuse_strange
from luthier.interop.formats._factors import Pair, own_paths
from luthier.interop.formats._peft_config import refuse_start, refuse_unknown
from luthier.interop.formats._peft_read import scale_of

KEY = re.compile(
    r"(?P<path>.+?)(?P<end>\.lora_A\.weight|\.lora_B\.weight|\.lora\.down\.weight|\.lora\.up\.weight"
    r"|\.lora_linear_layer\.down\.weight|\.lora_linear_layer\.up\.weight|\.alpha)"
)


def parts(folder: Path, held: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{part of the pipeline: {name: tensor}}`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        part, _, name = key.partition(".")
        if part not in (*PARTS.values(), "transformer", "text_encoder_3"):
            raise LuthierError(f"{folder} holds {key}; expected names that begin with {', '.join(PARTS.values())}.")
        found.setdefault(part, {})[name] = tensor
    return found


def told(folder: Path, metadata: Mapping[str, str], part: str) -> dict[str, Any]:
    """The configuration of one part, as peft has it; empty where the file tells none."""
    text = metadata.get("lora_adapter_metadata")
    try:
        whole = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise LuthierError(f"{folder}: lora_adapter_metadata is not JSON.") from None
    if not isinstance(whole, dict):
        raise LuthierError(f"{folder}: lora_adapter_metadata is {whole!r}; expected a table.")
    return {key.removeprefix(f"{part}."): value for key, value in whole.items() if key.startswith(f"{part}.")}


def pairs_of(folder: Path, held: Mapping[str, Tensor], config: Mapping[str, Any], model: nn.Module) -> dict[str, Pair]:
    """Returns `{path: factors}` with the scale of each."""

    def fused() -> str:
        return "Fuse it with diffusers, and take the whole model."

    refuse_unknown(folder, config, fused)
    refuse_start(folder, config, lambda: held, fused)
    if config.get("use_dora"):
        raise LuthierError(f"{folder} is DoRA on parts of a pipeline, which is not read here.")
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        match = KEY.fullmatch(key)
        if match is None:
            refuse_strange(folder, key)
        else:
            end = match["end"]
            name = "alpha" if end == ".alpha" else "A" if "_A" in end or "down" in end else "B"
            groups.setdefault(_as_now(match["path"]), {})[name] = tensor
    names = own_paths(folder, list(_without_wrapper(groups, model)), model)
    plain = _without_wrapper(groups, model)
    return {names[path]: _pair(folder, path, found, config) for path, found in plain.items()}


def _as_now(path: str) -> str:
    """A name of before peft (`attn1.processor.to_q_lora`) as the layer is called."""
    path = path.replace(".processor.", ".").removesuffix(".lora")
    path = re.sub(r"\.to_(q|k|v)_lora$", r".to_\1", path)
    return re.sub(r"\.to_out_lora$", ".to_out.0", path)


def _without_wrapper(groups: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """transformers 5 has no `text_model` inside of a text encoder."""
    if any(name == "text_model" for name, _ in model.named_children()):
        return dict(groups)
    return {path.removeprefix("text_model."): found for path, found in groups.items()}


def _pair(folder: Path, path: str, found: Mapping[str, Tensor], config: Mapping[str, Any]) -> Pair:
    if set(found) - {"alpha"} != {"A", "B"}:
        raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected two factors.")
    a, b, alpha = found["A"], found["B"], found.get("alpha")
    if a.dim() < 2 or b.dim() < 2 or (alpha is not None and alpha.numel() != 1):
        raise LuthierError(f"{folder}: the tensors of {path} are no matrices and a number.")
    if config:
        return Pair(b, a, scale_of(folder, config, path, len(a)))
    return Pair(b, a, float(alpha) / len(a) if alpha is not None else 1.0)

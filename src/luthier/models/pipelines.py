"""Parts of diffusers' pipelines, each a folder in that of the pipeline: a UNet, or a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.records import read_json

UNET = "UNet2DConditionModel"
INDEX = "model_index.json"


def unet_at(path: Path, dtype: str) -> Any:
    """Returns the UNet in a folder, None for a folder of transformers; raises for another class of diffusers."""
    told = read_json(path / "config.json")
    kind = told.get("_class_name") if isinstance(told, dict) and "model_type" not in told else None
    if kind is None:
        return None
    if kind != UNET:
        raise LuthierError(f"{path} is a {kind} of diffusers; of its models, {UNET} is loaded here.")
    import torch

    try:
        from diffusers import UNet2DConditionModel  # type: ignore[import-not-found]
    except ImportError as error:
        raise LuthierError(f"{path} is a {kind}, which needs diffusers: pip install 'luthier[diffusion]'") from error
    wanted = {} if dtype == "auto" else {"torch_dtype": getattr(torch, dtype)}
    return UNet2DConditionModel.from_pretrained(path, use_safetensors=True, local_files_only=True, **wanted).eval()


def tokenizer_beside(path: Path | str) -> Path | None:
    """Returns the folder of the tokenizer of a text encoder in a pipeline, which lies beside it; None for others."""
    if not isinstance(path, Path) or not (path.parent / INDEX).is_file() or (path / "tokenizer_config.json").exists():
        return None
    beside = path.parent / path.name.replace("text_encoder", "tokenizer")
    return beside if beside != path and beside.is_dir() else None

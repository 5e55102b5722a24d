"""Models without their weights: the configuration, what prepares inputs, every shape."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from luthier.core.paths import path_of
from luthier.models.hub import only_local
from luthier.models.load import processor_at
from luthier.models.resolve import resolve
from luthier.models.trust import config_at, explained, first_line, trusted


def config_of(name: str) -> Any:
    """The transformers configuration of a model by folder, config.json, hub id, .gguf file or catalogue name."""
    file = path_of(name, "no model")
    path = file if file.suffix == ".json" and file.is_file() else resolve(name)
    with _told(name, "a config.json"):
        return config_at(path, local_files_only=only_local(path))


def processor_of(name: str, task: str) -> Any:
    """Returns what prepares the inputs of a model for a task (a key of `luthier.models.TASKS`), without its weights."""
    path = resolve(name)
    with _told(name, "a tokenizer (or what prepares its inputs)"):
        return processor_at(path, task, local_files_only=only_local(path))


def _told(name: str, wanted: str) -> AbstractContextManager[None]:
    return explained(f"could not read {wanted} of {name!r}", first_line)


def meta_model(config: Any) -> Any:
    """Returns the model of a configuration on the meta device: every shape, no memory."""
    import torch
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        return named(config) if named else transformers.AutoModel.from_config(config, trust_remote_code=trusted())

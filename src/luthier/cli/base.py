"""Base models as commands need them: the configuration alone, the shapes alone, or loaded for an adapter's task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.models import Loaded


def base_of(
    name: str | None,
    spec: dict[str, Any] | None,
    *,
    dtype: str = "float32",
    task: str | None = None,
    labels: list[str] | None = None,
) -> Loaded:
    """A model for a task; that of an adapter's spec, by `name` or its own, for the task that it was fitted for."""
    from luthier.models import load, task_of_class

    if spec is None:
        return load(name or "", task=task or "causal-lm", dtype=dtype, labels=labels)
    name = name or spec["base"]["name"]
    if not name:
        raise LuthierError("the adapter does not say what its base is called; give --model.")
    known = spec["measured"]
    task = str(task or known.get("task") or task_of_class(spec["base"]["model"]))
    return load(name, task=task, dtype=dtype, labels=known.get("labels") or labels)


def fitted(
    name: str,
    adapter: str | None,
    *,
    task: str | None = None,
    labels: list[str] | None = None,
    dtype: str = "float32",
    merged: bool = False,
    force: bool = False,
) -> Loaded:
    """A model with the adapter on it (or merged into it), if there is one; nothing of it is to be trained.

    `labels` are the classes of the rows: the checkpoint's own stay where they hold all of these. Raises
    `LuthierError` for a head that neither the checkpoint nor the adapter holds.
    """
    from luthier.core.folder import read_adapter
    from luthier.models import refuse_untrained

    if labels is not None and set(labels) <= set(config_of(name).label2id):
        labels = None
    if adapter is None:
        if merged:
            raise LuthierError("--merged merges an adapter; give --adapter.")
        loaded = base_of(name, None, dtype=dtype, task=task, labels=labels)
        refuse_untrained(loaded)
        return loaded
    from luthier.core.merge import merge
    from luthier.core.store import load

    folder, spec = read_adapter(adapter)
    loaded = base_of(name, spec, dtype=dtype, task=task, labels=labels)
    load(loaded.model, folder, force=force)
    refuse_untrained(loaded)
    if merged:
        merge(loaded.model)
    return loaded


def config_of(name: str) -> Any:
    """The transformers configuration of a model by folder, config.json, hub id, .gguf file or catalogue name."""
    import transformers

    from luthier.models import resolve

    file = Path(name).expanduser()
    path = file if file.suffix == ".json" and file.is_file() else resolve(name)
    with _told(name, "a config.json"):
        return transformers.AutoConfig.from_pretrained(path, local_files_only=_local(path))


def processor_of(name: str, task: str) -> Any:
    """What prepares the inputs of a model for a task (a key of `luthier.models.TASKS`), without its weights."""
    import transformers

    from luthier.models import TASKS, resolve

    path = resolve(name)
    with _told(name, "a tokenizer (or what prepares its inputs)"):
        kind = getattr(transformers, TASKS[task].processor)
        return kind.from_pretrained(path, local_files_only=_local(path))


def _local(path: Path | str) -> bool:
    from luthier.models._hub import only_local

    return isinstance(path, Path) or only_local(path, "main")


@contextmanager
def _told(name: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except LuthierError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LuthierError(f"could not read {wanted} of {name!r}: {reason}") from error


def meta_model(config: Any) -> Any:
    """The model of a configuration on the meta device: every shape, no memory."""
    import torch
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        return named(config) if named else transformers.AutoModel.from_config(config)

"""Base models as commands need them: for the task of an adapter, bare or with the adapter on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.core.paths import path_of

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
    from luthier.models import fitted_task, load

    if spec is None:
        return load(name or "", task=task or "causal-lm", dtype=dtype, labels=labels)
    name = name or spec["base"]["name"]
    if not name:
        raise LuthierError("the adapter does not say what its base is called; give --model.")
    found = fitted_task(spec)
    if task is not None and task != found:
        raise LuthierError(f"the adapter was fitted for {found}, which --task {task} contradicts; leave --task out.")
    return load(name, task=found, dtype=dtype, labels=spec["measured"].get("labels") or labels)


def base_under(target: str, name: str | None, *, like: str | None = None, dtype: str, task: str | None) -> Loaded:
    """The bare base of what was fine-tuned: an adapter, or a whole model in the folder `target`.

    The task of a whole model is that of the class of `like`. Default: the base.
    """
    from luthier.core.storage.folder import adapter_at, read_adapter
    from luthier.models import config_of, task_of_class

    if adapter_at(target):
        return base_of(name, read_adapter(target)[1], dtype=dtype, task=task)
    if not (path_of(target) / "config.json").is_file():
        read_adapter(target)  # tells what is near
    if name is None:
        raise LuthierError("a whole model does not say what it was fine-tuned from; give --base.")
    found = task or task_of_class((config_of(like or name).architectures or [""])[0])
    return base_of(name, None, dtype=dtype, task=found)


def next_step(
    model: str,
    data: str | None,
    adapter: str | Path | None,
    columns: str | None = None,
    skip_bad_rows: bool = False,
    trust: bool = False,
) -> str:
    """Returns the command that looks at what was just made, to be run as it is; without data, a first prompt.

    What had to be said for the data to be read (`columns`, `skip_bad_rows`) or the base to be loaded (`trust`) is said
    again.
    """
    from luthier.data.folder import undivided

    on = ["--adapter", str(adapter)] if adapter else []
    on += ["--columns", columns] if columns and data is not None else []
    on += ["--skip-bad-rows"] if skip_bad_rows and data is not None else []
    on += ["--trust-remote-code"] if trust else []
    if data is not None and undivided(data):
        on += ["--split", "train"]
    if data is None:
        return f"Next: luthier generate {shlex.join([model, 'Hello', *on])}"
    return f"Next: luthier evaluate {shlex.join([model, data, *on])}"


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
    """Returns a model with the adapter on it (or merged into it), if there is one; nothing of it is to be trained.

    `labels` are the classes of the rows: the checkpoint's own stay where they hold all of these. Raises
    `LuthierError` for a head that neither the checkpoint nor the adapter holds.
    """
    from luthier.core.storage.folder import read_adapter
    from luthier.evaluating.untrained import refuse_untrained
    from luthier.models import with_chat

    if labels is not None:
        labels = _classes(name, labels, adapter)
    if adapter is None:
        if merged:
            raise LuthierError("--merged merges an adapter; give --adapter.")
        loaded = base_of(name, None, dtype=dtype, task=task, labels=labels)
        refuse_untrained(loaded)
        return loaded
    from luthier.core.adapters.merge import merge
    from luthier.core.storage.store import load

    folder, spec = read_adapter(adapter)
    loaded = with_chat(base_of(name, spec, dtype=dtype, task=task, labels=labels), spec, folder)
    load(loaded.model, folder, force=force)
    refuse_untrained(loaded)
    if merged:
        merge(loaded.model)
    return loaded


def _classes(name: str, labels: list[str], adapter: str | None) -> list[str] | None:
    """The classes to load a model for: None for its own, where these hold all of `labels` or it has names for them.

    Classes that the checkpoint never named are those of the rows, in their order.
    """
    from luthier.models import config_of, named

    config = config_of(name)
    own = list(config.label2id)
    if set(labels) <= set(own):
        return None
    if adapter is None and named(config.id2label):
        raise LuthierError(
            f"the rows have the classes {', '.join(labels)}, and those of {name!r} are {', '.join(own)}. Rename the "
            "labels of the rows, or give the adapter that was fitted for them (--adapter)."
        )
    return labels

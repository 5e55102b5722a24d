"""`luthier merge`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Command, Given


@dataclass(frozen=True)
class Merge(Command):
    """Fold an adapter into its model and save the whole model.

    The folder loads in transformers without Luthier: safetensors in the model's own dtype, configuration,
    tokenizer. It is written whole or not at all, then loaded again and compared with the adapted model.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier merge smollm2-135m run merged",
        "luthier merge path/to/model run/adapter merged --dtype bfloat16",
    )

    model: str
    """The base that the adapter was fitted on: a folder, a hub id, a .gguf file or a name of the catalogue."""
    adapter: str
    """A run folder, or an adapter's."""
    out: str
    """The folder to write."""
    dtype: str = field(default="auto", kw_only=True)
    """Number format to merge and save in: auto is the model's own; or float32, bfloat16, float16."""
    force: bool = field(default=False, kw_only=True)
    """Merge into another base than the adapter was fitted on."""

    def run(self, given: Given) -> None:
        from luthier.cli.adapter import read_adapter
        from luthier.cli.base import base_of
        from luthier.core.files import committed, must_be_free
        from luthier.core.store import load
        from luthier.exporting.merged import difference, probe, save_merged

        folder, spec = read_adapter(self.adapter)
        out = must_be_free(self.out)
        base = base_of(self.model, spec, dtype=self.dtype)
        load(base.model, folder, force=self.force)
        adapted = probe(base.model)
        with committed(out) as temporary:
            save_merged(base.model, base.processor, temporary)
        task, kind = base.task, type(base.model)
        del base
        change, largest = difference(adapted, probe(reloaded(out, task)))
        say(f"{out} holds the merged {kind.__name__}.")
        say(f"Largest change of an output between the adapted and the merged model: {change:.2g} (of {largest:.3g}).")


def reloaded(folder: Path, task: str) -> Any:
    """The model that was just saved, as anyone would load it."""
    from luthier.models import load

    return load(str(folder), task=task, dtype="auto").model

"""`luthier merge`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Given, Rewriting, Telling
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of


@dataclass(frozen=True)
class Merge(Telling, Rewriting):
    """Merge an adapter into its base model and save the whole model.

    The folder loads in transformers without Luthier: safetensors in the model's own dtype, configuration,
    tokenizer, and a card. What was written is loaded again and compared with the adapted model, on a small input; the
    largest change is told here and in the card. The folder is there whole or not at all.
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier merge smollm2-135m run merged",
        "luthier merge path/to/model run/adapter merged --dtype bfloat16",
    )

    model: str
    """The base that the adapter was fitted on: a folder, a hub id, a .gguf file or a name of the catalogue."""
    adapter: str
    """The adapter: a run folder or an adapter folder."""
    out: str
    """The folder to write."""
    dtype: str = field(default="auto", kw_only=True)
    """Dtype to merge and save in: auto is the model's own; or float32, bfloat16, float16."""
    force: bool = field(default=False, kw_only=True)
    """Merge into another base than the one the adapter was trained on."""

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.cli.base import base_of, next_step
        from luthier.core.files import committed, must_be_free
        from luthier.core.storage.card import merged_card
        from luthier.core.storage.folder import read_adapter
        from luthier.core.storage.store import load
        from luthier.interop.formats._merged import difference, probe, save_merged
        from luthier.models import WRITTEN, with_chat

        folder, spec = read_adapter(self.adapter)
        out = must_be_free(self.out)
        for source in (path_of(self.model), folder):
            if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
                raise LuthierError(f"{out} lies in {source}, which merging leaves as it is; name another folder.")
        base = with_chat(base_of(self.model, spec, dtype=self.dtype), spec, folder)
        load(base.model, folder, force=self.force)
        adapted = probe(base.model)
        with committed(out) as temporary:
            save_merged(base.model, base.processor, temporary)
            task, kind, dtype = base.task, type(base.model), str(base.model.dtype).removeprefix("torch.")
            del base
            change, largest = difference(adapted, probe(reloaded(temporary, task)))
            text = merged_card(spec, base=self.model, dtype=dtype, change=change, largest=largest)
            (temporary / "README.md").write_text(text, encoding="utf-8")
        say(f"{out} holds the merged {kind.__name__}.")
        say(f"Largest change of an output between the adapted and the merged model: {change:.2g} (of {largest:.3g}).")
        said = ["--task", task] if task == "reward" else []  # which neither pairs nor a class of one output tell
        scored = None if task in WRITTEN else _scored(out, path_of(self.adapter))
        say(" ".join([scored or next_step(str(out), None, None), *said]))
        return {
            "out": str(out),
            "class": kind.__name__,
            "dtype": dtype,
            "largest_change_of_an_output": change,
            "largest_output": largest,
        }


def _scored(out: Path, run: Path) -> str:
    """The next step with a model that writes no text: scoring the run's own rows, where a run was merged."""
    from luthier.cli.base import next_step
    from luthier.training.folder import holds_run, read_run

    if not holds_run(run):
        return next_step(str(out), "DATA", None)
    known = read_run(run)
    return next_step(str(out), known.eval_data or known.data, None, known.columns, known.skip_bad_rows)


def reloaded(folder: Path, task: str) -> Any:
    """Returns the model that was just saved, as anyone would load it."""
    from luthier.models import load

    return load(str(folder), task=task, dtype="auto").model

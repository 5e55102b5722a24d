"""`luthier import`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Flags, Given, Reading, Telling
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.models import Loaded


@dataclass(frozen=True)
class Import(Telling, Reading):
    """Import an adapter that another library saved: peft, pyreft, mlx-lm or AdapterHub's adapters.

    The format is told by what the folder holds; nothing in it is run. What has no equal here is refused with the
    reason, and so are damage and another base. `luthier list formats` shows which formats can be read.
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier import peft-folder adapter --model smollm2-135m",
        "luthier import reft-folder adapter --model path/to/model --positions f7+l7",
    )

    folder: str
    """The folder that the other library saved."""
    out: str
    """The folder to write."""
    model: str = field(kw_only=True)
    """The base that it was fitted on: a folder, a hub id, a .gguf file or a name of the catalogue."""
    format: str | None = field(default=None, kw_only=True)
    """The format of the folder. Default: told by what it holds."""
    task: str | None = field(default=None, kw_only=True)
    """The task of the base: causal-lm, classification and others. Default: as the folder says, or causal-lm."""
    labels: str | None = field(default=None, kw_only=True)
    """Names of the classes, joined by commas, in the order of the head that was trained (classification)."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.foreign import reading_flags

        return reading_flags()

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.cli.base import base_of, next_step
        from luthier.cli.foreign import reader
        from luthier.core.files import must_be_free
        from luthier.interop.import_adapter import import_adapter
        from luthier.models import WRITTEN

        source = reader(folder := path_of(self.folder), self.format, given)
        out = must_be_free(self.out)
        labels = self.labels.split(",") if self.labels else None
        base = base_of(self.model, None, task=self.task or source.task(folder), labels=labels)
        _tell_unnamed(folder, base, labels)
        measured = {"task": base.task} | ({"labels": labels} if labels else {})
        import_adapter(
            folder,
            out,
            base=base.model,
            source=source,
            base_name=self.model,
            measured=measured,
            processor=base.processor,
        )
        say(f"{out} holds the adapter of {source.name()}, fitted on {self.model}.")
        if base.task != "embedding":
            rows = None if base.task in WRITTEN else "DATA"
            say(next_step(self.model, rows, out, trust=self.trust_remote_code))
        return {"out": str(out), "format": source.name(), "base": self.model}


def _tell_unnamed(folder: Path, base: Loaded, labels: list[str] | None) -> None:
    """Warns of classes without names: nothing in another library's folder says which of its outputs is which."""
    import warnings

    from luthier.models import LABELLED, named

    if base.task in LABELLED and labels is None and not named(base.model.config.id2label):
        warnings.warn(
            f"neither {folder} nor the base names the classes of the head, so that those of rows are taken for them in "
            "the order that the rows give. Name them in the order of training: --labels a,b.",
            stacklevel=2,
        )

"""`luthier convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Flags, Given, Rewriting, Telling, option
from luthier.core.paths import path_of


@dataclass(frozen=True)
class Convert(Telling, Rewriting):
    """Write an adapter of one library as the folder of another: from peft to mlx-lm, from mlx-lm to GGUF and others.

    It is `luthier import` and then `luthier export`, without the folder in between. `luthier list formats` shows which
    formats can be read and which written. What is lost is told; what has no equal on either side is refused with the
    reason, and no folder is left behind. Settings follow from --to.
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier convert peft-folder out --to gguf_lora",
        "luthier convert reft-folder merged --to merged --model path/to/model --positions f7+l7",
    )

    folder: str
    """What the other library saved; or a run folder, or an adapter of Luthier's."""
    out: str
    """The folder to write."""
    to: str = field(kw_only=True)
    """The format to write."""
    model: str | None = field(default=None, kw_only=True)
    """The base that it was fitted on. Default: the name that the folder gives."""
    format: str | None = field(default=None, kw_only=True)
    """The format of the folder. Default: told by what it holds."""
    task: str | None = field(default=None, kw_only=True)
    """What the base does with it. Default: as the adapter or the folder says, or causal-lm."""
    labels: str | None = field(default=None, kw_only=True)
    """Names of the classes, joined by commas, in the order of the head that was trained (classification)."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.foreign import reading_flags, writing_flags

        to = option(tokens, "--to")
        return [*([writing_flags(to)] if to else []), *reading_flags()]

    def do(self, given: Given) -> dict[str, Any]:
        from pathlib import Path

        from luthier.cli.base import base_of
        from luthier.cli.foreign import reader, refuse_others, writer
        from luthier.core.errors import LuthierError
        from luthier.core.files import must_be_free
        from luthier.core.storage.folder import adapter_at, read_adapter
        from luthier.interop.convert import convert
        from luthier.models import with_chat

        to, folder = writer(self.to, given), path_of(self.folder)
        own = self.format is None and adapter_at(folder) is not None
        if own:
            refuse_others(folder, "Luthier's own", given)
        elif self.require_signature is not None:
            raise LuthierError(f"{folder} is not Luthier's own, and no other adapters are signed; leave the key out.")
        source = None if own else reader(folder, self.format, given)
        folder, spec = read_adapter(folder) if own else (folder, None)
        model = self.model or (source.base(folder) if source else None)
        if not own and model is None:
            raise LuthierError(f"{folder} does not say what its base is called; give --model.")
        must_be_free(self.out)
        labels = self.labels.split(",") if self.labels else None
        task = self.task or (source.task(folder) if source else None)
        base = base_of(model, spec, dtype=to.base_dtype, task=task, labels=labels)
        base = base if spec is None else with_chat(base, spec, folder)
        lost = convert(folder, self.out, to=to, base=base.model, source=source, processor=base.processor)
        say(f"{self.out} holds the adapter in the format of {to.name()}.")
        if lost:
            say(to.told(lost))
        for remark in to.remarks(Path(self.out), base.model):
            say(remark)
        return {"out": self.out, "format": to.name(), "lost": lost}

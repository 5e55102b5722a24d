"""`luthier export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Flags, Given, Rewriting, Telling, option

DEFAULT = "peft"


@dataclass(frozen=True)
class Export(Telling, Rewriting):
    """Write an adapter in the format of other software: peft, a merged model, GGUF for llama.cpp.

    The flags follow from --to: `luthier export --to gguf --help` shows them, and `luthier list formats` says which
    formats there are. The folder is written whole or not at all. A form that a format cannot express is refused with
    the reason.
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier export run out --model smollm2-135m",
        "luthier export run out --model path/to/model --rank 16 --tolerance 0.05",
        "luthier export run out --to gguf --dtype q8_0",
    )

    adapter: str
    """The adapter: a run folder or an adapter folder."""
    out: str
    """The folder to write."""
    to: str = field(default=DEFAULT, kw_only=True)
    """The export format; `luthier list formats` shows all."""
    model: str | None = field(default=None, kw_only=True)
    """The base that the adapter was trained on. Default: the name in the adapter."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.foreign import writing_flags

        return [writing_flags(option(tokens, "--to") or DEFAULT)]

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.cli.base import base_of
        from luthier.cli.foreign import writer
        from luthier.core.files import must_be_free
        from luthier.core.storage.folder import read_adapter
        from luthier.interop.export import export
        from luthier.models import with_chat

        to = writer(self.to, given)
        folder, spec = read_adapter(self.adapter)
        out = must_be_free(self.out)
        base = with_chat(base_of(self.model, spec, dtype=to.base_dtype), spec, folder)
        lost = export(folder, out, to=to, base=base.model, processor=base.processor)
        say(f"{out} holds the adapter in the format of {self.to}.")
        if lost:
            say(to.told(lost))
        for remark in to.remarks(out, base.model):
            say(remark)
        return {"out": str(out), "format": to.name(), "lost": lost}

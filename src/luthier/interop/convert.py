"""An adapter of one library as the folder of another."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from luthier.core.contracts.format import Format
from luthier.core.files import must_be_free
from luthier.core.storage.folder import adapter_at
from luthier.interop.export import export
from luthier.interop.import_adapter import import_adapter


def convert(
    folder: str | Path,
    out: str | Path,
    *,
    to: str | Format,
    base: nn.Module,
    source: str | Format | None = None,
    processor: Any = None,
) -> dict[str, float]:
    """Reads the adapter in `folder`, of whatever format, and writes it as the folder `out` in the format `to`.

    It is `import_adapter` and then `export`, by way of a temporary folder; a run or an adapter of Luthier's own is
    exported as it is. `source` and `to` are names (`luthier list formats`) or components with settings, and `source`
    None tells the format by what the folder holds. `processor` is the base's tokenizer, for formats that hold the whole
    model. Returns `{place: relative error}` of what is not exact. Raises `LuthierError` as these two do; `base` is left
    as it was.
    """
    must_be_free(out)
    if source is None and adapter_at(folder) is not None:
        return export(folder, out, to=to, base=base, processor=processor)
    with TemporaryDirectory() as work:
        ours = import_adapter(folder, Path(work) / "adapter", base=base, source=source, processor=processor)
        return export(ours, out, to=to, base=base, processor=processor)

"""Sets of the `datasets` library: a hub id (`id`, `id:config`, `id:config:split` or `id::split`), or a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded

if TYPE_CHECKING:
    from luthier.data.table import Table


def read_hub(source: str, split: str) -> Table:
    """Returns the rows of one split; class labels come with their names, images and audio as undecoded
    bytes.

    Raises when the set cannot be had: no such id, no network, a gated set, an unknown
    configuration or split.
    """
    import datasets
    from datasets import config as settings

    settings.HF_DATASETS_TRUST_REMOTE_CODE = False  # pyright: ignore[reportAttributeAccessIssue]  older versions ask on the terminal

    name, _, rest = source.partition(":")
    config, _, named = rest.partition(":")
    split = named or split
    try:
        data: Any = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:
        raise LuthierError(
            f"{source!r} is not a file here, and as a hub data set {name!r} (configuration {config or 'default'}, "
            f"split {split}) it cannot be loaded: {_first_line(error)} Without a network, give the path of a file."
        ) from None
    with guarded(f"the rows of {source} cannot be read"):
        return _table(data, source)


def read_saved(folder: Path, split: str) -> Table:
    """The rows of what `save_to_disk` wrote: one split of a dictionary of sets, or a set, whatever `split` says."""
    import datasets

    from luthier.data.splits import of_split, split_of

    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise LuthierError(f"{folder} is not a readable folder of save_to_disk: {_first_line(error)}") from None
    if isinstance(data, datasets.DatasetDict):
        splits = {split_of(str(name), whole=True) or str(name): name for name in data}
        data = data[splits[of_split(str(folder), split, splits)]]
    with guarded(f"the rows of {folder} cannot be read"):
        return _table(data, str(folder))


def _table(data: Any, source: str) -> Table:
    import datasets

    from luthier.core.lazy import Lazy
    from luthier.data.large import LARGE
    from luthier.data.table import Table, known, without_nulls

    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            data = data.cast_column(column, type(feature)(decode=False))
    inner = {column: getattr(f, "feature", f) for column, f in data.features.items()}  # of a list, what it holds
    named = {column: f.names for column, f in inner.items() if isinstance(f, datasets.ClassLabel)}

    def row(place: int) -> tuple[int, dict[str, Any]]:
        with guarded(f"row {place + 1} of {source} cannot be read"):
            return place + 1, {name: without_nulls(value) for name, value in known(data[place]).items()}

    places = range(len(data))
    rows = Lazy(places, row) if data.data.nbytes >= LARGE else list(map(row, places))
    return Table(rows, classes={column: list(names) for column, names in named.items()})


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith(".") else text + "."

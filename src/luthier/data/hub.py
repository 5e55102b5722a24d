"""A hub id: `id`, `id:config`, `id:config:split` or `id::split`, through `datasets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.data.read import Table


def read_hub(source: str, split: str) -> Table:
    """The rows of one split; class labels come with their names, images and audio as undecoded
    bytes.

    Raises when the set cannot be had: no such id, no network, a gated set, an unknown
    configuration or split.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    from luthier.data.read import Table

    name, _, rest = source.partition(":")
    config, _, named = rest.partition(":")
    split = named or split
    try:
        data: Any = datasets.load_dataset(name, config or None, split=split)
    except (DatasetNotFoundError, OSError, ValueError, ImportError) as error:
        raise LuthierError(
            f"{source!r} is no file here, and as a hub data set {name!r} (configuration {config or 'default'}, split "
            f"{split}) it cannot be loaded: {_first_line(error)} Without a network, give the path of a file."
        ) from None
    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            data = data.cast_column(column, type(feature)(decode=False))
    label = data.features.get("label")
    classes = list(label.names) if isinstance(label, datasets.ClassLabel) else None
    return Table(list(enumerate(data, 1)), classes=classes)


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith(".") else text + "."

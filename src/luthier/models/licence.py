"""The licence of a base, as its makers state it."""

from __future__ import annotations

from luthier.core.storage.licence import stated_licence
from luthier.models.catalogue import catalogue


def licence_of(name: str) -> str | None:
    """What the catalogue, the model's card or its configuration calls its licence; None where none of them does.

    `name` is a name of the catalogue, a folder, or a hub id, whose card is looked for in the local hub cache.
    """
    listed = next((entry.licence for entry in catalogue() if entry.name == name), None)
    return listed if listed is not None else stated_licence(name)

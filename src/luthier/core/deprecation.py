"""Deprecations: what will be removed still works for a version, and warns with what to use instead."""

from __future__ import annotations

import warnings
from collections.abc import Mapping


class LuthierDeprecationWarning(FutureWarning):
    """Warns of a part of Luthier that a later version removes; Python shows it by default."""


def deprecated(old: str, new: str, until: str, stacklevel: int = 3) -> None:
    """Warns that version `until` removes `old` and that `new` replaces it.

    `stacklevel` counts as in `warnings.warn`: 3 is the caller of the function that calls this one.
    """
    text = f"{old} is deprecated and will be removed in Luthier {until}; use {new} instead."
    warnings.warn(text, LuthierDeprecationWarning, stacklevel)


def rename_attributes(cls: type, names: Mapping[str, str]) -> None:
    """Moves what a class defines under a former name to the present one, `{former: present}`, and warns of each.

    Only a value of the type that the present name has is moved, so a setting may have a former name.
    """
    for old, new in names.items():
        own = vars(cls).get(old)
        if own is not None and new not in vars(cls) and isinstance(own, type(getattr(cls, new))):
            deprecated(f"{cls.__name__}.{old}", new, until="0.3", stacklevel=4)
            setattr(cls, new, own)

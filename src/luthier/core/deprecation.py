"""Deprecations: what is to go still works for a version, and says what to use instead."""

from __future__ import annotations

import warnings


class LuthierDeprecationWarning(FutureWarning):
    """Warns of something of Luthier's that a later version will no longer have; shown by default."""


def deprecated(old: str, new: str, until: str, stacklevel: int = 3) -> None:
    """Warns that `old` goes with version `until` and that `new` takes its place.

    `stacklevel` counts as in `warnings.warn`: 3 is the caller of the function that calls this one.
    """
    text = f"{old} is deprecated and will be removed in Luthier {until}; use {new} instead."
    warnings.warn(text, LuthierDeprecationWarning, stacklevel)

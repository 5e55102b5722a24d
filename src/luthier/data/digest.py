"""What tells encoded rows from others: the same rows under another tokenizer or chat template are other ones."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from typing import Any


def digest(features: Iterable[Mapping[str, Any]]) -> str:
    """Hexadecimal SHA-256 of encoded rows in their order: tokens, labels and all other whole numbers and words.

    Numbers of NumPy count as Python's, so where features are kept does not matter. Pictures and sounds count by their
    shapes alone, since their decoders differ in the last digits.
    """
    found = hashlib.sha256()
    for feature in features:
        for piece in _pieces(feature):
            found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    import numpy as np

    if isinstance(value, Mapping):
        for key in sorted(value):
            yield key.encode() + b"\0"
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple):
        if all(kind is int or issubclass(kind, np.integer) for kind in set(map(type, value))):  # millions of tokens
            yield array("q", value).tobytes() + b"\0"
        else:
            for each in value:
                yield from _pieces(each)
    elif isinstance(value, np.generic):
        yield from _pieces(value.item())
    elif np.ndim(value) == 1 and np.asarray(value).dtype.kind in "iub":
        yield from _pieces(np.asarray(value).tolist())
    elif np.ndim(value):
        yield str(np.shape(value)).encode()
    else:
        yield f"{value!r}\0".encode()

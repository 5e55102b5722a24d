"""What Luthier raises: one exception that says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuthierError(ValueError):
    """The error for bad input; the command line prints its message and exits with 2, without a traceback."""


LONGEST = 100
"""Characters of a word that others are compared with: what was sent may be a megabyte."""


def near(word: str, words: Iterable[str], count: int = 3) -> str:
    """Returns `"; did you mean 'a' or 'b'?"` for the words nearest to `word`, or a full stop when none is near."""
    folded = {w.lower(): w for w in words}
    found = [folded[w] for w in difflib.get_close_matches(word[:LONGEST].lower(), folded, n=count, cutoff=0.5)]
    return "; did you mean " + " or ".join(repr(w) for w in found) + "?" if found else "."

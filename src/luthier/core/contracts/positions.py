"""Positions: the tokens of a row that a form edits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Positions:
    """The first and the last prompt tokens that a form edits, or every token."""

    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> Positions | Invocation | None:
        """Returns `f7+l7`, `f3`, `l1`; `from:5.6` is an `Invocation`, `all` is None."""
        if text.strip() == "all":
            return None
        if invoked := re.fullmatch(r"from:(\d+(?:\.\d+)*)", text.strip()):
            return Invocation(tuple(int(token) for token in invoked[1].split(".")))
        match = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", text.strip())
        first, last = (int(n or 0) for n in match.groups()) if match else (0, 0)
        if not first + last:
            raise LuthierError(
                f"positions={text!r} is not understood; write f7+l7 (first 7 and last 7 prompt tokens), f3, l1, "
                "from:5.6 (from the last place on where tokens 5 and 6 stand) or all."
            )
        return cls(first, last)


@dataclass(frozen=True)
class Invocation:
    """Tokens from whose last place in a row on a form edits, these included; a row without them is left alone."""

    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return "from:" + ".".join(map(str, self.tokens))

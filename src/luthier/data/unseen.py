"""Rows whose text refers to a picture, a sound or a film beside it, which a model of texts is not given."""

from __future__ import annotations

import re
from collections.abc import Iterable

from luthier.data.bad import BadRow
from luthier.data.columns import empty
from luthier.data.table import Row

BESIDE = re.compile(r"(image|img|picture|photo|audio|sound|video)s?(_?(path|file|url|name)s?)?", re.I)
"""Columns that hold pictures, sounds and films, or say where they are."""
MARK = re.compile(r"<\|?(image|img|picture|audio|sound|video)([-_]?(pad|token|soft_token|\d+))?\|?>", re.I)
"""What stands in a text where one belongs: `<image>`, `<|image_1|>`, `<|video_pad|>`."""


def refuse_unseen(row: Row, texts: Iterable[str | None]) -> None:
    """Raises where a text of the row refers to what stands in a column that nothing reads."""
    columns = [name for name, value in row.items() if not empty(value) and BESIDE.fullmatch(name)]
    mark = next((found for text in texts if columns and (found := MARK.search(text or ""))), None)
    if mark is not None:
        raise BadRow(
            f"{mark[0]!r} stands for what is in {columns[0]!r}, which is not read: the model would learn to answer "
            f"unseen; take the row out, or the mark where the text alone is meant (pictures of chats: <image>)"
        )

"""What the pages look like that Luthier makes: one set of colours and letters, light and dark."""

from __future__ import annotations

from pathlib import Path


def styled(page: Path) -> str:
    """Returns the style sheet of a page: `core/palette.css`, and its own rules that build on it."""
    return "".join(path.read_text(encoding="utf-8") for path in (Path(__file__).with_suffix(".css"), page))

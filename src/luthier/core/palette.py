"""What the pages look like that Luthier makes: one set of colours and letters, light and dark."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any


def styled(page: Path) -> str:
    """Returns the style sheet of a page: `core/palette.css`, and its own rules that build on it."""
    return "".join(path.read_text(encoding="utf-8") for path in (Path(__file__).with_suffix(".css"), page))


def rendered(template: Path, **values: Any) -> str:
    """Returns a page of HTML from a template of jinja; the values are text to it unless they are marked as safe."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def policy_digest(text: str) -> str:
    """Returns what a content security policy calls a script or a style that may stand in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

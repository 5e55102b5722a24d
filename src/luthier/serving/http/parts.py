"""The parts of a message: texts and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from luthier.data.pictures import DATA, MARK
from luthier.serving.http.body import Body
from luthier.serving.http.fields import refused

MOST_PICTURES = 64
"""Pictures in a call."""
KINDS = ("text", "image_url")


class PictureURL(Body):
    """A picture within a `data:` URL; nothing is fetched, and no file of the server is read."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"detail": ("auto",)}
    url: str

    @model_validator(mode="after")
    def held(self) -> PictureURL:
        """Raises for an address."""
        if not DATA.match(self.url):
            message = (
                f"image_url is {self.url[:40]!r}: nothing is fetched here; send the picture itself, as "
                "data:image/png;base64,…"
            )
            raise refused("invalid_value", message, "url")
        return self


class Part(Body):
    """A part of a message: a text, or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: PictureURL | None = None

    @model_validator(mode="before")
    @classmethod
    def known(cls, given: Any) -> Any:
        """Raises for sound, video and files."""
        kind = given.get("type", "text") if isinstance(given, dict) else "text"
        if kind not in KINDS:
            message = f"content of type {kind!r:.40} is not supported; there are: {', '.join(KINDS)}."
            raise refused("unsupported_value", message, "type")
        return given

    @model_validator(mode="after")
    def whole(self) -> Part:
        """Raises for a part without what its type says, or with more."""
        if [self.text is not None, self.image_url is not None] != [self.type == kind for kind in KINDS]:
            raise refused("invalid_value", f"a part of type {self.type!r} holds its {self.type} alone.", "content")
        return self


def joined(parts: Sequence[Part]) -> str:
    """Returns the content of a turn: texts on lines of their own, a mark in the place of each picture."""
    text, before = "", None
    for part in parts:
        line = "\n" if before == part.type == "text" else ""
        text, before = text + line + (MARK if part.text is None else part.text), part.type
    return text


def pictures_of(parts: Sequence[Part]) -> list[str]:
    """Returns the pictures of a turn, as `data:` URLs."""
    return [part.image_url.url for part in parts if part.image_url is not None]


def kept(parts: Sequence[Part]) -> list[dict[str, str]] | str:
    """Returns the content of a turn as rows to train on have it."""
    if not (pictures := pictures_of(parts)):
        return joined(parts)
    found: list[dict[str, str]] = []
    for number, text in enumerate(joined(parts).split(MARK)):
        found += [{"type": "image", "image": pictures[number - 1]}] if number else []
        found += [{"type": "text", "text": text}] if text else []
    return found

"""Pictures in conversations: where they stand, and what a model's processor makes of them.

A picture is named by a text (a path, or a `data:` URL that holds it), and stands in a turn as `MARK`, Unicode's own
sign for an object within text. A chat template gets turns in parts, `{"type": "image"}` in the place of each, and
writes the model's placeholder there; the processor makes of that as many tokens as the picture takes.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.example import Message
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.data.bad import BadRow
from luthier.models.seeing import Eyes, eyes_of, why_blind

if TYPE_CHECKING:
    from torch import Tensor

MARK = "\ufffc"
PICTURES, NAMES = "pictures", "names"
"""Where a feature keeps its pictures: their names, and columns that only tokens of pictures need."""
TAG = "<image>"
"""How LLaVA's files, and those that follow them, write a picture's place in a turn."""
COLUMNS = ("images", "image")
"""Columns of the pictures of a conversation, in the order of their places."""
KEYS = ("image_url", "image", "url", "path", "base64")
"""Keys of a part of a turn that hold its picture."""
DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
MOST_PIXELS = 2**26
"""Of a picture: a small file may unfold to any size."""


# --- rows -------------------------------------------------------------------------------------------


def is_picture(part: Any) -> bool:
    """Whether a part of a turn is a picture."""
    return isinstance(part, dict) and part.get("type") in ("image", "image_url", "input_image")


def named_in(part: Mapping[str, Any], what: str) -> Any:
    """The picture that a part of a turn holds; None where a column has it. Raises `BadRow` for an unknown form."""
    value = next((part[key] for key in KEYS if part.get(key) not in (None, "")), None)
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    strange = sorted(key for key, each in part.items() if key not in (*KEYS, "type", "detail") and each is not None)
    if strange:
        raise BadRow(f"{what} holds a picture with {', '.join(map(repr, strange))}; expected one of {', '.join(KEYS)}")
    return value


def placed(messages: list[Message], beside: Any, folder: Path | None) -> tuple[list[Message], tuple[str, ...]]:
    """Returns the turns with a `MARK` for each picture, and the pictures in their order.

    Those of a column (`beside`) go to the parts of turns that name none, or to `TAG`s, or else before the first user's
    turn. Raises `BadRow` where places and pictures are not as many.
    """
    own = [each for message in messages for each in message.get("pictures", ())]
    turns = [{key: value for key, value in message.items() if key != "pictures"} for message in messages]
    given = _listed(beside)
    if not own and not given:
        return turns, ()
    if given and not own:
        before, turns = _marks(turns), _tagged(turns, len(given))
        own = [None] * (_marks(turns) - before)
    if (places := own.count(None)) != len(given):
        raise BadRow(f"pictures beside the turns: {len(given)}, and places for them: {places}")
    waiting = iter(given)
    found = [next(waiting) if each is None else each for each in own]
    if _marks(turns) != len(found):
        raise BadRow(f"pictures: {len(found)}, and signs U+FFFC, which stand for them in turns: {_marks(turns)}")
    for number, message in enumerate(turns, 1):
        if message["role"] == "assistant" and MARK in (message.get("content") or ""):
            raise BadRow(f"message {number} is an answer with a picture; only text is answered")
    return turns, tuple(_named(each, folder) for each in found)


def _marks(turns: Sequence[Message]) -> int:
    return sum((message.get("content") or "").count(MARK) for message in turns)


def _listed(value: Any) -> list[Any]:
    if value in (None, "", []):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _tagged(turns: list[Message], count: int) -> list[Message]:
    """The turns with a mark for each tag; without tags, all marks open the first turn of the user."""
    asked = [i for i, m in enumerate(turns) if m["role"] != "assistant"]
    if any(TAG in (turns[i].get("content") or "") for i in asked):
        return [{**m, "content": m["content"].replace(TAG, MARK)} if i in asked and m.get("content") else m
                for i, m in enumerate(turns)]  # fmt: skip
    first = next((i for i, m in enumerate(turns) if m["role"] == "user"), None)
    if first is None:
        raise BadRow("pictures, and no turn of a user to show them in")
    opened = {**turns[first], "content": MARK * count + (turns[first].get("content") or "")}
    return [*turns[:first], opened, *turns[first + 1 :]]


def _named(value: Any, folder: Path | None) -> str:
    """A picture as text: an absolute path, or a `data:` URL. Raises `BadRow` for what is neither, nor bytes."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _url(value)
    if not isinstance(value, str):
        return _url(_saved(value))
    if DATA.match(value):
        return value
    if re.match(r"\w+://", value) and not value.startswith("file://"):
        raise BadRow(f"the picture {value[:80]} is an address: nothing is fetched; download it, and give its path")
    path = (folder or Path()) / value.removeprefix("file://")
    if not path.is_file():
        raise BadRow(f"no image file {path} (of a column that holds no pictures, take it out)")
    return str(path.absolute())


def _url(raw: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(raw).decode("ascii")


def _saved(value: Any) -> bytes:
    """A picture of pillow, as PNG."""
    kept = io.BytesIO()
    with guarded(f"a picture is a {type(value).__name__}, expected a path, bytes or a picture of pillow", BadRow):
        value.save(kept, format="PNG")
    return kept.getvalue()


def in_parts(message: Message) -> Message:
    """A turn as templates of models that see take it: its content as parts, a picture in the place of each mark."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    parts: list[dict[str, str]] = []
    for number, text in enumerate(content.split(MARK)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return {**message, "content": parts}


def opened(name: str) -> Any:
    """Returns a picture (pillow's, in RGB) by its name; raises `BadRow` for what cannot be read, or is too large."""
    try:
        from PIL import Image
    except ImportError:
        raise LuthierError("images need pillow: pip install 'luthier[vision]'.") from None
    with guarded("unreadable image", BadRow):
        picture = Image.open(_bytes(name))
        if picture.width * picture.height > MOST_PIXELS:
            raise BadRow(f"a picture of {picture.width} x {picture.height}; expected at most {MOST_PIXELS:,} pixels")
        return picture.convert("RGB")


def _bytes(name: str) -> Any:
    if not (start := DATA.match(name)):
        return name
    try:
        return io.BytesIO(base64.b64decode(name[start.end() :], validate=True))
    except binascii.Error as error:
        raise BadRow(f"a picture's data: URL is not base64: {error}") from None


class Seen(list[int]):
    """The tokens of a prompt with pictures; `inputs` are what its model reads beside them."""

    def __init__(self, ids: Sequence[int], columns: Mapping[str, Sequence[int]], names: Sequence[str], eyes: Eyes):
        super().__init__(ids)
        self.kept: dict[str, Any] = {NAMES: list(names), **columns}
        """As a feature keeps it."""
        self._columns, self._names, self._eyes = columns, names, eyes

    def inputs(self, tokens: int) -> dict[str, Tensor]:
        """Returns the pictures' inputs, and the columns [1, tokens] of so many tokens, the prompt's and more."""
        import torch

        found = {name: torch.tensor([filled(values, tokens)]) for name, values in self._columns.items()}
        return found | self._eyes.inputs([opened(name) for name in self._names])


def filled(column: Sequence[int], tokens: int) -> list[int]:
    """Returns a column of tokens of pictures, with zeros for those behind it."""
    return [*column, *[0] * (tokens - len(column))]


def seen_in(prompt: Sequence[int]) -> Seen | None:
    """Returns a prompt that has pictures; None for any other."""
    return prompt if isinstance(prompt, Seen) else None


# --- tokens -----------------------------------------------------------------------------------------


def unfolded(
    text: str, ids: list[int], owner: list[int], names: Sequence[str], tokenizer: Any
) -> tuple[list[int], list[int], dict[str, list[int]]]:
    """Returns the tokens of a text with pictures, whose each is (number of the answer, or -1), and further columns.

    Raises `BadRow` where the model reads no pictures, where the template leaves one out, or where what the processor
    makes of the text is not the text with pictures in their places.
    """
    eyes = seeing(tokenizer)
    place = tokenizer.convert_tokens_to_ids(eyes.placeholder)
    there = [i for i, token in enumerate(ids) if token == place]
    if len(there) != len(names):
        raise BadRow(f"the chat template renders {len(there)} of the row's {len(names)} pictures ({eyes.placeholder})")
    pictures = [opened(name) for name in names]
    with guarded("the model's processor does not take the row's pictures", BadRow):
        whole, beside = eyes.tokens(text, pictures)
        sizes = _sizes(eyes, pictures, len(whole) - len(ids) + len(names))
    made: list[int] = []
    whose: list[int] = []
    at = 0
    for end, size in zip([*there, len(ids)], [*sizes, 0], strict=True):
        made += ids[at:end] + whole[len(made) + end - at : len(made) + end - at + size]
        whose += owner[at:end] + [-1] * size
        at = end + 1
    if made != whole:
        raise BadRow("the model's processor splits the text of a row with pictures otherwise than its tokenizer")
    return whole, whose, beside


def seeing(tokenizer: Any) -> Eyes:
    """Returns what makes inputs of pictures beside a tokenizer; raises `BadRow` where its model reads none."""
    if (eyes := eyes_of(tokenizer)) is None:
        raise BadRow(f"the row has pictures, and {why_blind(tokenizer)}")
    return eyes


def _sizes(eyes: Eyes, pictures: Sequence[Any], total: int) -> list[int]:
    """How many tokens each picture takes."""
    if len(pictures) == 1:
        return [total]
    return [len(eyes.tokens(eyes.placeholder, [picture])[0]) for picture in pictures]

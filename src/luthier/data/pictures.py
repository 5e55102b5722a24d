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
from dataclasses import dataclass
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
TAG = re.compile(r"<\|?image(?:_(\d+))?\|?>")
"""How files write a picture's place in a turn: `<image>` (LLaVA's and those that follow them), `<|image_1|>`."""
COLUMNS = ("images", "image")
"""Columns of the pictures of a conversation, in the order of their places."""
KEYS = ("image_url", "image", "url", "path", "base64")
"""Keys of a part of a turn that hold its picture."""
DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
ADDRESS = re.compile(r"(?!file://)\w+://")
"""How a name opens that is not of a file."""
MOST_PIXELS = 2**26
"""Of the pictures of a row: a small file may unfold to any size."""
SENT = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats of pictures that are sent, or stand in rows themselves."""
FORMATS = (*SENT, "TIFF", "PPM", "MPO")
"""Formats of files."""


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


def in_turn(content: Any, beside: Any, what: str) -> tuple[Any, list[Any]]:
    """Returns the content of a turn with places for the pictures of a key `beside` it, and all of its pictures in order
    (None for one that a column has)."""
    own = [named_in(part, what) for part in content if is_picture(part)] if isinstance(content, list) else []
    given = _listed(beside)
    if not given:
        return content, own
    if not own and isinstance(content, str) and TAG.search(content):
        content = TAG.sub(MARK, content)
        own = [None] * content.count(MARK)
    elif not own:
        content = [*({"type": "image"} for _ in given), *(content if isinstance(content, list) else [content or ""])]
        own = [None] * len(given)
    if own.count(None) != len(given):
        raise BadRow(f"{what} has pictures beside its content: {len(given)}, and places for them: {own.count(None)}")
    waiting = iter(given)
    return content, [next(waiting) if each is None else each for each in own]


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
    asked = [i for i, m in enumerate(turns) if m["role"] != "assistant" and m.get("content")]
    numbers = [found for i in asked for found in TAG.findall(turns[i]["content"])]
    if numbers:
        if any(number not in ("", str(place)) for place, number in enumerate(numbers, 1)):
            raise BadRow(f"marks of pictures numbered {', '.join(numbers)}; expected the order of the pictures")
        return [{**m, "content": TAG.sub(MARK, m["content"])} if i in asked else m for i, m in enumerate(turns)]
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
    if ADDRESS.match(value):
        raise BadRow(f"the picture {value[:80]} is an address: nothing is fetched; download it, and give its path")
    path = located(value, folder)
    if not path.is_file():
        raise BadRow(f"no image file {path} (of a column that holds no pictures, take it out)")
    return str(path.absolute())


def located(name: str, folder: Path | None) -> Path:
    """Returns where a file lies that rows of a folder name."""
    return (folder or Path()) / name.removeprefix("file://")


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


def pillow() -> Any:
    """Returns `PIL.Image`; raises `LuthierError` with the extra that brings it."""
    try:
        from PIL import Image
    except ImportError:
        raise LuthierError("images need pillow: pip install 'luthier[vision]'.") from None
    return Image


def opened(names: Sequence[str]) -> list[Any]:
    """Returns pictures (pillow's, in RGB) by their names; raises `BadRow` for what cannot be read, or is too large.

    Their sizes are looked at before any of them is unpacked. Pillow is held to decoders of its own: for some formats it
    runs other programs.
    """
    read = pillow().open
    with guarded("unreadable image", BadRow):
        found = [read(_bytes(name), formats=SENT if DATA.match(name) else FORMATS) for name in names]
        pixels = sum(picture.width * picture.height for picture in found)
        if pixels > MOST_PIXELS:
            raise BadRow(f"pictures of {pixels:,} pixels together; expected at most {MOST_PIXELS:,}")
        return [picture.convert("RGB") for picture in found]


def _bytes(name: str) -> Any:
    if not (start := DATA.match(name)):
        return name
    try:
        return io.BytesIO(base64.b64decode(name[start.end() :], validate=True))
    except binascii.Error as error:
        raise BadRow(f"a picture's data: URL is not base64: {error}") from None


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a row as a page shows it."""

    name: str | None
    """The file; None for one that lies in the row itself."""
    url: str
    """A small copy, as a `data:` URL."""


def thumbnails(pictures: Sequence[Any]) -> list[Thumbnail]:
    """Returns small copies of the pictures of a row, as examples hold them: named, as bytes, or pillow's."""
    return [_thumbnail(_named(each, None)) for each in pictures[:MOST_SHOWN]]


MOST_SHOWN, SHOWN_SIDE = 4, 160
"""Pictures of a row that are shown, and the pixels of a side."""


def _thumbnail(name: str) -> Thumbnail:
    [picture] = opened([name])
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return Thumbnail(None if DATA.match(name) else name, _url(_saved(picture)))


class Seen(list[int]):
    """The tokens of a prompt with pictures; `inputs` are what its model reads beside them.

    `made` is what the processor made of the pictures, where it is kept; else they are opened when they are read.
    """

    def __init__(
        self,
        ids: Sequence[int],
        columns: Mapping[str, Sequence[int]],
        names: Sequence[str],
        eyes: Eyes,
        made: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(ids)
        self.kept: dict[str, Any] = {NAMES: list(names), **columns}
        """As a feature keeps it."""
        self._columns, self._names, self._eyes, self._made = columns, names, eyes, made

    def inputs(self, tokens: int) -> dict[str, Tensor]:
        """Returns the pictures' inputs, and the columns [1, tokens] of so many tokens, the prompt's and more."""
        import torch

        found = {name: torch.tensor([filled(values, tokens)]) for name, values in self._columns.items()}
        return found | dict(self._eyes.inputs(opened(self._names)) if self._made is None else self._made)


def filled(column: Sequence[int], tokens: int) -> list[int]:
    """Returns a column of tokens of pictures, with zeros for those behind it."""
    return [*column, *[0] * (tokens - len(column))]


def seen_in(prompt: Sequence[int]) -> Seen | None:
    """Returns a prompt that has pictures; None for any other."""
    return prompt if isinstance(prompt, Seen) else None


# --- tokens -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unfolded:
    """A text whose pictures take the tokens that the model's processor gives them."""

    ids: list[int]
    owner: list[int]
    """The number of the answer that each token belongs to, or -1."""
    columns: dict[str, list[int]]
    """Further columns, which tokens of pictures need."""
    inputs: dict[str, Tensor]
    """What the processor made of the pictures."""


def unfolded(text: str, ids: list[int], owner: list[int], names: Sequence[str], tokenizer: Any) -> Unfolded:
    """Returns the tokens of a text with pictures.

    Those before the first picture and behind the last are the text's own; between them no token is learned, or else
    each picture's are counted. (The processor may change white space around a picture, and with it the tokens there.)
    Raises `BadRow` where the model reads no pictures, where the template leaves one out, or where what the processor
    makes of the text is not the text with pictures in their places.
    """
    eyes = seeing(tokenizer)
    place = tokenizer.convert_tokens_to_ids(eyes.placeholder)
    if (there := ids.count(place)) != len(names):
        raise BadRow(f"the chat template renders {there} of the row's {len(names)} pictures ({eyes.placeholder})")
    pictures = opened(names)
    with guarded("the model's processor does not take the row's pictures", BadRow):
        whole, columns, inputs = eyes.read(text, pictures)
    lead, tail = _common(ids, whole), _common(ids[::-1], whole[::-1])
    tail = min(tail, len(ids) - lead, len(whole) - lead)
    if max(owner[lead : len(ids) - tail], default=-1) < 0:
        between = [-1] * (len(whole) - lead - tail)
        return Unfolded(whole, owner[:lead] + between + owner[len(ids) - tail :], columns, inputs)
    return Unfolded(whole, _counted(eyes, ids, whole, owner, place, pictures), columns, inputs)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _counted(
    eyes: Eyes, ids: list[int], whole: list[int], owner: list[int], place: int, pictures: Sequence[Any]
) -> list[int]:
    """Whose each token is where answers stand between pictures, by how many tokens each picture takes alone."""
    with guarded("the model's processor does not take the row's pictures", BadRow):
        sizes = iter([len(eyes.read(eyes.placeholder, [picture])[0]) for picture in pictures])
    made: list[int] = []
    whose: list[int] = []
    for token, answer in zip(ids, owner, strict=True):
        size = next(sizes) if token == place else 1
        made += whole[len(made) : len(made) + size] if token == place else [token]
        whose += [answer] * size
    if made != whole:
        raise BadRow("the model's processor splits the text of a row with pictures otherwise than its tokenizer")
    return whose


def check_blind(ids: Sequence[int], tokenizer: Any) -> None:
    """Raises `BadRow` where a text without pictures holds what stands for one in the eyes of its model."""
    for mark in () if (eyes := eyes_of(tokenizer)) is None else eyes.marks:
        if tokenizer.convert_tokens_to_ids(mark) in ids:
            raise BadRow(f"the text holds {mark!r}, which stands for a picture, and none is given; take it out")


def seeing(tokenizer: Any) -> Eyes:
    """Returns what makes inputs of pictures beside a tokenizer; raises `BadRow` where its model reads none."""
    if (eyes := eyes_of(tokenizer)) is None:
        raise BadRow(f"the row has pictures, and {why_blind(tokenizer)}")
    return eyes

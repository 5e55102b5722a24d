"""What a model that reads pictures beside text has for them: transformers' processor, found by its tokenizer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.guard import guarded, reason
from luthier.models.trust import config_at, trusted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Eyes:
    """What makes inputs of pictures for a model that reads them beside text."""

    processor: Any
    """The model's processor (of transformers), with a tokenizer of its own."""
    placeholder: str
    """The token that chat templates write for a picture."""
    marks: tuple[str, ...]
    """All tokens that stand for pictures."""

    def read(self, text: str, pictures: Sequence[Any]) -> tuple[list[int], dict[str, list[int]], dict[str, Tensor]]:
        """Returns the tokens of a rendered text whose placeholders unfold, the columns that go with them, and what the
        model reads beside, of the pictures in their order."""
        out = dict(self.processor(text=[text], images=list(pictures), add_special_tokens=False, return_tensors="pt"))
        ids = out.pop("input_ids")
        out.pop("attention_mask", None)
        columns = {name: value[0].tolist() for name, value in out.items() if value.shape == ids.shape}
        return ids[0].tolist(), columns, {name: value for name, value in out.items() if name not in columns}

    def inputs(self, pictures: Sequence[Any]) -> dict[str, Tensor]:
        """Returns what the model reads beside tokens, of pictures in their order."""
        return self.read(self.placeholder * len(pictures), pictures)[2]


_EYES: weakref.WeakKeyDictionary[Any, Eyes] = weakref.WeakKeyDictionary()
"""By the tokenizer of a model. A processor has a tokenizer of its own, so that none of these keeps another alive."""
_BLIND: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""Why a tokenizer of a model that reads pictures has none."""


def eyes_of(tokenizer: Any) -> Eyes | None:
    """Returns what makes inputs of pictures beside a tokenizer; None where its model reads none."""
    try:
        return _EYES.get(tokenizer)
    except TypeError:  # None, or a stand-in that no weak reference can be made to
        return None


def why_blind(tokenizer: Any) -> str:
    """Returns why rows of a tokenizer without `eyes_of` have no pictures."""
    return f"this model reads pictures, but {_BLIND[tokenizer]}" if tokenizer in _BLIND else "this model reads none"


def give_eyes(tokenizer: Any, processor: Any) -> None:
    """Lets rows that this tokenizer encodes have pictures."""
    names = (getattr(processor, name, None) for name in ("image_token", "boi_token"))
    _EYES[tokenizer] = Eyes(processor, _placeholder(processor), tuple(name for name in names if name))


def reads_pictures(config: Any) -> bool:
    """Returns whether a configuration is of a decoder that reads pictures beside text."""
    import transformers

    known = transformers.AutoModelForImageTextToText._model_mapping
    return not getattr(config, "is_encoder_decoder", False) and type(config) in known


def seeing_as(tokenizer: Any, other: Any) -> Any:
    """Returns a tokenizer, a copy of the `other`, that has its eyes too."""
    if (eyes := eyes_of(other)) is not None:
        _EYES[tokenizer] = eyes
    return tokenizer


def see(tokenizer: Any, path: Path | str, config: Any, **source: Any) -> None:
    """Joins the tokenizer of a decoder that reads pictures with its processor, so that rows may have pictures, and
    gives it the processor's chat template where it has none; leaves others as they are."""
    import transformers

    config = config or config_at(path, **source)
    if not reads_pictures(config):
        return

    try:
        processor = transformers.AutoProcessor.from_pretrained(path, trust_remote_code=trusted(), **source)
    except Exception as error:  # a folder of text alone, a library that is not installed
        _BLIND[tokenizer] = f"its processor does not load ({reason(error, bare=True)})"
        return
    if not isinstance(processor, transformers.ProcessorMixin):
        _BLIND[tokenizer] = "its folder holds no processor's files"
        return
    tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    give_eyes(tokenizer, processor)


def save_processor(processor: Any, folder: Path) -> None:
    """Saves what prepares a model's inputs into its folder; a tokenizer that sees, with what it sees by."""
    if (eyes := eyes_of(processor)) is not None:
        eyes.processor.save_pretrained(folder)
    processor.save_pretrained(folder)


def _placeholder(processor: Any) -> str:
    """Gemma 3's templates open a picture (`boi_token`), others stand for it."""
    names = [getattr(processor, name, None) for name in ("image_token", "boi_token")]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    text = ""
    if processor.chat_template:
        with guarded("the chat template of the model's processor does not render a picture"):
            text = processor.apply_chat_template([turn], tokenize=False)
    return next((name for name in names if name and text.count(name) == 1), names[0] or "<image>")

"""A byte-level BPE tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.convert._splits import BY_NAME, DIGIT, GPT2, UNREAD, Split

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""Keys of the metadata by what transformers calls the token; GGUF spells the separator so."""
_TEMPLATE = "tokenizer.chat_template"


class Metadata:
    """What a GGUF file says of its tokenizer."""

    def __init__(self, weights: Path, reader: Any) -> None:
        self.weights, self._reader = weights, reader

    def __call__(self, key: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.<key>`."""
        return self.of(f"tokenizer.ggml.{key}", default)

    def of(self, key: str, default: Any = None) -> Any:
        """Returns the value of any key."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def templates(self) -> str | dict[str, str] | None:
        """Returns the chat template, or all of them by name where there are several."""
        named = {name: self.of(f"{_TEMPLATE}.{name}") for name in self.of("tokenizer.chat_templates", [])}
        found = {"default": self.of(_TEMPLATE), **named}
        found = {name: text for name, text in found.items() if text is not None}
        return found if set(found) - {"default"} else found.get("default")


def byte_level(said: Metadata) -> Any:
    """The tokenizer of a file whose `tokenizer.ggml.model` is gpt2: it gives the tokens that the model was trained on.

    Raises `LuthierError` for a vocabulary that contradicts itself, and for a way to split text that is not known.
    """
    from tokenizers import AddedToken, decoders
    from transformers import PreTrainedTokenizerFast

    split = _split(said)
    core = _core(said, split)
    core.pre_tokenizer, core.decoder = pre_tokenizer(split), decoders.ByteLevel()
    tokens = said("tokens")
    special = {name: _token(said, tokens, key) for name, key in _SPECIAL.items()}
    special = {name: AddedToken(t, normalized=False, special=True) for name, t in special.items() if t is not None}
    core.add_special_tokens([*special.values(), *_of_type(said, tokens, 3, True)])
    core.add_tokens(_of_type(said, tokens, 4, False))
    if processor := _ends(said, split, special, core):
        core.post_processor = processor
    made = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)
    made.chat_template = said.templates()
    return made


def _split(said: Metadata) -> Split:
    name = said("pre") or "default"
    if name == "default":
        warnings.warn(
            f"{said.weights.name} does not say how its model splits text before merging (tokenizer.ggml.pre), as files "
            "of before May 2024: it is read as llama.cpp reads such files. If answers are poor, take a newer file.",
            stacklevel=2,
        )
        return BY_NAME["default"]
    if name in BY_NAME:
        return BY_NAME[name]
    known = ", ".join(sorted(each for each in BY_NAME if each != "default"))
    why = UNREAD.get(name, "which is not known here")
    raise LuthierError(
        f"{said.weights.name} splits text before merging by the rule {name!r}: {why}. Read by another rule, it would "
        f"give tokens that the model was not trained on. Known are: {known}. Load the model from its folder of "
        "safetensors with its tokenizer.json instead."
    )


def pre_tokenizer(split: Split) -> Any:
    """The steps of a split as tokenizers has them, those that it has a name for by that name."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from tokenizers.pre_tokenizers import Split as Step

    last = split.steps[-1] == GPT2
    steps = [
        Digits(individual_digits=True) if step == DIGIT else Step(Regex(step), "isolated")
        for step in (split.steps[:-1] if last else split.steps)
    ]
    return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=last)])


def _core(said: Metadata, split: Split) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokens, merges = said("tokens"), said("merges")
    if not tokens or merges is None:
        raise LuthierError(f"{said.weights.name} holds no vocabulary with merges (tokenizer.ggml.tokens, .merges).")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise LuthierError(f"{said.weights.name} holds a token twice (tokenizer.ggml.tokens); it is damaged.")
    pairs = [_pair(merge) for merge in merges]
    lacking = next((pair for pair in pairs if not {*pair, "".join(pair)} <= vocabulary.keys()), None)
    if lacking is not None:
        raise LuthierError(
            f"{said.weights.name} merges {lacking}, and its vocabulary lacks one of these; it is damaged."
        )
    return Tokenizer(BPE(vocab=vocabulary, merges=pairs, ignore_merges=split.whole))


def _pair(merge: str) -> tuple[str, str]:
    """The two parts; the first one may be a space itself."""
    place = merge.find(" ", 1)
    return merge[:place], merge[place + 1 :]


def _token(said: Metadata, tokens: list[str], key: str) -> str | None:
    number = said(key)
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None


def _of_type(said: Metadata, tokens: list[str], kind: int, special: bool) -> list[Any]:
    """The tokens of a type (3: control, 4: of the user), found in a text before it is split."""
    from tokenizers import AddedToken

    types = said("token_type") or []
    return [
        AddedToken(token, normalized=False, special=special)
        for token, each in zip(tokens, types, strict=False)
        if each == kind
    ]


def _ends(said: Metadata, split: Split, special: dict[str, Any], core: Any) -> Any:
    """What is put around a text: the tokens of its beginning and end, where the file (or the split) wants them."""
    from tokenizers.processors import TemplateProcessing

    wanted = {"bos_token": said("add_bos_token", split.begins), "eos_token": said("add_eos_token", False)}
    around = {name: str(special[name]) for name, flag in wanted.items() if flag and name in special}
    if not around:
        return None
    bos, eos = around.get("bos_token", ""), around.get("eos_token", "")
    return TemplateProcessing(
        single=[each for each in (bos, "$A", eos) if each],
        pair=[each for each in (bos, "$A", eos, bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if each],
        special_tokens=[(token, core.token_to_id(token)) for token in set(around.values())],
    )

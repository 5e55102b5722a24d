"""A tokenizer of transformers as GGUF's metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.convert._splits import DIGIT, GPT2, SPLITS, Split

Steps = tuple[str, ...]


def _steps(split: Split) -> Steps:
    """The steps of a split in the words of `_step`."""
    last = split.steps[-1] == GPT2
    named = ("digits" if step == DIGIT else step for step in (split.steps[:-1] if last else split.steps))
    return (*named, "bytes split" if last else "bytes")


NAMES: Mapping[tuple[Steps, bool], str] = {
    (_steps(split), split.whole): split.names[0] for split in reversed(SPLITS) if split.names != ("default",)
}
"""By how text is split before merging, and whether a word of the vocabulary stays whole: the name by which llama.cpp
does so. A wrong name raises nothing there: it reads other tokens than the model was trained on."""


def describe(writer: Any, tokenizer: Any, rows: int) -> None:
    """Writes the vocabulary of `rows` tokens, how text is split into it, the special tokens and the chat template."""
    core = core_of(tokenizer)
    kind = kind_of(core)
    tokens, types = _vocabulary(tokenizer, core, rows)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    _KINDS[kind](writer, core, tokens)
    writer.add_token_types(types)
    _special(writer, tokenizer)
    template = tokenizer.chat_template
    if template:
        named = isinstance(template, dict) and [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(named or template)


def core_of(tokenizer: Any) -> dict[str, Any]:
    """Returns `tokenizer.json`; raises `LuthierError` for what is not a fast tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise LuthierError(f"{type(tokenizer).__name__} is not a tokenizer that GGUF can hold; it must be a fast one.")
    return json.loads(backend.to_str())


def kind_of(core: dict[str, Any]) -> str:
    """Returns `tokenizer.ggml.model`: "gpt2" merges bytes, "llama" merges characters as SentencePiece does. Raises
    `LuthierError` for the other kinds, and for a split that llama.cpp has no name for."""
    model = core["model"]
    if model["type"] != "BPE" or not model["merges"]:
        kind = model["type"] if model["type"] != "BPE" else "BPE without merges"
        raise LuthierError(f"the tokenizer is {kind}; GGUF is written for byte-level and SentencePiece-like BPE.")
    if model.get("byte_fallback"):
        return "llama"
    _split_name(core)
    return "gpt2"


def _split_name(core: dict[str, Any]) -> str:
    steps = tuple(_step(each) for each in _listed(core["pre_tokenizer"], "pretokenizers"))
    found = NAMES.get((steps, bool(core["model"].get("ignore_merges"))))
    normal = [each["type"] for each in _listed(core["normalizer"], "normalizers")]
    if found is None or set(normal) - {"NFC"}:
        raise LuthierError(
            f"llama.cpp's ways to split text before merging ({', '.join(sorted(NAMES.values()))}) are not this "
            f"tokenizer's: {', '.join((*normal, *steps)) or 'no split'}. Export it merged and try llama.cpp's own "
            "converter."
        )
    return found


def _listed(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if part is None else part[key] if part["type"] == "Sequence" else [part]


def _step(part: dict[str, Any]) -> str:
    """One pre-tokenizer in a word, or its expression."""
    kind = part["type"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return "bytes split" if part["use_regex"] else "bytes"
    if kind == "Digits" and part["individual_digits"]:
        return "digits"
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return str(part["pattern"].get("Regex", part["pattern"]))
    return json.dumps(part)


def _vocabulary(tokenizer: Any, core: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(vocabulary) >= rows:
        raise LuthierError(f"the tokenizer has tokens up to {max(vocabulary)}, and the model {rows} rows for them.")
    added = {each["id"]: each["special"] for each in core["added_tokens"]}
    unknown, falls_back = core["model"].get("unk_token"), core["model"].get("byte_fallback")

    def kind(number: int, token: str) -> TokenType:
        if falls_back and token == unknown:
            return TokenType.UNKNOWN
        if number in added:
            return TokenType.CONTROL if added[number] else TokenType.USER_DEFINED
        return TokenType.BYTE if falls_back and _is_byte(token) else TokenType.NORMAL

    tokens = [vocabulary.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [kind(i, tokens[i]) if i in vocabulary else TokenType.UNUSED for i in range(rows)]
    return tokens, [int(each) for each in types]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _byte_level(writer: Any, core: dict[str, Any], tokens: list[str]) -> None:
    writer.add_tokenizer_pre(_split_name(core))
    writer.add_token_merges([" ".join(pair) for pair in _merges(core)])


def _sentencepiece(writer: Any, core: dict[str, Any], tokens: list[str]) -> None:
    """llama.cpp merges the pair whose token has the highest score; the earlier a merge, the higher it is."""
    earliest: dict[str, int] = {}
    for place, (left, right) in enumerate(_merges(core)):
        earliest.setdefault(left + right, place)
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(earliest.get(token, len(earliest) if len(token) > 1 else 0)) for token in tokens])
    steps = _listed(core["pre_tokenizer"], "pretokenizers") + _listed(core["normalizer"], "normalizers")
    opens = any(
        each["type"] == "Prepend" or (each["type"] == "Metaspace" and each["prepend_scheme"] != "never")
        for each in steps
    )
    writer.add_add_space_prefix(opens)


_KINDS: Mapping[str, Callable[[Any, dict[str, Any], list[str]], None]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _merges(core: dict[str, Any]) -> list[list[str]]:
    return [each.split(" ", 1) if isinstance(each, str) else each for each in core["model"]["merges"]]


def adds_bos(tokenizer: Any) -> bool:
    """Returns whether a text begins with BOS, which whoever reads the file then puts there."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _special(writer: Any, tokenizer: Any) -> None:
    told = [
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ]
    for number, tell in told:
        if number is not None:
            tell(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)

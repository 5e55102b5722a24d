"""What an answer has to match: a JSON schema, a regular expression or a grammar, as masks over the next token.

The engine is llguidance (Earley parser over a lexer of derivatives; github.com/guidance-ai/llguidance): a token may
come next if some completion of the text with it matches.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import LuthierError

KEPT = 64
"""Compiled grammars that are kept."""
JSON_OPTIONS = {"whitespace_pattern": " ?", "lenient": False}
"""One space at most between the parts of JSON, so that no model can go on with spaces for ever; a keyword of a schema
that llguidance does not know is an error."""
ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Grammar:
    """What an answer has to match as a whole."""

    kind: Literal["json", "regex", "lark"]
    """`text` is a JSON schema, a regular expression (Rust's syntax), or a grammar in llguidance's Lark."""
    text: str


def of_schema(schema: Any) -> Grammar:
    """Returns the grammar of JSON that follows a schema; True stands for any JSON."""
    return Grammar("json", json.dumps({} if schema is True else schema, sort_keys=False))


def inline(schema: Any) -> str:
    """Returns a schema as it stands within a grammar in Lark."""
    return "%json " + json.dumps({**({} if schema is True else schema), "x-guidance": JSON_OPTIONS})


class Compiled:
    """A grammar, compiled for the tokens of one model."""

    def __init__(self, matcher: Any) -> None:
        self._matcher, self._lock = matcher, threading.Lock()

    def start(self) -> Constraint:
        """Returns a new row's place at the start of the grammar."""
        with self._lock:
            return Constraint(self._matcher.deep_copy())


class Grammars:
    """Compiles grammars for the tokens of one model; the newest are kept. Any thread may ask."""

    def __init__(self, tokenizer: Any, tokens: int, stops: Collection[int]) -> None:
        """`tokens` is how many logits the model has, `stops` are those that end an answer."""
        self._given, self._count, self._stops = tokenizer, tokens, sorted(stops)
        self._tokens: Any = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()

    def compiled(self, grammar: Grammar) -> Compiled:
        """Compiles a grammar, which takes a moment. Raises `LuthierError` for one that is wrong, with what llguidance
        says, and where llguidance is not installed or does not take the model's tokenizer."""
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = self._compile(grammar)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(grammar)
            return self._kept[grammar]

    def _compile(self, grammar: Grammar) -> Compiled:
        library = llguidance()
        if self._tokens is None:
            self._tokens = self._read(library)
        made = library.LLMatcher(self._tokens, source_of(library, grammar), log_level=0)
        if not made.is_error():
            made.compute_bitmask()  # once here, so that no row waits for what all rows share
        if made.is_error():
            raise LuthierError(f"the {_NAMES[grammar.kind]} cannot be used: {_short(made.get_error())}")
        return Compiled(made)

    def _read(self, library: Any) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self._given, n_vocab=self._count, eos_token=self._stops or None)
        except ValueError as error:
            raise LuthierError(
                f"answers cannot be held to a grammar: llguidance does not take this model's tokenizer ({error})."
            ) from None


_NAMES = {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}


def _short(text: str) -> str:
    return text.strip().split("\n")[0][:300]


def source_of(library: Any, grammar: Grammar) -> str:
    """Returns a grammar in llguidance's own form."""
    make = library.LLMatcher
    if grammar.kind == "regex":
        return make.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return make.grammar_from_lark(grammar.text)
    try:
        return make.grammar_from_json_schema(grammar.text, overrides=JSON_OPTIONS)
    except ValueError as error:
        raise LuthierError(f"the JSON schema cannot be used: {_short(str(error))}") from None


def llguidance() -> Any:
    """Returns the library; raises `LuthierError` where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise LuthierError("answers in a given form need llguidance: pip install 'luthier[grammar]'") from None
    return llguidance


class Constraint:
    """Where one row stands in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self.complete = False
        """The answer matches, and nothing more may follow."""
        self.why = ""
        """Why the grammar could not be followed further; empty while it can."""

    def took(self, token: int) -> None:
        """The row has got a token."""
        self.matcher.consume_token(token)
        if self.matcher.is_error():
            self.why = _short(self.matcher.get_error())
        self.complete = not self.why and self.matcher.is_stopped()


def forbidden(constraints: Sequence[Constraint | None], width: int) -> Tensor:
    """Returns which tokens may not come next, bool [rows, width]; of a row without a constraint all may."""
    words = np.full((len(constraints), (width + 31) // 32), -1, dtype=np.int32)
    for row, each in zip(words, constraints, strict=True):
        if each is not None and (each.why or each.complete):
            row[:] = 0
        elif each is not None:
            each.matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
    bits = np.unpackbits(~words.view(np.uint8), axis=1, count=width, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)

"""Selectors (`where`): a small language whose words are sets of sites.

all-linear                  the linear layers of the blocks that a pass calls (never the output head)
stream                      the residual stream after each block
embeddings, head, experts   embedding tables; linear layers after the blocks; 3-D expert parameters
logits                      what leaves the last linear layer after the blocks: the model's output
conv                        the convolutions, as matrices of the unfolded input; conv(*.resnets.*) some
attention                   the keys and values of each attention layer; attention(*.3.*) of some
q_proj, v_proj, *.mlp.*     linear layers, tables and experts by name or glob; a comma joins names
output(mlp), input(o_proj)  the activation that leaves or enters any module
params(*.bias)              parameters themselves
layers(8, 16)               narrows: blocks 8 to 16, both included; layers(3; 9; -1) takes single ones
& | -                       and, or, without; `&` binds first, a comma before it: "q_proj, v_proj & layers(0, 3)"

Of a model that also sees or hears, `all-linear`, `stream` and `layers` mean its language model; a name means every
layer that bears it, so that `vision_tower.*` takes those of the part that sees.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from luthier.core.contracts.site import Site, Sites
from luthier.core.errors import LuthierError, near
from luthier.core.sites.scope import Layers, Scope
from luthier.core.sites.structure import base_parameters, unwrapped

# --- words -----------------------------------------------------------------------------------------


def _all_linear(scope: Scope) -> Sites:
    linear = [site for site in scope.named if site.kind == "affine"]
    if scope.stacks:
        return _layers_called(
            scope, "all-linear", Sites(site for site in linear if site.layer is not None and scope.speaks(site.path))
        )
    return Sites(linear[:-1])  # a plain network: all but its last, the output head


def _layers_called(scope: Scope, word: str, sites: Sites) -> Sites:
    return _called(sites, word, [s for s in sites if s.kind == "affine" and s.path in scope.passed_over])


def _called(sites: Sites, word: str, left: list[Site]) -> Sites:
    """The sites without those of `left`, which no pass calls, as far as others are there, and says so."""
    if not left or len(left) == len(sites):
        return sites
    types = ", ".join(sorted({site.type for site in left}))
    warnings.warn(
        f"{word} leaves out {len(left)} places that a forward pass does not call as layers ({types}): what holds "
        "them reads their weights itself, has no use for them, or they map no single vectors. Layers named by "
        "themselves are adapted where they are read.",
        stacklevel=3,
    )
    return sites - Sites(left)


def _head(scope: Scope) -> Sites:
    linear = [site for site in scope.named if site.kind == "affine"]
    inside = [i for i, site in enumerate(linear) if site.layer is not None]
    after = inside[-1] + 1 if inside else len(linear) - 1
    return Sites(site for site in linear[after:] if site.layer is None)


def _logits(scope: Scope) -> Sites:
    return Sites(scope.activation(site.path, "stream") for site in _head(scope)[-1:])


def _stream(scope: Scope) -> Sites:
    sites = Sites(scope.activation(path, "stream") for path in scope.blocks if scope.speaks(path))
    return _called(sites, "stream", [site for site in sites if scope.idle(site.path)])


def _embeddings(scope: Scope) -> Sites:
    return Sites(site for site in scope.named if site.kind == "embedding")


def _experts(scope: Scope) -> Sites:
    return Sites(site for site in scope.named if site.kind == "param")


def _convolutions(scope: Scope, patterns: str = "*") -> Sites:
    listed = [p.strip() for p in patterns.split(",")]
    paths = [path for path in scope.modules if any(_matches(g, path) for g in listed)]
    return Sites(site for path in paths if (site := scope.convolution(path)) is not None)


def _attention(scope: Scope) -> Sites:
    from luthier.core.sites.attention import attention_shapes

    shapes = attention_shapes(scope.model) if isinstance(scope.model, PreTrainedModel) else {}
    if not shapes:
        raise LuthierError(
            f"no attention of {type(scope.model).__name__} goes through transformers' attention interface, "
            "so nothing can be put before its keys and values."
        )
    return Sites(Site(path, "cache", d_head, heads, scope.layer(path)) for path, (heads, d_head) in shapes.items())


WORDS: dict[str, Callable[[Scope], Sites]] = {
    "all-linear": _all_linear,
    "stream": _stream,
    "embeddings": _embeddings,
    "head": _head,
    "logits": _logits,
    "experts": _experts,
    "conv": _convolutions,
    "attention": _attention,
}


def _matches(pattern: str, path: str) -> bool:
    """A name matches the whole path or its last parts."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _activations(scope: Scope, patterns: str, kind: str) -> Sites:
    listed = [p.strip() for p in patterns.split(",")]
    paths = [p for p in scope.modules if p and any(_matches(g, p) for g in listed)]
    return Sites(scope.activation(path, kind) for path in paths)


def _parameters(scope: Scope, patterns: str) -> Sites:
    listed = [p.strip() for p in patterns.split(",")]
    paths = [path for path, _ in base_parameters(scope.model)]
    return Sites(scope.parameter(p) for p in paths if any(_matches(g, p) for g in listed))


def _attentions(scope: Scope, patterns: str) -> Sites:
    listed = [p.strip() for p in patterns.split(",")]
    return Sites(s for s in _attention(scope) if any(_matches(g, s.path) for g in listed))


def _layers(scope: Scope, arguments: str) -> Layers:
    try:
        groups = [[int(n) for n in group.split(",")] for group in arguments.split(";")]
        ranges = tuple((g[0], g[-1]) for g in groups if len(g) <= 2)
    except ValueError:
        ranges, groups = (), [[]]
    depth = scope.depth
    if len(ranges) != len(groups):
        raise LuthierError(
            f"layers({arguments}) is not understood; write layers(8, 16) for blocks 8 to 16 or "
            "layers(3; 9; 18) for single ones."
        )
    if any(not -depth <= i < depth for pair in ranges for i in pair):
        raise LuthierError(f"layers({arguments}) is outside the model's {depth} blocks (0 to {depth - 1}).")
    if backwards := [pair for pair in ranges if pair[0] % depth > pair[1] % depth]:
        first, last = backwards[0]
        raise LuthierError(
            f"layers({arguments}) holds no block: {first} comes behind {last}. Write the lower one first."
        )
    return Layers(ranges)


FUNCTIONS: dict[str, Callable[[Scope, str], Sites | Layers]] = {
    "layers": _layers,
    "input": lambda scope, patterns: _activations(scope, patterns, "input"),
    "output": lambda scope, patterns: _activations(scope, patterns, "stream"),
    "params": _parameters,
    "conv": _convolutions,
    "attention": _attentions,
}

# --- grammar ---------------------------------------------------------------------------------------

TOKEN = re.compile(r"\s*(?:(\w+)\(([^()]*)\)|([\w.*?\[\]][\w.*?\[\]-]*)|([&|,()-]))")


class _Parser:
    """expression := term (("|" | "-") term)*;  term := list ("&" list)*;  list := atom ("," atom)*"""

    def __init__(self, scope: Scope, text: str) -> None:
        self.scope, self.text, self.tokens = scope, text, self._scan(text)

    def _scan(self, text: str) -> list[tuple[str, str]]:
        tokens, end = [], 0
        while end < len(text.rstrip()):
            match = TOKEN.match(text, end)
            if match is None:
                raise LuthierError(f"where={text!r}: {text[end:].strip()[:12]!r} is not understood.")
            function, arguments, name, sign = match.groups()
            tokens.append((function, arguments) if function else ("name", name) if name else (sign, ""))
            end = match.end()
        return tokens

    def _next(self, *signs: str) -> str | None:
        if self.tokens and self.tokens[0][0] in signs and not self.tokens[0][1]:
            return self.tokens.pop(0)[0]
        return None

    def parse(self) -> Sites:
        result = self.expression()
        if self.tokens:
            raise LuthierError(f"where={self.text!r}: unexpected {self.tokens[0]} after a selection.")
        found = self._sites(result)
        if not found:
            raise LuthierError(
                f"where={self.text!r} selects nothing: each of its words matches something in "
                f"{type(self.scope.model).__name__}, and what & and - leave of that is empty. "
                "Names are joined by a comma or |, as in 'q_proj, k_proj'."
            )
        return found

    def _sites(self, value: Sites | Layers) -> Sites:
        if isinstance(value, Layers):
            raise LuthierError(
                f"where={self.text!r}: layers(…) narrows another selection; "
                "write 'all-linear & layers(8, 16)' or 'stream & layers(8, 16)'."
            )
        return value

    def expression(self) -> Sites | Layers:
        left = self.term()
        while sign := self._next("|", "-"):
            right = self.term()
            if sign == "-" and isinstance(right, Layers):
                right = right.keep(self._sites(left), self.scope)
            joined = Sites.__or__ if sign == "|" else Sites.__sub__
            left = joined(self._sites(left), self._sites(right))
        return left

    def term(self) -> Sites | Layers:
        left = self.listed()
        while self._next("&"):
            right = self.listed()
            if isinstance(left, Layers):
                left, right = right, left
            found = self._sites(left)
            left = right.keep(found, self.scope) if isinstance(right, Layers) else found & right
        return left

    def listed(self) -> Sites | Layers:
        result = self.atom()
        while self._next(","):
            result = self._sites(result) | self._sites(self.atom())
        return result

    def atom(self) -> Sites | Layers:
        if self._next("("):
            result = self.expression()
            if not self._next(")"):
                raise LuthierError(f"where={self.text!r}: a parenthesis is not closed.")
            return result
        if not self.tokens:
            raise LuthierError(f"where={self.text!r} ends too early; a name is expected.")
        head, rest = self.tokens.pop(0)
        if head == "name":
            return self._word(rest)
        if head not in FUNCTIONS:
            raise LuthierError(f"where={self.text!r}: no function {head!r}{near(head, FUNCTIONS)}")
        return self._found(FUNCTIONS[head](self.scope, rest), f"{head}({rest})")

    def _word(self, word: str) -> Sites | Layers:
        if word in WORDS:
            return self._found(WORDS[word](self.scope), word)
        matched = Sites(s for s in self.scope.named if _matches(word, s.path))
        return self._found(_layers_called(self.scope, word, matched), word)

    def _found(self, value: Sites | Layers, word: str) -> Sites | Layers:
        """Refuses a word that matches nothing, with near names."""
        if isinstance(value, Layers) or len(value):
            return value
        known = {p.rpartition(".")[2] for p in self.scope.modules} | {s.type for s in self.scope.named}
        inside = [p for p in self.scope.modules if _matches(word, p)]
        if word in WORDS:
            advice = f": it has {LACKING.get(word, 'none')}."
        elif inside:
            advice = f"; {inside[0]!r} is not a linear layer: use {word}.* for the layers in it, or output({word})."
        else:
            advice = near(word, [*known, *WORDS]) or "."
        names = sorted({n for s in self.scope.named if not (n := s.path.rpartition(".")[2]).isdigit()})
        raise LuthierError(
            f"where={self.text!r}: {word!r} matches nothing in {type(self.scope.model).__name__}{advice} "
            f"Layers by name: {', '.join(names) or 'none'}. "
            f"Words: {', '.join(WORDS)}."
        )


LACKING = {
    "all-linear": "no linear layer that it calls, besides its head",
    "stream": "no list of blocks that hold linear layers",
}
"""What a model lacks in which a word matches nothing."""


def select(model: nn.Module, where: str | Iterable[Site], *, uncalled: bool = False) -> Sites:
    """Selects the sites of `model` that `where` names (see this module's docstring), in the model's order.

    A word that matches nothing raises `LuthierError` with near names, and so does a selection of no sites. Sites
    already chosen pass through. Places that a small pass does not call are left out, among others that it does, with a
    warning; not so with `uncalled`.
    """
    if not isinstance(where, str):
        return Sites(where)
    return _Parser(Scope(unwrapped(model), uncalled), where).parse()

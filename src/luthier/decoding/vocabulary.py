"""Models that choose a token together must mean the same by its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.errors import LuthierError


def check_tokenizers(tokenizers: Mapping[str, Any]) -> None:
    """Raises unless all tokenizers, by what they are called in the message, number the same tokens alike."""
    (first, own), *others = tokenizers.items()
    wanted = own.get_vocab()
    for name, tokenizer in others:
        if tokenizer is not own and (found := tokenizer.get_vocab()) != wanted:
            raise LuthierError(
                f"the models must share one vocabulary. {_difference(first, wanted, name, found)} Take models of one "
                "family, or tuned from one another."
            )


def _difference(first: str, one: Mapping[str, int], second: str, other: Mapping[str, int]) -> str:
    token = min(t for t in {*one, *other} if one.get(t) != other.get(t))
    told = [f"{each[token]}" if token in each else "missing" for each in (one, other)]
    return (
        f"The tokenizer of {first} has {len(one):,} tokens and that of {second} {len(other):,}; {token!r} is "
        f"{told[0]} in the one and {told[1]} in the other."
    )


def common_width(models: Mapping[str, Any], tokenizer: Any) -> int:
    """Returns how many logits all models have: the table of a larger model may be padded behind the last token.

    Raises where a model has fewer than the tokenizer has tokens.
    """
    sizes = {name: model.config.get_text_config().vocab_size for name, model in models.items()}
    needed = 1 + max(tokenizer.get_vocab().values())
    short = [f"{name} has {size:,}" for name, size in sizes.items() if size < needed]
    if short:
        raise LuthierError(f"the tokenizer numbers {needed:,} tokens, and the model of {short[0]} logits.")
    return min(sizes.values())

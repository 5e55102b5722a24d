"""Answers of several adapters that take turns while decoding: the choice of a tool, and the arguments of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, near

if TYPE_CHECKING:
    from luthier.engine.settings import Sampling


def check_adapters(model: Any, selection: str | None, arguments: Mapping[str, str]) -> None:
    """Raises for an adapter that is not attached; no selection adapter (None) is the base."""
    from luthier.core.adapters.attach import adapter_names, state_of

    names = adapter_names(state_of(model))
    for name in [*([selection] if selection is not None else []), *arguments.values()]:
        if name not in names:
            raise LuthierError(f"no adapter named {name!r}{near(name, names)} There are: {', '.join(names)}.")
    if not arguments:
        raise LuthierError("no adapter of arguments is given; expected one at least, as {tool: adapter}.")


def swapped(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    selection: str | None,
    arguments: Mapping[str, str],
) -> list[list[int]]:
    """Returns the tokens that follow each prompt, each token by the adapter whose it is (`engine.turns`).

    The arguments of a tool without an adapter of its own stay with `selection` (None: the base). Where the adapter
    changes, the new one reads the prompt and the answer so far again, so that each token is what a model with that
    adapter alone gives behind them. Raises `LuthierError` for a model whose rows cannot share a batch.
    """
    from luthier.data.calls import CallFormat
    from luthier.data.pictures import seen_in
    from luthier.engine.sampler import Ask, Sampler
    from luthier.engine.settings import within
    from luthier.engine.stops import stop_ids
    from luthier.engine.turns import Turns
    from luthier.models import positions

    check_adapters(model, selection, arguments)
    turns = Turns(CallFormat.of(tokenizer), tokenizer, arguments)
    most = [within(sampling, len(prompt), positions(model)).max_new_tokens for prompt in prompts]
    asks = [Ask(tuple(each), sampling.seed + row, most[row], seen_in(each)) for row, each in enumerate(prompts)]
    sampler = Sampler(model, tokenizer, selection, turns=turns)
    stops = stop_ids(model, tokenizer)
    drawn = sampler(asks, sampling.temperature, sampling.top_p)
    return [[*each.ids[:-1]] if each.ids and each.ids[-1] in stops else [*each.ids] for each in drawn]

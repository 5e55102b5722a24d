"""Answers of several adapters that take turns while decoding: the choice of a tool, and the arguments of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, near

if TYPE_CHECKING:
    from luthier.data.calls import CallFormat
    from luthier.evaluating.sampling import Sampling


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
    told: list[list[str | None]] | None = None,
) -> list[list[int]]:
    """Returns the tokens that follow each prompt, each token by the adapter whose it is (`data.calls`).

    The arguments of a tool without an adapter of its own stay with `selection` (None: the base). Where the adapter
    changes, the new one reads the prompt and the answer so far again, so that each token is what a model with that
    adapter alone gives behind them. `told` gets the adapter of each token.
    """
    import torch

    from luthier.core.adapters.control import acting, set_acting
    from luthier.core.sites.probe import eval_mode
    from luthier.data.calls import CallFormat

    check_adapters(model, selection, arguments)
    format, before, found = CallFormat.of(tokenizer), acting(model), []
    try:
        with eval_mode(model), torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(sampling.seed)
            for prompt in prompts:
                row = Row(model, tokenizer, format, selection, arguments)
                found.append(row.answer(prompt, sampling))
                if told is not None:
                    told.append(row.told)
    finally:
        set_acting(model, before)
    return found


class Row:
    """One prompt and the answer so far."""

    def __init__(
        self, model: Any, tokenizer: Any, format: CallFormat, selection: str | None, arguments: Mapping[str, str]
    ) -> None:
        self.model, self.tokenizer, self.format = model, tokenizer, format
        self.selection, self.arguments = selection, arguments
        self.told: list[str | None] = []
        """The adapter of each token."""

    def adapter(self, ids: Sequence[int]) -> str | None:
        """Returns the adapter of the token behind these."""
        from luthier.data.calls import text_so_far

        owner = self.format.owner(text_so_far(ids, self.tokenizer))
        return self.selection if owner is None else self.arguments.get(owner, self.selection)

    def answer(self, prompt: list[int], sampling: Sampling) -> list[int]:
        """Returns the tokens of the answer, up to and without what ends it."""
        from luthier.core.adapters.control import use
        from luthier.engine.stops import stop_ids
        from luthier.evaluating.sampling import within
        from luthier.models import positions

        stops, ids, now = stop_ids(self.model, self.tokenizer), [], ""
        cache, behind = None, list(prompt)
        for _ in range(within(sampling, len(prompt), positions(self.model)).max_new_tokens):
            if (wanted := self.adapter(ids)) != now:
                use(self.model, [] if wanted is None else wanted)
                now, cache, behind = wanted, None, [*prompt, *ids]
            token, cache = self.next(behind, len(prompt) + len(ids), cache, sampling)
            if token in stops:
                break
            ids.append(token)
            self.told.append(now)
            behind = [token]
        return ids

    def next(self, behind: list[int], length: int, cache: Any, sampling: Sampling) -> tuple[int, Any]:
        """Returns the next token and the cache, from the tokens that the cache lacks."""
        import torch

        device = self.model.device
        given = {
            "input_ids": torch.tensor([behind], device=device),
            "attention_mask": torch.ones(1, length, dtype=torch.long, device=device),
        }
        out = self.model(**given, past_key_values=cache, use_cache=True)
        return chosen(out.logits[0, -1].float(), sampling), out.past_key_values


def chosen(logits: Any, sampling: Sampling) -> int:
    """Returns the likeliest token at temperature 0, else one drawn from the `top_p` nucleus."""
    import torch

    if not sampling.temperature:
        return int(logits.argmax())
    p, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    kept = torch.where(p.cumsum(-1) - p < sampling.top_p, p, 0.0)
    return int(order[torch.multinomial(kept, 1)])

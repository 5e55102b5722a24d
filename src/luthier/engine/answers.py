"""Answers to many prompts: row by row by the engine, or a batch after another by transformers' own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.data import Collator, stop_text
from luthier.data.pictures import seen_in
from luthier.engine.settings import Sampling, within
from luthier.engine.stops import stop_ids, text_of
from luthier.models import positions

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.engine.sampler import Sampler

Answer = tuple[str, list[int]]
"""A text and its tokens."""


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch: int,
    done: Callable[[int], Any] = int,
    tasks: Sequence[str] | None = None,
) -> list[str]:
    """Returns the text that follows each of `prompts`, given as token ids; `done(n)` hears of every n finished.

    `tasks` names the task of each, for an adapter that goes by it.
    """
    return [text for text, _ in written(model, tokenizer, prompts, sampling, batch, done, tasks)]


def written(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch: int,
    done: Callable[[int], Any] = int,
    tasks: Sequence[str] | None = None,
) -> list[Answer]:
    """Returns what `answers` does, each with its tokens: up to the first that stops, which is one of them."""
    if batch < 1:
        raise LuthierError(f"batch is {batch}; expected at least 1.")
    if tasks is not None and len(tasks) != len(prompts):
        raise LuthierError(f"{len(tasks)} tasks for {len(prompts)} prompts; give one for each, or one for all.")
    engine = None if tasks is not None else _engine(model, tokenizer, batch)
    if engine is None and any(map(seen_in, prompts)):
        raise LuthierError(f"prompts with pictures: {type(model).__name__} is not decoded row by row, which they need.")
    if engine is not None:
        return _by_engine(engine, prompts, sampling, positions(model), done)
    return _by_batches(model, tokenizer, prompts, sampling, batch, done, tasks)


def _engine(model: Any, tokenizer: Any, rows: int) -> Sampler | None:
    """Rows that join and leave one batch; None for models that it cannot decode."""
    from luthier.engine.sampler import Sampler

    try:
        return Sampler(model, tokenizer, rows=rows)
    except LuthierError:
        return None


def _by_engine(
    engine: Sampler, prompts: Sequence[list[int]], sampling: Sampling, most: int | None, done: Callable[[int], Any]
) -> list[Answer]:
    """Every answer by a seed of its own, so that it does not depend on what is decoded beside it."""
    from luthier.engine.sampler import Ask

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    limits = [within(sampling, len(prompts[i]), most).max_new_tokens for i in order]
    asks = [
        Ask(tuple(prompts[i]), sampling.seed + i, limit, seen_in(prompts[i]))
        for i, limit in zip(order, limits, strict=True)
    ]
    drawn = dict(zip(order, engine(asks, sampling.temperature, sampling.top_p, done), strict=True))
    return [(drawn[place].text, list(drawn[place].ids)) for place in range(len(prompts))]


def _by_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch: int,
    done: Callable[[int], Any],
    tasks: Sequence[str] | None,
) -> list[Answer]:
    """By transformers' own loop, a batch after another: encoder-decoders, recurrent models, rows of different tasks."""
    import torch

    from luthier.core.adapters.control import routed
    from luthier.core.sites.probe import eval_mode

    found: list[Answer] = [("", [])] * len(prompts)
    stops, most = stop_ids(model, tokenizer), positions(model)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    with eval_mode(model), torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            taken = 1 if model.config.is_encoder_decoder else len(prompts[chosen[0]])
            with routed(model, tasks and [tasks[i] for i in chosen]):
                fitting = within(sampling, taken, most)
                new = _continue(model, tokenizer, [prompts[i] for i in chosen], fitting, stops)
            for i, ids in zip(chosen, new.tolist(), strict=True):
                found[i] = text_of(tokenizer, ids, stops), _up_to_stop(ids, stops, tokenizer)
            done(len(chosen))
    return found


def _up_to_stop(ids: list[int], stops: list[int], tokenizer: Any) -> list[int]:
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
    kept = ids[:end]
    while len(kept) > 1 and kept[-1] == tokenizer.pad_token_id and kept[-1] not in stops:  # behind a text that stops
        kept.pop()
    return kept


def _continue(model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Sampling, stops: list[int]) -> Tensor:
    """New token ids [rows, at most max_new_tokens], padded behind their stop."""
    seq2seq = model.config.is_encoder_decoder
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    collate = Collator(pad, "right" if seq2seq else "left")
    inputs = collate([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in prompts])
    config = sampling.config(stops, pad)
    stop = "" if seq2seq else stop_text(tokenizer)
    with _own_settings(model):
        out = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            generation_config=config,
            **({"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}),
        )
    return out[:, 1:] if seq2seq else out[:, inputs["input_ids"].shape[1] :]


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Without the checkpoint's sampling habits, which would fill in what is not said here."""
    from transformers import GenerationConfig

    before = model.generation_config
    keep = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "suppress_tokens")
    model.generation_config = GenerationConfig(**{name: getattr(before, name, None) for name in keep})
    try:
        yield
    finally:
        model.generation_config = before

"""The function `generate`: it generates text from prompts, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.data import Collator, Example, encode, encode_seq2seq, prompt_ids, stop_text
from luthier.data.pictures import seen_in
from luthier.engine.stops import PLACEHOLDER, stop_ids, text_of
from luthier.evaluating.sampling import Sampling, within
from luthier.evaluating.speech import written_down
from luthier.models import SPEECH, positions, task_of_model

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.engine.sampler import Sampler

Messages = list[dict[str, Any]]
"""A conversation: `{"role": …, "content": …}` for each turn."""
Answer = tuple[str, list[int]]
"""A text and its tokens."""
Tools = list[dict[str, Any]]


def generate(
    model: Any,
    processor: Any,
    prompts: Sequence[str] | Sequence[Messages] | Sequence[Example],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 8,
    tasks: str | Sequence[str] | None = None,
    tools: Tools | None = None,
    template: Mapping[str, Any] | None = None,
    arguments: Mapping[str, str] | None = None,
    selection: str | None = None,
) -> list[str]:
    """Generates one answer to each prompt, in their order, without special tokens.

    A model that writes down sounds takes their paths, or examples with a sound. Elsewhere a prompt is a list of
    messages, an example that ends before its answer (`data.load_prompts`), or a string: the user's turn where the
    tokenizer has a chat template, plain text elsewhere. Its tokens are those that stand before an answer in training;
    a `text` example is gone on with. Generation stops at the end of the turn,
    after `max_new_tokens`, or where a model with absolute positions has no more of them. `tasks` names the task of all
    prompts, or of each, for an adapter that goes by tasks. `tools` (JSON schemas) and `template` (variables of the chat
    template, `chat_template_kwargs`) are those of prompts that bring none of their own. `arguments` names the adapter
    that writes the arguments of a tool, by the tool's name; then `selection` (None: the base) writes all else,
    and answers keep the special tokens of calls. The model's mode and the global random state
    are left as they were.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    if task_of_model(model) == SPEECH:
        _refuse_idle(tasks=tasks, tools=tools, template=template, arguments=arguments, selection=selection)
        return written_down(model, processor, prompts, sampling, batch)
    if selection is not None and arguments is None:
        raise LuthierError("selection names the adapter that chooses tools; say who writes arguments (arguments).")
    if arguments is not None:
        if tasks is not None:
            raise LuthierError("arguments changes adapters while decoding, and tasks names one task; leave one out.")
        ids = tokenised(model, processor, prompts, tools, template)
        return _of_swapped(model, processor, ids, sampling, selection, arguments)
    told = [tasks] * len(prompts) if isinstance(tasks, str) else tasks
    ids = tokenised(model, processor, prompts, tools, template)
    return answers(model, processor, ids, sampling, batch, tasks=told)


def _refuse_idle(**given: Any) -> None:
    """Raises for settings of prompts in writing."""
    if idle := [name for name, value in given.items() if value]:
        raise LuthierError(f"the model writes down sounds, on which {', '.join(idle)} would not act; leave that out.")


def _of_swapped(
    model: Any,
    processor: Any,
    ids: list[list[int]],
    sampling: Sampling,
    selection: str | None,
    arguments: Mapping[str, str],
) -> list[str]:
    """The texts of answers in whose calls adapters take turns."""
    from luthier.data.calls import text_so_far
    from luthier.evaluating.swapped import swapped

    found = swapped(model, processor, ids, sampling, selection, arguments)
    return [text_so_far(each, processor) for each in found]


def tokenised(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Messages | Example],
    tools: Tools | None = None,
    template: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Returns the token ids of prompts as `generate` takes them."""
    examples = [_example(prompt, number) for number, prompt in enumerate(prompts, 1)]
    return [
        _ids(model, tokenizer, replace(e, tools=e.tools or tools, template={**(template or {}), **e.template}))
        for e in examples
    ]


def _example(prompt: str | Messages | Example, number: int) -> Example:
    if isinstance(prompt, Example):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages):
        raise LuthierError(f"prompt {number} is not a list of messages with a role and a content each.")
    if any(isinstance(m["content"], list) for m in messages):
        return _in_parts(messages, number)
    return Example(row=number, messages=messages, context=len(messages))


def _in_parts(messages: Messages, number: int) -> Example:
    """A conversation whose content stands in parts, pictures among them, read as rows are."""
    from luthier.data.pictures import placed
    from luthier.data.turns import turns

    try:
        found, pictures = placed(turns(messages, "messages")[0], None, None)
    except LuthierError as error:
        raise LuthierError(f"prompt {number}: {error}") from None
    return Example(row=number, messages=found, context=len(found), images=pictures)


def _ids(model: Any, tokenizer: Any, example: Example) -> list[int]:
    answer = replace(example, messages=[*(example.messages or []), PLACEHOLDER])
    if model.config.is_encoder_decoder:
        return (
            encode_seq2seq(answer, tokenizer, None)["input_ids"]
            if example.text is None
            else tokenizer(example.text)["input_ids"]
        )
    if example.text is not None:  # to go on with, as texts are learned
        return encode(example, tokenizer, max_length=None)["input_ids"][:-1]
    return prompt_ids(answer, tokenizer)


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

    from luthier.core.sites.probe import eval_mode
    from luthier.training.task_columns import routed

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

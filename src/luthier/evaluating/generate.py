"""The function `generate`: it generates text from prompts, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.data import Collator, Example, encode, encode_seq2seq, prompt_ids, stop_text
from luthier.models import positions

if TYPE_CHECKING:
    from torch import Tensor

Messages = list[dict[str, Any]]
"""A conversation: `{"role": …, "content": …}` for each turn."""
Tools = list[dict[str, Any]]
IGNORED = -100
"""Label of what is not learned."""
PLACEHOLDER = {"role": "assistant", "content": "a"}
"""Stands for the answer where a prompt has to be told from one."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, otherwise sampled from the `top_p` nucleus by the seed."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise LuthierError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1.")
        if self.temperature < 0:
            raise LuthierError(f"temperature is {self.temperature}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise LuthierError(f"top_p is {self.top_p}; expected above 0 and at most 1.")


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

    A prompt is a list of messages, an example that ends before its answer (`data.load_prompts`), or a string: the
    user's turn where the tokenizer has a chat template, plain text elsewhere. Its tokens are those that stand before an
    answer in training; a `text` example is gone on with. Generation stops at the end of the turn,
    after `max_new_tokens`, or where a model with absolute positions has no more of them. `tasks` names the task of all
    prompts, or of each, for an adapter that goes by tasks. `tools` (JSON schemas) and `template` (variables of the chat
    template, `chat_template_kwargs`) are those of prompts that bring none of their own. `arguments` names the adapter
    that writes the arguments of a tool, by the tool's name; then `selection` (None: the base) writes all else, prompts
    are answered one by one, and answers keep the special tokens of calls. The model's mode and the global random state
    are left as they were.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
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
    return Example(row=number, messages=messages, context=len(messages))


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
    import torch

    from luthier.core.sites.probe import eval_mode
    from luthier.training.task_columns import routed

    if batch < 1:
        raise LuthierError(f"batch is {batch}; expected at least 1.")
    if tasks is not None and len(tasks) != len(prompts):
        raise LuthierError(f"{len(tasks)} tasks for {len(prompts)} prompts; give one for each, or one for all.")
    texts = [""] * len(prompts)
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
                texts[i] = text_of(tokenizer, ids, stops)
            done(len(chosen))
    return texts


def _continue(model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Sampling, stops: list[int]) -> Tensor:
    """New token ids [rows, at most max_new_tokens], padded behind their stop."""
    from transformers import GenerationConfig

    seq2seq = model.config.is_encoder_decoder
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    collate = Collator(pad, "right" if seq2seq else "left")
    inputs = collate([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in prompts])
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=bool(sampling.temperature),
        num_beams=1,
        eos_token_id=stops or None,
        pad_token_id=pad,
        use_cache=True,
        **drawn,
    )
    stop = "" if seq2seq else stop_text(tokenizer)
    with _own_settings(model):
        out = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            generation_config=config,
            **({"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}),
        )
    return out[:, 1:] if seq2seq else out[:, inputs["input_ids"].shape[1] :]


def within(sampling: Sampling, taken: int, most: int | None) -> Sampling:
    """Returns it with the new tokens that fit behind those `taken`; raises `LuthierError` where none does."""
    if most is None:
        return sampling
    if taken >= most:
        raise LuthierError(f"a prompt has {taken} tokens, and the model has positions for {most}: shorten it.")
    return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, most - taken))


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


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: EOS, what the checkpoint stops at, and what the chat template ends a turn with."""
    known = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = [tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    if not model.config.is_encoder_decoder:
        found.append(_turn_end(tokenizer))
    return sorted({stop for stop in found if stop is not None})


def _turn_end(tokenizer: Any) -> int | None:
    """The last token that training on a conversation would teach."""
    turn = Example(row=1, messages=[{"role": "user", "content": "a"}, PLACEHOLDER])
    try:
        labels = encode(turn, tokenizer, max_length=None)["labels"]
    except LuthierError:  # a template that refuses so short a conversation tells nothing
        return None
    if stop_text(tokenizer):  # whose last token may stand anywhere
        return None
    return next(label for label in reversed(labels) if label != IGNORED)  # a line break may follow it


def text_of(tokenizer: Any, ids: list[int], stops: list[int]) -> str:
    """Returns what new tokens say, up to the first that stops."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stop = stop_text(tokenizer)
    return text.partition(stop)[0] if stop else text

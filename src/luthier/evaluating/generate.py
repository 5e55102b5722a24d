"""The function `generate`: it generates text from prompts, many at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.core.errors import LuthierError
from luthier.data import Example, encode, encode_seq2seq, prompt_ids
from luthier.engine.answers import answers
from luthier.engine.settings import Sampling
from luthier.engine.stops import PLACEHOLDER
from luthier.evaluating.speech import written_down
from luthier.models import SPEECH, task_of_model

Messages = list[dict[str, Any]]
"""A conversation: `{"role": …, "content": …}` for each turn."""
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

"""`luthier generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.output import say, say_json
from luthier.cli.parse import Fitted, Given
from luthier.cli.prompts import asked, holds_rows, plain, prompts_or_rows, tools_of, variables_of
from luthier.core.errors import LuthierError


def arguments_of(told: Sequence[str]) -> dict[str, str]:
    """Returns the adapter of each tool's arguments, from TOOL=ADAPTER; raises for what is not."""
    pairs = [each.partition("=") for each in told]
    wrong = [each for each, (tool, _, folder) in zip(told, pairs, strict=True) if not tool or not folder]
    if wrong or len({tool for tool, _, _ in pairs}) < len(pairs):
        raise LuthierError(f"--arguments {' '.join(told)}: expected TOOL=ADAPTER, each tool once.")
    return {tool: folder for tool, _, folder in pairs}


def with_arguments(model: Any, told: Sequence[str], merged: bool, force: bool) -> dict[str, str]:
    """Loads the adapters of arguments beside the one that is there; returns their names by tool."""
    from luthier.core.storage.folder import read_adapter
    from luthier.core.storage.store import load

    if told and merged:
        raise LuthierError("--merged writes one adapter into the weights, and --arguments changes them; leave one out.")
    names: dict[str, str] = {}
    for tool, folder in arguments_of(told).items():
        names[tool] = f"arguments-{len(names)}"
        load(model, read_adapter(folder)[0], name=names[tool], force=force)
    return names


@dataclass(frozen=True)
class Generate(Fitted):
    """Generate answers to prompts, with or without an adapter.

    Prompts are arguments, the lines or rows of --file, or, without either, what stands on the standard input. A chat
    model answers each as a user's turn. Of rows, in any layout of training, what stands before the last answer is the
    prompt; those without an answer are prompts as they are. A speech model writes down the sounds that prompts name.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        'luthier generate smollm2-135m "What is 12 + 30?"',
        'luthier generate smollm2-135m "What is 12 + 30?" --adapter run --merged',
        "luthier generate smollm2-135m --file prompts.txt --temperature 0.7 --seed 1 --json",
        "luthier generate path/to/model 'How high is Lake Como?' --tools tools.json --adapter run",
        "luthier generate path/to/model 'How high?' --tools tools.json --adapter select --arguments level=args",
        "luthier generate smollm2-135m --file test.jsonl --columns question=problem --adapter run",
        "luthier generate whisper-tiny-en said.wav",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    prompts: tuple[str, ...] = ()
    """The prompts to answer; of a speech model, files of sounds."""
    adapter: str | None = field(default=None, kw_only=True)
    """The adapter: a run folder or an adapter folder."""
    merged: bool = field(default=False, kw_only=True)
    """Merge the adapter into the weights first."""
    file: Path | None = field(default=None, kw_only=True)
    """A text file (.txt, .md) with one prompt per line, or rows as training reads them (.jsonl, .csv, .parquet, …)."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in --file, by their meaning: question=problem."""
    tools: Path | None = field(default=None, kw_only=True)
    """A .json file with the tools (a list of JSON schemas) that a model may call; rows with tools keep their own."""
    chat_template_kwargs: str | None = field(default=None, kw_only=True)
    """Variables of the chat template, over those that the adapter's rows shared: '{"enable_thinking": false}'."""
    max_new_tokens: int = field(default=128, kw_only=True)
    """The most tokens of an answer."""
    temperature: float = field(default=0.0, kw_only=True)
    """The sampling temperature; 0 takes the likeliest token (greedy decoding)."""
    top_p: float = field(default=1.0, kw_only=True)
    """Sample from the likeliest tokens of this total probability (nucleus sampling)."""
    seed: int = field(default=0, kw_only=True)
    """The seed of sampling."""
    batch: int = field(default=8, kw_only=True)
    """Prompts per batch."""
    task: str | None = field(default=None, kw_only=True)
    """The task: causal-lm, seq2seq or speech-to-text. Default: the adapter's task, or the model's."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the base: float32, bfloat16, float16 or auto."""
    force: bool = field(default=False, kw_only=True)
    """Use the adapter on another base than the one it was trained on."""
    as_task: str | None = field(default=None, kw_only=True)
    """The task of the prompts, for an adapter that routes by task (mhr)."""
    arguments: tuple[str, ...] = field(default=(), kw_only=True)
    """TOOL=ADAPTER: who writes the arguments of that tool, while --adapter writes all else (DualTune); repeatable."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    def run(self, given: Given) -> None:
        from luthier.cli.base import fitted
        from luthier.core.adapters.attach import adapter_names, find_state
        from luthier.evaluating import generate
        from luthier.models import SPEECH, WRITTEN, refuse_unwritten, task_of

        arguments_of(self.arguments)
        tools, variables = tools_of(self.tools), variables_of(self.chat_template_kwargs, self.adapter)
        told = [] if holds_rows(self.file) else prompts_or_rows(self.prompts, self.file, self.columns, self.name())
        known = task_of(self.model, self.adapter)
        refuse_unwritten(self.model, self.adapter, known, tasks=(*WRITTEN, SPEECH))
        reads = SPEECH if SPEECH in (self.task, known) else "causal-lm"
        prompts = told or prompts_or_rows(self.prompts, self.file, self.columns, self.name(), reads)
        loaded = fitted(
            self.model, self.adapter, task=self.task or known, dtype=self.dtype, merged=self.merged, force=self.force
        )
        state = find_state(loaded.model)
        first = next(iter(adapter_names(state)), None) if state is not None else None
        arguments = with_arguments(loaded.model, self.arguments, self.merged, self.force)
        answers = generate(
            loaded.model,
            loaded.processor,
            prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            batch=self.batch,
            tasks=self.as_task,
            tools=tools,
            template=variables,
            arguments=arguments or None,
            selection=first if arguments else None,
        )
        if self.json:
            say_json([{"prompt": plain(p), "answer": a} for p, a in zip(prompts, answers, strict=True)])
            return
        for prompt, answer in zip(prompts, answers, strict=True):
            say(f"> {asked(prompt)}\n{answer}\n" if len(prompts) > 1 else answer)

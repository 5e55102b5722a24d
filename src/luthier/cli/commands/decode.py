"""`luthier decode`."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.output import console, say
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.cli.prompts import read_prompts


@dataclass(frozen=True)
class Decode(Fitted):
    """Let several models choose every token together: steer a large model by small ones, or contrast two.

    The flags for the further models and the settings follow from --by: `luthier decode --by proxy --help` shows them.
    Every model is MODEL or MODEL@ADAPTER; those that share a MODEL share its weights. All must have one vocabulary.
    Prompts are arguments, the lines of --file, or, without either, what stands on the standard input.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        'luthier decode large-model "What is 12 + 30?" --by proxy --expert small-model@run --anti small-model',
        "luthier decode large-model --by emulated --tuned small-model@run --reference small-model --draft 4 "
        "--file prompts.txt --json",
        'luthier decode smollm2-135m@run "Once" --by contrastive --pretrained smollm2-135m --temperature 1 --seed 1',
        'luthier decode smollm2-135m@run "Once" --by contrastive --pretrained smollm2-135m --temperature 1 --rounds 20 '
        "--json",
    )

    model: str
    """The model that is led: a folder, a hub id, a .gguf file or a name of the catalogue, with @ADAPTER if one acts."""
    prompts: tuple[str, ...] = ()
    """The prompts to answer."""
    by: str = field(kw_only=True)
    """The decoding; `luthier list decodings` shows all."""
    file: Path | None = field(default=None, kw_only=True)
    """A text file with one prompt per line."""
    draft: int = field(default=0, kw_only=True)
    """Tokens that the small tuned model drafts, for all to read in one pass (0: none). Greedily the same text."""
    max_new_tokens: int = field(default=128, kw_only=True)
    """The most tokens of an answer."""
    temperature: float = field(default=0.0, kw_only=True)
    """The sampling temperature; 0 takes the best token (greedy decoding)."""
    top_p: float = field(default=1.0, kw_only=True)
    """Sample from the likeliest tokens of this total probability (nucleus sampling)."""
    seed: int = field(default=0, kw_only=True)
    """The seed of sampling."""
    rounds: int = field(default=1, kw_only=True)
    """Answer every prompt that many times; between rounds the model that learns (contrastive: pretrained, a copy of its
    own) takes a step on each answer, so that what was said is no longer new."""
    step_lr: float = field(default=1e-4, kw_only=True)
    """The learning rate of these steps (AdamW)."""
    batch: int = field(default=8, kw_only=True)
    """Prompts per batch, without a draft."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the models: float32, bfloat16, float16 or auto."""
    json: bool = field(default=False, kw_only=True)
    """Print one JSON object per line: prompt, answer, tokens, drafted, accepted."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find

        if (name := option(tokens, "--by")) is None:
            return []
        found = find("decodings", name)
        return [Flags(role_flags(found), "Models"), Flags(found, f"Settings of {found.name()}")]

    def run(self, given: Given) -> None:
        from luthier.core.contracts.component import find
        from luthier.core.records import finite
        from luthier.decoding import answers, members_of
        from luthier.decoding.decode import refuse_draft
        from luthier.decoding.iterated import iterated, refuse_rounds
        from luthier.engine.settings import Sampling
        from luthier.measuring.progress import told

        cls: Any = find("decodings", self.by)
        by = cls.from_dict(dict(given.get(cls, {})))
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)
        refuse_draft(by, self.draft)
        refuse_rounds(by, self.rounds, self.step_lr, sampling, self.draft)
        prompts = read_prompts(self.prompts, self.file, self.name())
        roles = {cls.led(): self.model, **given[role_flags(cls)]}
        members = members_of(by, roles, dtype=self.dtype, apart=by.learns if self.rounds > 1 else None)
        text = f"decoding {len(prompts):,} prompt{'s' if len(prompts) > 1 else ''} by {by.name()}"
        with told(console(stderr=True), text) as watch:
            if self.rounds == 1:
                turns = [answers(by, members, prompts, sampling, batch=self.batch, draft=self.draft, watch=watch)]
            else:
                options: Any = {"rounds": self.rounds, "lr": self.step_lr, "batch": self.batch}
                turns = iterated(by, members, prompts, sampling, **options, watch=watch)
        found = [(turn, p, a) for turn, each in enumerate(turns, 1) for p, a in zip(prompts, each, strict=True)]
        for turn, prompt, answer in found:
            if self.json:
                named = dataclasses.asdict(answer)
                row = {"prompt": prompt, "answer": named.pop("text"), **named}
                row |= {"round": turn} if self.rounds > 1 else {}
                sys.stdout.write(json.dumps(finite(row), ensure_ascii=False) + "\n")
            else:
                say(f"> {prompt}\n{answer.text}\n" if len(found) > 1 else answer.text)
        if self.draft and not self.json:
            drafted, accepted = (sum(getattr(each, name) for *_, each in found) for name in ("drafted", "accepted"))
            console(stderr=True).print(f"{accepted:,} of {drafted:,} drafted tokens were accepted.")


@functools.cache
def role_flags(cls: Any) -> type:
    """Returns a dataclass with a field for every role of a decoding but the first, which is MODEL."""
    roles = [(role, told) for role, told in cls.roles.items() if role != cls.led()]
    fields = [
        (
            role,
            tuple[str, ...] if role in cls.several else str,
            field(metadata={"help": f"{told[:1].upper()}{told[1:]}: MODEL or MODEL@ADAPTER."}),
        )
        for role, told in roles
    ]
    return dataclasses.make_dataclass(f"{cls.__name__}Roles", fields, frozen=True)

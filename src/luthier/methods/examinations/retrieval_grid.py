"""Fine-tuning against retrieval: which of the two brings an answer, and whether one makes the other needless."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Examination, Pair, Report
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.methods.examinations._asked import Asked, asked, contained, interval, shown

CELLS = ("base, closed", "base, retrieved", "fine-tuned, closed", "fine-tuned, retrieved")
COLUMNS = ("passage", "text", "context", "content")
"""Columns that may hold a passage, the first that is there."""


@dataclass(frozen=True)
class RetrievalGrid(Examination):
    """interaction = (acc(f', q + R(q)) - acc(f', q)) - (acc(f, q + R(q)) - acc(f, q)), f before, f' after, R passages

    Every question is asked four times: of the model before and after fine-tuning, closed-book and below the `k`
    passages that a search finds for it. The interaction is below 0 where retrieval brings less once the model is
    fine-tuned, and its 95% interval is a paired bootstrap over rows. Passages come from a file, else from the rows'
    column `passage`; the search is BM25 (bm25s), or cosines of the mean states of a model (`encoder`, such as
    minilm-l6). The null gives every question the passages of another one: the gain of retrieval has to vanish. An
    answer is right where it contains the right one as words. `found` is the share of rows whose answer stands in its
    passages.
    The papers compare on domains of their own and by other scores; the grid with its interaction is ours.
    """

    paper = "Ovadia et al. 2023, arXiv 2312.05934; Balaguer et al. 2024, RAG vs Fine-tuning, arXiv 2401.08406"
    reads = True
    asks: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("passage",)

    passages: str | None = None
    """A file of passages: rows with a column passage, text, context or content, or a text file of paragraphs. Default:
    the rows' column passage."""
    encoder: str | None = None
    """A model by whose mean states passages are searched. Default: BM25 over words."""
    k: int = 2
    """The number of passages above a question."""
    max_new_tokens: int = 24
    """The most tokens of an answer."""
    resamples: int = 1000
    """The number of bootstrap samples."""
    seed: int = 0
    """The seed of the bootstrap."""

    def check(self):
        self.within("k", 1)
        self.within("max_new_tokens", 1)
        self.within("resamples", 100)

    def measure(self, pair):
        rows = asked(pair, self.name())
        if len(rows.rows) < 2:
            raise LuthierError("the null gives a question the passages of another one; give two rows at least.")
        pool = passages_in(self.passages) if self.passages else own_passages(rows.rows)
        prompts = rows.prompts()
        found = nearest(prompts, pool, min(self.k, len(pool)), self.encoder)
        texts = ["\n".join(pool[place] for place in each) for each in found]
        turned = ["\n".join(pool[place] for place in others(found, n, len(pool))) for n in range(len(texts))]
        asking = [prompts, below(prompts, texts), below(prompts, turned)]
        with pair.before() as model:
            before = self._scores(pair, model, rows, asking, "asking the model before")
        with pair.after() as model:
            after = self._scores(pair, model, rows, asking, "asking the model after")
        hits = [
            sum(contained(text, str(row.answer)) for text, row in zip(each, rows.rows, strict=True)) / len(each)
            for each in (texts, turned)
        ]
        return self._report(before, after, *hits)

    def _scores(self, pair: Pair, model: nn.Module, rows: Asked, asking, text: str) -> list[Tensor]:
        """Closed, with its passages, and with another question's."""
        found = []
        for prompts in asking:
            said = shown(pair, text, model, prompts, self.max_new_tokens)
            right = [contained(answer, str(row.answer)) for answer, row in zip(said, rows.rows, strict=True)]
            found.append(torch.tensor(right, dtype=torch.double))
        return found

    def _grid(self, before: list[Tensor], after: list[Tensor], which: int) -> tuple[dict, dict[str, float]]:
        """(score of each cell with its interval, the effects)."""
        cells = torch.stack([before[0], before[which], after[0], after[which]], 1)
        places = {}
        for n, name in enumerate(CELLS):
            value, low, high = interval(lambda means, n=n: means[..., n], cells, self.resamples, self.seed)
            places[name] = {"score": value, "low": low, "high": high}
        effects: dict[str, Callable[[Tensor], Tensor]] = {
            "gain of fine-tuning": lambda means: means[..., 2] - means[..., 0],
            "gain of retrieval": lambda means: means[..., 1] - means[..., 0],
            "interaction": lambda means: means[..., 3] - means[..., 2] - means[..., 1] + means[..., 0],
        }
        told = {}
        for name, effect in effects.items():
            value, low, high = interval(effect, cells, self.resamples, self.seed)
            told |= {name: value, f"{name}, low": low, f"{name}, high": high}
        return places, told

    def _report(self, before: list[Tensor], after: list[Tensor], hit: float, chance: float) -> Report:
        (places, found), (null, control) = (self._grid(before, after, which) for which in (1, 2))
        found, control = {**found, "found": hit}, {**control, "found": chance}

        def said(name: str) -> str:
            return f"{found[name]:+.3f} ({found[f'{name}, low']:+.3f} to {found[f'{name}, high']:+.3f})"

        return Report(
            effect=found["interaction"],
            column="score",
            places=places,
            null=null,
            layers=dict.fromkeys(places),
            summary=found,
            null_summary=control,
            baseline="the passages of another question",
            verdict=f"Fine-tuning alone brings {said('gain of fine-tuning')}, retrieval alone "
            f"{said('gain of retrieval')}, their interaction is {said('interaction')}. With the passages of other "
            f"questions retrieval brings {control['gain of retrieval']:+.3f}. {hit:.0%} of the answers stand "
            "in what was found.",
        )


# --- passages ---------------------------------------------------------------------------------------------


def passages_in(source: str) -> list[str]:
    """Returns the passages of a file: a column of its rows, or the paragraphs of a text file."""
    from luthier import data

    file = path_of(source)
    if file.suffix in (".txt", ".md"):
        with guarded(f"{file} cannot be read"):
            text = file.read_text(encoding="utf-8-sig")
        found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
    else:
        found = []
        for number, row in data.read(source).rows:
            held = next((row[name] for name in COLUMNS if isinstance(row.get(name), str)), None)
            if held is None:
                raise LuthierError(f"{source}: row {number} has no passage; expected a column {', '.join(COLUMNS)}.")
            found.append(held)
    if not found:
        raise LuthierError(f"{source} holds no passage.")
    return found


def own_passages(rows: Sequence[Example]) -> list[str]:
    """Returns the passages that rows bring in their column, each once."""
    found = dict.fromkeys(str(row.meta["passage"]) for row in rows if row.meta.get("passage"))
    if not found:
        raise LuthierError(
            "there is nothing to retrieve from: give passages (--passages), or rows with a column passage."
        )
    return list(found)


def nearest(prompts: Sequence[Example], pool: Sequence[str], k: int, encoder: str | None) -> list[list[int]]:
    """Returns the places of the k passages nearest to each question, the best first."""
    import numpy as np

    asked_ = ["\n".join(str(turn.get("content") or "") for turn in prompt.messages or []) for prompt in prompts]
    scores = by_words(asked_, pool) if encoder is None else by_states(asked_, pool, encoder)
    return [[int(place) for place in np.argsort(-row, kind="stable")[:k]] for row in scores]


def by_words(questions: Sequence[str], pool: Sequence[str]) -> list[Any]:
    """Returns the BM25 score of every passage for each question, [questions][passages]."""
    from luthier.methods.selections.bm25 import scores, words

    try:
        import bm25s
    except ImportError:
        raise LuthierError("retrieval by words needs bm25s: pip install 'luthier[bm25]'") from None
    index = bm25s.BM25(method="lucene")
    index.index([words(text) for text in pool], show_progress=False)
    return [scores(index, words(question), len(pool)) for question in questions]


def by_states(questions: Sequence[str], pool: Sequence[str], encoder: str) -> Any:
    """Returns the cosine of every passage's mean state with each question's, [questions, passages]."""
    import numpy as np

    from luthier.data import states_by
    from luthier.models import task_of

    read = states_by(encoder, task_of(encoder, None) or "causal-lm")
    points = []
    for texts in (questions, pool):
        rows = [Example(row=n, text=text) for n, text in enumerate(texts, 1)]
        states = read(Examples(rows, "text", "passages"))
        points.append(states / np.linalg.norm(states, axis=1, keepdims=True).clip(1e-12))
    return points[0] @ points[1].T


def others(found: Sequence[Sequence[int]], at: int, size: int) -> list[int]:
    """Returns as many passages as the question `at` has, none of them its own: those of the question opposite it first,
    then any of the `size` passages."""
    places = dict.fromkeys([*found[(at + len(found) // 2) % len(found)], *range(size)])
    return [place for place in places if place not in found[at]][: len(found[at])]


def below(prompts: Sequence[Example], texts: Sequence[str]) -> list[Example]:
    """Returns the prompts with a text above the last user turn's question."""
    return [_below(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def _below(prompt: Example, text: str) -> Example:
    turns = list(prompt.messages or [])
    last = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is None:
        raise LuthierError(f"row {prompt.row} has no user turn to put passages above.")
    turns[last] = {**turns[last], "content": f"{text}\n\n{turns[last]['content']}"}
    return replace(prompt, messages=turns)

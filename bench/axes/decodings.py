"""Decodings on SmolLM2-135M: a tuning carried over by logits, drafts, and what is new in a model's data.

- proxy: the LoRA of one task of `_tasks.py` is the expert, the bare model its anti-expert, and the base is the model as
  tuned on another task, so that base and anti-expert are two stages of one model. For every ordered pair of three
  tasks, test rows of the expert's task (and of the base's own) are scored under proxy-tuning, beside the base, the
  expert, and the two adapters added up in the weights.
- several: emulated fine-tuning with two experts at once on the bare model, beside their adapters added up.
- drafts: emulated fine-tuning, the expert writing ahead: how many of its tokens stay, and whether the text is the same.
- new: the bare model is fitted to texts of its own, one in ten replaced by a word problem; how often a text drawn from
  it is one, plainly and by contrastive generation.

    python -m bench axes-decodings --data FOLDER

FOLDER is that of `_tasks.py`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import torch
from bench.axes import _tasks as tasks
from bench.axes._study import markdown, parsed
from torch import Tensor

import luthier as lt
from luthier import models
from luthier.core.contracts.decoding import Decoding
from luthier.decoding import Member, answers
from luthier.engine.settings import Sampling
from luthier.training import Run, train

TASKS, TESTED, ALPHAS = ("sentiment", "intent", "problem"), 40, (0.5, 1.0, 1.5)
BARE, PROMPTS, AHEAD, TOKENS = "bare", 6, 4, 28
DRAFTS = ((BARE, 0.0), ("intent", 0.0))
"""Base and temperature."""
PROMPT = tasks.chat("Write a sentence.", "")[:2]
OWN, HIDDEN, DRAWN, STEPS, RATE = 54, 6, 64, 30, 1e-3
"""Texts of its own, word problems among them, texts drawn, and the fit to them."""
PROBLEM = re.compile(r"\bhow (many|much)\b", re.IGNORECASE)
Row = dict[str, Any]


class Ground:
    """One model with the adapter of each task, and the logits at the answers of test rows."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.loaded = models.load(tasks.MODEL, dtype=tasks.DTYPE)
        for name in (*TASKS, "reasoned"):
            lt.load(self.loaded.model, tasks.fitted(given.data, given.work, name) / "adapter", name)
        self.loaded.model.eval()
        scratch = given.work / "tasks" / "test.jsonl"
        self.tests = {
            name: tasks.batches(
                self.loaded.processor, scratch, tasks.drawn(given.data, name, "test", TESTED), size=TESTED
            )[0]
            for name in TASKS
        }
        self._heard: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def member(self, adapter: str) -> Member:
        return Member(self.loaded.model, self.loaded.processor, None if adapter == BARE else adapter)

    @torch.inference_mode()
    def logits(self, task: str, *adapters: str) -> Tensor:
        """[labels, vocabulary] of the answers of a task, with these adapters added up (none: the bare model)."""
        adapters = tuple(sorted(adapters))
        if (task, adapters) not in self._heard:
            model, batch = self.loaded.model, self.tests[task]
            with lt.disabled(model):
                if adapters:
                    lt.enable(model, list(adapters))
                found = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
            self._heard[task, adapters] = found[batch.told].float()
        return self._heard[task, adapters]

    def scored(self, task: str, scores: Tensor) -> Row:
        """The share of rows whose every token is the likeliest, and the mean loss, of `scores` [labels, vocabulary]."""
        batch = self.tests[task]
        wanted, row = batch.wanted[batch.told], batch.told.nonzero()[:, 0]
        wrong = torch.zeros(len(batch.ids)).index_add(0, row, (scores.argmax(-1) != wanted).float())
        loss = -scores.log_softmax(-1).gather(-1, wanted[:, None]).mean()
        return {"exact": float((wrong == 0).double().mean()), "loss": float(loss)}


def ways(ground: Ground, task: str, base: str, expert: str) -> dict[str, Tensor]:
    """Logits of each way on a task's rows."""
    own, tuned, bare = ground.logits(task, base), ground.logits(task, expert), ground.logits(task)
    found = {"bare": bare, "base": own, "expert": tuned, "added in weights": ground.logits(task, base, expert)}
    heard = {"base": own, "expert": tuned, "anti": bare}
    return found | {f"proxy, α = {alpha:g}": lt.Proxy(alpha=alpha).scores(heard) for alpha in ALPHAS}


def proxy(ground: Ground, base: str, expert: str) -> list[Row]:
    """The rows of one pair: each way on the expert's task and on the base's."""
    rows = []
    for role, task in (("expert", expert), ("base", base)):
        for way, scores in ways(ground, task, base, expert).items():
            rows.append({"way": way, "on": role} | ground.scored(task, scores))
    return rows


def several(ground: Ground, first: str, second: str) -> list[Row]:
    """Two experts on the bare model, scored on the tasks of both."""
    rows = []
    for task in (first, second):
        bare, tuned = ground.logits(task), [ground.logits(task, each) for each in (first, second)]
        heard = {"base": bare, "reference": bare, "tuned": torch.stack(tuned)}
        emulated = {f"emulated, weights {w:g}": lt.Emulated(weights=(w,)).scores(heard) for w in (1.0, 0.5)}
        found = {
            "bare": bare,
            "own expert": tuned[task == second],
            "added in weights": ground.logits(task, first, second),
        }
        rows += [{"way": way} | ground.scored(task, scores) for way, scores in (found | emulated).items()]
    return rows


def drafts(ground: Ground, given: argparse.Namespace, base: str, temperature: float) -> Row:
    """How much of what the expert writes ahead is kept."""
    prompts = [tasks.chat(text, "")[:2] for text, _ in tasks.pairs(given.data, "reasoned", "test", PROMPTS)]
    members = {"base": [ground.member(base)], "tuned": [ground.member("reasoned")], "reference": [ground.member(BARE)]}
    sampling, by, found = Sampling(TOKENS, temperature=temperature), lt.Emulated(), {}
    for draft in (0, AHEAD):
        start = time.perf_counter()
        found[draft] = answers(by, members, prompts, sampling, batch=1, draft=draft), time.perf_counter() - start
    (plain, slow), (ahead, fast) = found.values()
    kept = {"drafted": sum(a.drafted for a in ahead), "accepted": sum(a.accepted for a in ahead)}
    same = sum(a.text == b.text for a, b in zip(plain, ahead, strict=True))
    return kept | {"tokens": sum(a.tokens for a in ahead), "same": same, "prompts": PROMPTS, "time": fast / slow}


def texts(by: Decoding, members: dict[str, list[Member]], count: int, seed: int) -> list[str]:
    """Texts drawn from a decoding."""
    return [each.text for each in answers(by, members, [PROMPT] * count, Sampling(TOKENS, 1.0, seed=seed), batch=64)]


def new(given: argparse.Namespace, seed: int) -> list[Row]:
    """How often a drawn text is a word problem: of the bare model, of the fitted one, and contrasted."""
    loaded = models.load(tasks.MODEL, dtype=tasks.DTYPE)
    bare = Member(loaded.model, loaded.processor)
    plainly = lt.Contrastive(gamma=0.0, alpha=0.0)
    own = texts(plainly, {"tuned": [bare], "pretrained": [bare]}, OWN + DRAWN, seed)
    hidden = [text for text, _ in tasks.pairs(given.data, "problem", "train", 10**9) if PROBLEM.search(text)]
    mixed = own[:OWN] + random.Random(seed).sample([text for text in hidden if len(text.split()) <= 18], HIDDEN)
    work = given.work / "decodings"
    source = tasks.written(work / f"new{seed}.jsonl", [{"messages": [*PROMPT, said(text)]} for text in mixed])
    out = work / f"new{seed}"
    if not (out / "adapter").is_dir():
        train(Run(tasks.MODEL, source, tasks.EXPERT, out=str(out), training=tasks.settings(STEPS, RATE, seed, 8)))
    lt.load(loaded.model, out / "adapter", "tuned")
    members = {"tuned": [Member(loaded.model, loaded.processor, "tuned")], "pretrained": [bare]}
    drawn = {"bare": own[OWN:], "fitted": texts(plainly, members, DRAWN, seed)}
    for gamma in (0.5, 1.0):
        drawn[f"contrastive, γ = {gamma:g}"] = texts(lt.Contrastive(gamma=gamma), members, DRAWN, seed)
    return [
        {"way": way, "hits": sum(bool(PROBLEM.search(text)) for text in each), "texts": len(each), "sample": each[:4]}
        for way, each in drawn.items()
    ]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text or "."}


def todo(given: argparse.Namespace) -> None:
    """Runs what is missing."""
    held: list[Ground] = []

    def ground() -> Ground:
        held[:] = held or [Ground(given)]
        return held[0]

    def keep(key: Row, rows: Sequence[Row]) -> None:
        for row in rows:
            given.ledger.add(key | row)

    for base, expert in itertools.permutations(TASKS, 2):
        key = {"study": "proxy", "base": base, "expert": expert}
        if not given.ledger.runs(**key):
            keep(key, proxy(ground(), base, expert))
    for pair in itertools.combinations(TASKS, 2):
        key = {"study": "several", "experts": list(pair)}
        if not given.ledger.runs(**key):
            keep(key, several(ground(), *pair))
    for base, temperature in DRAFTS:
        key = {"study": "drafts", "base": base, "temperature": temperature}
        if not given.ledger.runs(**key):
            keep(key, [drafts(ground(), given, base, temperature)])
    held.clear()
    for seed in range(given.seeds):
        key = {"study": "new", "seed": seed}
        if not given.ledger.runs(**key):
            keep(key, new(given, seed))


def cell(runs: Sequence[Row]) -> str:
    """Exact answers in percent, and the loss of their tokens."""
    return f"{mean_of(runs, 'exact', 100):.1f} ({mean_of(runs, 'loss'):.2f})"


def mean_of(runs: Sequence[Row], key: str, times: float = 1.0) -> float:
    return times * sum(run[key] for run in runs) / len(runs)


def tables(given: argparse.Namespace) -> str:
    """One table a study; those of scores are means over the other task of each pair."""
    runs = given.ledger.runs
    proxied = [
        [way, *(cell(runs(study="proxy", way=way, on="expert", expert=name)) for name in TASKS)]
        for way in dict.fromkeys(r["way"] for r in runs(study="proxy"))
    ]
    head = ["way", *(f"{name}, exact % (loss)" for name in TASKS)]
    both = [
        [way, cell(runs(study="several", way=way))] for way in dict.fromkeys(r["way"] for r in runs(study="several"))
    ]
    ahead = [
        [
            r["base"],
            f"{r['temperature']:g}",
            str(r["tokens"]),
            f"{100 * r['accepted'] / max(1, r['drafted']):.0f}",
            f"{r['same']} of {r['prompts']}",
            f"{r['time']:.2f}",
        ]
        for r in runs(study="drafts")
    ]
    found = []
    for way in dict.fromkeys(r["way"] for r in runs(study="new")):
        own = runs(study="new", way=way)
        found.append([way, ", ".join(f"{r['hits']} of {r['texts']}" for r in own)])
    return "\n".join(
        (
            markdown(head, proxied),
            markdown(["way", "both tasks, exact % (loss)"], both),
            markdown(["base", "temperature", "tokens", "drafts kept, %", "same text", "time of plain"], ahead),
            markdown(["drawn from", "word problems, by seed"], found),
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the tables."""
    given = parsed(arguments, __doc__, "decodings", seeds=2)
    if not given.table:
        todo(given)
    print(tables(given))

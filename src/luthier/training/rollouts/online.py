"""The rollouts of a run: each step's prompts become answers that the model under training gives, scored and weighed."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.core.contracts.example import Example, Examples
from luthier.core.contracts.objective import (
    ADVANTAGE,
    ALSO,
    OLD_TOKENS,
    REFERENCE_TOKENS,
    SAMPLED,
    Rollouts,
    Scored,
)
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.sites.probe import eval_mode
from luthier.data import Collator
from luthier.data.layout import TO_COME
from luthier.engine.sampler import Ask, Drawn, Sampler
from luthier.methods.log_probs import reference_token_log_probs, token_log_probs
from luthier.methods.objectives._online import prompt_of
from luthier.methods.objectives.distill import HINTED
from luthier.training.prepare import Prepared
from luthier.training.processes import processes
from luthier.training.rollouts import log
from luthier.training.rollouts.dynamic import Group, Values, replaced
from luthier.training.rollouts.features import answered, in_parts, packed, restored, unpacked
from luthier.training.rollouts.reward_model import RewardModel
from luthier.training.rollouts.rewards import Answered, Reward, rewards_of, text_of_prompt
from luthier.training.spec import Run

PENDING = "rollouts.safetensors"
"""File of a checkpoint: the answers on which further steps are taken."""
ANSWER = "answer"
"""The column that holds the reference of a row beside its answer."""
Batch = dict[str, Any]
READ = ("input_ids", "attention_mask", "token_type_ids", "labels")


def check_online(run: Run, prepared: Prepared) -> list[Reward]:
    """Returns the rewards of a run whose objective samples answers, before the weights are loaded; of others, none.

    Raises `LuthierError` for rewards that cannot be, and for several processes.
    """
    if not run.objective.samples:
        return []
    if processes() > 1:
        raise LuthierError(
            f"{run.objective.name()} samples answers in the process that trains, and here are {processes()}; train in "
            "one."
        )
    refuse_measuring(run, prepared)
    parts = [prepared.examples, *([prepared.held] if prepared.held is not None else [])]
    specs = run.objective.reward_specs()
    found = [rewards_of(specs, referenced(part), lambda name: RewardModel(name, run)) for part in parts]
    return found[0]


def refuse_measuring(run: Run, prepared: Prepared) -> None:
    """Raises for a look at the data before training where rows have no answers to look at."""
    turns = (row.messages for row in prepared.examples.rows if row.messages)
    if run.measures and run.calibration.source is None and any(each[-1].get("content") == TO_COME for each in turns):
        raise LuthierError(
            "ranks and starting factors go by the answers of rows, and some rows have none; name rows with answers "
            "(calibration source), or leave ranks and init out."
        )


def referenced(examples: Examples) -> Examples:
    """Returns the rows with the column `answer`, where they have it, as the reference to score with."""
    rows = [
        dataclasses.replace(row, answer=str(row.meta[ANSWER])) if row.meta.get(ANSWER) not in (None, "") else row
        for row in examples.rows
    ]
    return dataclasses.replace(examples, rows=rows)


class Online:
    """Samples the answers of each step by the engine, scores them, and makes the step's batches of them."""

    def __init__(self, run: Run, model: Any, prepared: Prepared, rewards: Sequence[Reward], collator: Collator) -> None:
        self.run, self.collator, self.rewards = run, collator, list(rewards)
        self.processor = prepared.processor
        self.sampler = Sampler(model, prepared.processor, run.name)
        self.run_id = ""
        """Written into every line of the log; set once it is known."""
        self.examples = {row.row: row for row in referenced(prepared.examples).rows} if self.rewards else {}
        held = prepared.held if self.rewards else None
        self.held_out = {row.row: row for row in referenced(held).rows} if held is not None else {}
        self.pool = prepared.train
        """The rows that further prompts are drawn from."""
        self.pending: list[Batch] = []
        """The batches of the last answers, where further steps are taken on them."""
        self.prompts: dict[tuple[bool, int], str] = {}
        self.warned: set[str] = set()
        for reward in rewards:
            if isinstance(reward.of, RewardModel):
                reward.of.open(model)

    def step(self, batches: Sequence[Batch], step: int, model: Any) -> list[Batch]:
        """Returns the batches of the step behind `step` others: as many as were given, of answers to their prompts."""
        rollouts = self.run.objective.rollouts(step, self.run.training.seed)
        if rollouts is None:
            return list(batches)
        if step % rollouts.iterations and len(self.pending) == len(batches):
            return [dict(batch) for batch in self.pending]
        made = self._sampled(batches, step, model, rollouts)
        if rollouts.iterations > 1:
            self.pending = [dict(batch) for batch in made]
        return made

    def _sampled(self, batches: Sequence[Batch], step: int, model: Any, rollouts: Rollouts) -> list[Batch]:
        asked = [unpacked(batch)[:: 2 if HINTED in batch else 1] for batch in batches]
        groups = self._groups([feature for part in asked for feature in part], step, rollouts)
        if rollouts.rounds:
            seed = seed_of(self.run.training.seed, step)
            again = partial(self._groups, step=step, rollouts=rollouts)
            groups, gone = replaced(groups, self.pool, rollouts.rounds, seed, again)
            self._log(step, gone)
        found, rest = [], iter(groups)
        for batch, part in zip(batches, asked, strict=True):
            own = [next(rest) for _ in part]
            answers = [answer for group in own for answer in group.answers]
            owners = [group.feature for group in own for _ in group.answers]
            rows = [answered(prompt_of(f), a.ids, f["row"]) for f, a in zip(owners, answers, strict=True)]
            if HINTED in batch:
                rows = _hinted(rows, answers, unpacked(batch)[1::2], rollouts.group)
            rows = in_parts(rows, part) if rollouts.beside else rows
            found.append(self.collator(rows))
        if self.rewards:
            self._weigh(found, groups, step, model, rollouts)
        return found

    def _groups(self, features: Sequence[dict[str, Any]], step: int, rollouts: Rollouts) -> list[Group]:
        """Answers to each prompt, with what they are worth."""
        drawn, size = self._drawn(features, step, rollouts), rollouts.group
        owners = [feature for feature in features for _ in range(size)]
        said, values = [], []
        if self.rewards:
            said = [self._answered(f["row"], answer.text, False) for f, answer in zip(owners, drawn, strict=True)]
            values = self._values(said)
            check_some(values, step)
        rewards = [total(self.rewards, each) for each in values]
        cuts = [slice(place * size, (place + 1) * size) for place in range(len(features))]
        return [Group(f, drawn[c], said[c], values[c], rewards[c]) for f, c in zip(features, cuts, strict=True)]

    def _drawn(self, features: Sequence[dict[str, Any]], step: int, rollouts: Rollouts) -> list[Drawn]:
        asks = [
            Ask(tuple(prompt_of(f)), seed_of(self.run.training.seed, step, f["row"], place), rollouts.max_tokens)
            for f in features
            for place in range(rollouts.group)
        ]
        return self.sampler(asks, rollouts.temperature, rollouts.top_p)

    def _weigh(self, found: list[Batch], groups: list[Group], step: int, model: Any, rollouts: Rollouts) -> None:
        """Puts advantages, figures and what the loss compares with into the batches."""
        objective, group = self.run.objective, rollouts.group
        sampled = [slice(0, len(batch["rows"]) * group // (group + rollouts.beside)) for batch in found]
        kl = [self._compare(batch, model, rollouts)[part] for batch, part in zip(found, sampled, strict=True)]
        drawn = [answer for each in groups for answer in each.answers]
        told = torch.tensor([[reward for each in groups for reward in each.rewards],
                             [len(answer.ids) for answer in drawn],
                             [answer.finish == "length" for answer in drawn],
                             [not answer.text.strip() for answer in drawn]], dtype=torch.float64)  # fmt: skip
        rewards, lengths, truncated, _ = told.view(4, -1, group).unbind(0)
        scored = Scored(rewards, lengths, truncated.bool(), torch.cat(kl).view(-1, group))
        advantages, gone = objective.advantages(scored).flatten(), objective.left_out(scored).flatten()
        flat = torch.tensor([each.flat for each in groups], dtype=torch.float64).repeat_interleave(group)
        figures = torch.stack([*told, rewards.flatten().isnan().double(), flat], 1)
        start = 0
        for batch, part in zip(found, sampled, strict=True):
            own, start = slice(start, start + part.stop), start + part.stop
            batch[ADVANTAGE] = _filled(advantages[own], len(batch["rows"]))
            batch[SAMPLED] = _filled(figures[own], len(batch["rows"]))
            batch["labels"][part][gone[own]] = -100
        self._log(step, groups, advantages.tolist(), gone.tolist())

    def _compare(self, batch: Batch, model: Any, rollouts: Rollouts) -> Tensor:
        """log π(y) - log π_ref(y) of each row, 0 unless asked for; log-probabilities of tokens go into the batch."""
        inputs = {key: batch[key].to(model.device) for key in READ if key in batch}
        zero = torch.zeros(len(batch["rows"]), dtype=torch.float64)
        reference = old = None
        if rollouts.reference:
            reference = _widened(reference_token_log_probs(model, inputs, rollouts.temperature))
            batch[REFERENCE_TOKENS] = reference
        if rollouts.old or rollouts.kl:
            with eval_mode(model):
                old = _widened(token_log_probs(model, inputs, rollouts.temperature)[0])
        if rollouts.old and old is not None:
            batch[OLD_TOKENS] = old
        if not rollouts.kl or old is None or reference is None:
            return zero
        return (old - reference).cpu().double().sum(1)

    def _answered(self, row: int, answer: str, held: bool) -> Answered:
        example: Example = (self.held_out if held else self.examples)[row]
        if (held, row) not in self.prompts:
            self.prompts[held, row] = text_of_prompt(example, self.processor)
        return Answered(example, self.prompts[held, row], answer)

    def _values(self, said: Sequence[Answered]) -> list[Values]:
        """Of each answer, each reward or the reason why it has none."""
        columns = {reward.name: reward.of(said) for reward in self.rewards}
        values = [{name: column[i] for name, column in columns.items()} for i in range(len(said))]
        for name, column in columns.items():
            place = next((i for i, value in enumerate(column) if isinstance(value, str)), None)
            if place is not None and name not in self.warned:
                self.warned.add(name)
                warnings.warn(
                    f"the reward {name} failed on an answer to row {said[place].example.row} ({column[place]}); such "
                    "answers are left out, counted as `failed`, and listed in rollouts.jsonl.",
                    stacklevel=2,
                )
        return values

    def _log(
        self, step: int, groups: Sequence[Group], advantages: Sequence[float] = (), gone: Sequence[bool] = ()
    ) -> None:
        """Writes answers to the log; those of prompts that gave way to others have no advantage."""
        lines = [line for group in groups for line in group.lines()]
        weighed = zip(advantages, gone, strict=True) if advantages else [(None, True)] * len(lines)
        log.append(
            self.run.folder,
            [
                {
                    "step": step + 1, "row": each.example.row, "prompt": each.prompt, "answer": answer.text,
                    "rewards": {name: None if isinstance(r, str) else r for name, r in value.items()},
                    "problems": {name: r for name, r in value.items() if isinstance(r, str)},
                    "reward": None if reward != reward else reward, "advantage": advantage, "learned": not out,
                    "tokens": len(answer.ids), "finish": answer.finish, "run": self.run_id,
                }
                for (each, answer, value, reward), (advantage, out) in zip(lines, weighed, strict=True)
            ],
        )  # fmt: skip

    def held_reward(self, batches: Sequence[Batch], step: int) -> dict[str, float]:
        """Returns figures of one greedy answer to each prompt of rows that are held out; empty without rewards."""
        rollouts = self.run.objective.rollouts(step, self.run.training.seed)
        if not self.rewards or rollouts is None:
            return {}
        features = [feature for batch in batches for feature in unpacked(batch)]
        asks = [Ask(tuple(prompt_of(f)), 0, rollouts.max_tokens) for f in features]
        drawn = self.sampler(asks, 0.0, 1.0)
        said = [self._answered(f["row"], a.text, True) for f, a in zip(features, drawn, strict=True)]
        known = [r for each in self._values(said) if (r := total(self.rewards, each)) == r]
        return ({"reward": sum(known) / len(known)} if known else {}) | {
            "tokens": sum(len(a.ids) for a in drawn) / len(drawn),
            "truncated": sum(a.finish == "length" for a in drawn) / len(drawn),
            "failed": 1 - len(known) / len(drawn),
        }

    def save(self, folder: Path, step: int) -> None:
        """Writes the answers that the steps behind `step` still learn from."""
        rollouts = self.run.objective.rollouts(step, self.run.training.seed)
        if self.pending and rollouts is not None and step % rollouts.iterations:
            save_file(packed(self.pending), folder / PENDING)

    def restore(self, folder: Path) -> None:
        """Reads them."""
        if (folder / PENDING).is_file():
            with guarded(f"{folder / PENDING} cannot be read"):
                self.pending = restored(load_file(folder / PENDING))


def seed_of(*parts: int) -> int:
    """Returns a seed of 63 bits that follows from whole numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def check_some(values: Sequence[Values], step: int) -> None:
    """Raises `LuthierError` where no answer of a step has all of its rewards."""
    bad = [each for each in values if any(isinstance(value, str) for value in each.values())]
    if len(bad) == len(values):
        name, why = next((key, value) for key, value in bad[0].items() if isinstance(value, str))
        raise LuthierError(
            f"none of the {len(values)} answers of step {step + 1} could be scored, so there is nothing to learn: the "
            f"reward {name} fails on the first ({why})."
        )


def total(rewards: Sequence[Reward], values: Mapping[str, float | str]) -> float:
    """Returns the weighted sum of an answer's rewards; NaN where one is not known."""
    found = [values[reward.name] for reward in rewards]
    if any(isinstance(value, str) for value in found):
        return float("nan")
    return sum(reward.weight * float(value) for reward, value in zip(rewards, found, strict=True))


def _hinted(rows: list[Any], answers: Sequence[Drawn], hinted: Sequence[Any], group: int) -> list[Any]:
    """The student's rows, each with the same answer behind the prompt that the teacher reads."""
    owners = [feature for feature in hinted for _ in range(group)]
    seen = [answered(prompt_of(f), a.ids, f["row"]) | {HINTED: 1} for f, a in zip(owners, answers, strict=True)]
    return [row | {HINTED: 1, ALSO: [other]} for row, other in zip(rows, seen, strict=True)]


def _widened(values: Tensor) -> Tensor:
    """[rows, T - 1] -> [rows, T], with a last column of 0, on the CPU."""
    return torch.nn.functional.pad(values.detach().cpu(), (0, 1))


def _filled(values: Tensor, rows: int) -> Tensor:
    """Values of the sampled rows, and 0 for the rows beside them."""
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])

"""A reward model as a reward: an adapter that the objective `reward` trained, on the base that is there already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.core.storage.folder import adapter_folder, read_adapter
from luthier.core.storage.store import load
from luthier.training.rollouts.rewards import Answered
from luthier.training.spec import Run

BATCH = 16
"""Conversations that are read at a time."""


def check_reward_model(run: str) -> None:
    """Raises `LuthierError` for a folder that holds no reward model."""
    task = read_adapter(adapter_folder(run))[1].get("measured", {}).get("task")
    if task != "reward":
        raise LuthierError(
            f"{run} is an adapter for {task or 'another task'}, and not a reward model; train one with the objective "
            "reward."
        )


class RewardModel:
    """Scores conversations by the number that a reward model gives to their last token.

    Its adapter is attached to a base of its own, whose frozen tensors are those of the model under training wherever
    they are the same, so that no second copy of the weights is held.
    """

    def __init__(self, run: str, of: Run) -> None:
        """Checks the folder; `open` loads it. `of` is the run whose answers are scored."""
        check_reward_model(run)
        self._run, self._of = run, of
        self._model: Any = None
        self.shared = 0
        """Bytes of the base that are the other model's."""

    def open(self, model: Any) -> None:
        """Loads the reward model beside the model under training."""
        loaded = models.load(self._of.model, task="reward", dtype=self._of.training.precision)
        self.shared = share(loaded.model, model)
        load(loaded.model, adapter_folder(self._run), "reward")
        self._model, self._processor = loaded.model.to(model.device).eval(), loaded.processor

    def __call__(self, answers: Sequence[Answered]) -> list[float | str]:
        found: list[float | str] = ["an empty answer is not a turn that can be read"] * len(answers)
        features = []
        for place, each in enumerate(answers):
            if each.answer.strip():
                try:
                    row = conversation(each, place)
                    features.append(data.encode(row, self._processor, task="reward", max_length=None))
                except LuthierError as error:
                    found[place] = str(error)
        collator = data.collator_for("reward", self._processor)
        for start in range(0, len(features), BATCH):
            part = features[start : start + BATCH]
            inputs = collator([{key: f[key] for key in ("input_ids", "attention_mask", "row")} for f in part])
            places = inputs.pop("rows")
            with eval_mode(self._model), torch.no_grad():
                logits = self._model(**{key: value.to(self._model.device) for key, value in inputs.items()}).logits
            for place, value in zip(places, logits[:, 0].cpu().double().tolist(), strict=True):
                found[place] = value
        return found


def conversation(answered: Answered, place: int) -> data.Example:
    """Returns the row with the sampled answer as its last turn; its number is its place."""
    turns = answered.example.messages or []
    before = turns[: data.last_answer(turns)]
    said = [*before, {"role": "assistant", "content": answered.answer}]
    return dataclasses.replace(answered.example, row=place, messages=said, context=0, masked=(), answer=None)


def share(model: Any, with_: Any) -> int:
    """Makes parameters of `model` those of another wherever they are equal, by name; returns how many bytes."""
    known = {key: p for key, p in with_.named_parameters() if not p.requires_grad}
    total = 0
    for name, module in model.named_modules():
        for key, own in list(module.named_parameters(recurse=False)):
            other = known.get(f"{name}.{key}")
            if other is not None and other.dtype == own.dtype and torch.equal(other, own):
                setattr(module, key, other)
                total += other.numel() * other.element_size()
    return total

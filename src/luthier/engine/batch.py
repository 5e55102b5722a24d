"""The rows that run: they join with their prompts, get one token per step together, and leave."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from luthier.core.adapters.control import RowAssignment
from luthier.engine.cache import RowCache, attention_mask
from luthier.engine.job import Job
from luthier.engine.sampling import choose


class Assignment(Protocol):
    """Decides which adapter acts on which row."""

    def set(self, names: Sequence[str | None]) -> None:
        """Assigns the adapter names[i] to row i."""
        ...

    def release(self) -> None:
        """Removes the assignment."""
        ...


class AsTheyAct:
    """Leaves the adapters of a model as they are: those that act, act on every row."""

    def set(self, names: Sequence[str | None]) -> None:
        """Changes nothing."""

    def release(self) -> None:
        """Changes nothing."""


class Batch:
    """The running jobs, row by row, and their cache."""

    def __init__(self, model: Any, row_assignment: Assignment | None = None) -> None:
        self.model = model
        self.jobs: list[Job] = []
        self.row_assignment: Assignment = row_assignment or RowAssignment(model)
        self._cache = RowCache()
        self._takes = frozenset(inspect.signature(model.forward).parameters)

    def enter(self, jobs: Sequence[Job]) -> None:
        """Reads the prompts of `jobs` in one pass, gives each its first token, and keeps those that go on.

        A prompt that several ask of one adapter is read once. An exception of the pass leaves the running rows as they
        were, and `jobs` without a token.
        """
        asked = [(job.request.adapter, job.request.prompt) for job in jobs]
        places = {each: place for place, each in enumerate(dict.fromkeys(asked))}
        with torch.inference_mode():
            lengths = [len(prompt) for _, prompt in places]
            ids = [[0] * (max(lengths) - len(prompt)) + list(prompt) for _, prompt in places]
            prompts = DynamicCache()
            logits = self._logits(ids, lengths, prompts, [adapter for adapter, _ in places])
            if len(places) < len(jobs):
                logits = logits[[places[each] for each in asked]]
            choices = choose(logits, [job.draw for job in jobs])
        for job, choice in zip(jobs, choices, strict=True):
            job.take(choice)
        going = [row for row, job in enumerate(jobs) if job.finish is None]
        if going:
            with torch.inference_mode():
                self._cache.join(prompts, lengths, [places[asked[row]] for row in going])
            self.jobs += [jobs[row] for row in going]

    def step(self) -> None:
        """One token for every row."""
        with torch.inference_mode():
            self._cache.ready()
            ids = [[job.last] for job in self.jobs]
            lengths = [length + 1 for length in self._cache.lengths]
            logits = self._logits(ids, lengths, self._cache, [job.request.adapter for job in self.jobs])
            self._cache.advance()
            choices = choose(logits, [job.draw for job in self.jobs])
        for job, choice in zip(self.jobs, choices, strict=True):
            job.take(choice)
        self.drop_finished()

    def drop_finished(self) -> None:
        """Takes out the rows whose jobs are over; the last row moves into a place that becomes free."""
        with torch.inference_mode():
            for row in reversed(range(len(self.jobs))):
                if self.jobs[row].finish is not None:
                    self._cache.drop(row)
                    self.jobs[row] = self.jobs[-1]
                    self.jobs.pop()

    def clear(self) -> None:
        """Drops every row."""
        self.jobs = []
        self._cache.clear()
        self.row_assignment.release()

    def _logits(self, ids: list[list[int]], lengths: Sequence[int], cache: DynamicCache, names: list) -> Tensor:
        """The logits behind the last token of every row, [rows, vocabulary]; `lengths` count the tokens of `ids`."""
        self.row_assignment.set(names)
        device = self.model.device
        entering = torch.tensor(ids, device=device)
        mask = attention_mask(lengths, device)
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -entering.shape[1] :]
        # as a tensor, because a slice is not contiguous, and a frozen head would be copied for every row
        last = torch.tensor([entering.shape[1] - 1], device=device)
        wanted = {"position_ids": places, "logits_to_keep": last}
        out = self.model(
            input_ids=entering,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in wanted.items() if name in self._takes},
        )
        return out.logits[:, -1]


class Alone(Batch):
    """Rows that run one by one, each with a cache of its own: every pass is of one row and of that row's own width.

    What a row gets is then the same to the last bit whatever else runs; in a shared pass the order of sums follows
    from how many rows there are and how long the longest is.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._each: list[Batch] = []

    def enter(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            one = Batch(self.model, self.row_assignment)
            one.enter([job])
            self._each += [one] if one.jobs else []
        self._gather()

    def step(self) -> None:
        for one in self._each:
            one.step()
        self._gather()

    def drop_finished(self) -> None:
        for one in self._each:
            one.drop_finished()
        self._gather()

    def clear(self) -> None:
        self._each = []
        super().clear()

    def _gather(self) -> None:
        self._each = [one for one in self._each if one.jobs]
        self.jobs = [job for one in self._each for job in one.jobs]

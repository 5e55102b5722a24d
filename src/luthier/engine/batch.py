"""The rows that run: they join with their prompts, get one token per step together, and leave."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from luthier.core.adapters.control import RowAssignment
from luthier.core.sites.caches import cache_argument
from luthier.data.pictures import Seen
from luthier.engine.cache import RowCache, attention_mask
from luthier.engine.job import Job
from luthier.engine.sampling import choose
from luthier.engine.scoring import NONE, Reading, Scores, spans
from luthier.models.half import in_its_dtype

Pooling = Literal["last", "mean"]
"""Which hidden states make the vector of a text: those of its last token, or the mean of all."""


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
        """Reads the prompts of `jobs` in one pass, gives each a token, and keeps those that go on with their adapter.

        What has turned to another adapter comes with its answer so far, and that one reads it all. A prompt that
        several ask of one adapter is read once, and one with pictures in a pass of its own (`Job.apart`). An exception
        of the pass leaves the running rows as they were, and `jobs` without a further token.
        """
        asked = [(job.adapter, job.text) for job in jobs]
        places = {each: place for place, each in enumerate(dict.fromkeys(asked))}
        with torch.inference_mode():
            lengths = [len(prompt) for _, prompt in places]
            ids = [[0] * (max(lengths) - len(prompt)) + list(prompt) for _, prompt in places]
            prompts, names = DynamicCache(), [adapter for adapter, _ in places]
            top = max((job.scored for job in jobs if job.scored is not None), default=None)
            seen = jobs[0].request.seen
            logits, scores, shift = self._read(ids, lengths, prompts, names, top, seen)
            if len(places) < len(jobs):
                logits = logits[[places[each] for each in asked]]
            choices = choose(logits, [job.draw for job in jobs])
        for job, choice, each in zip(jobs, choices, asked, strict=True):
            job.enters()
            job.read(scores[places[each]])
            if job.finish is None:
                job.take(choice)
        going = [row for row, job in enumerate(jobs) if job.stays]
        if going:
            with torch.inference_mode():
                self._cache.join(prompts, lengths, [places[asked[row]] for row in going], shift)
            self.jobs += [jobs[row] for row in going]

    def step(self) -> None:
        """One token for every row."""
        with torch.inference_mode():
            self._cache.ready()
            ids = [[job.last] for job in self.jobs]
            lengths = [length + 1 for length in self._cache.lengths]
            shifts = self._cache.frame.shifts
            logits = self._logits(ids, lengths, self._cache, [job.adapter for job in self.jobs], shifts)
            self._cache.advance()
            choices = choose(logits, [job.draw for job in self.jobs])
        for job, choice in zip(self.jobs, choices, strict=True):
            job.take(choice)
        self.drop_finished()

    def drop_finished(self) -> None:
        """Takes out the rows whose jobs are over, or turn to another adapter; the last row moves into a place that
        becomes free."""
        with torch.inference_mode():
            for row in reversed(range(len(self.jobs))):
                if not self.jobs[row].stays:
                    self._cache.drop(row)
                    self.jobs[row] = self.jobs[-1]
                    self.jobs.pop()

    def clear(self) -> None:
        """Drops every row."""
        self.jobs = []
        self._cache.clear()
        self.row_assignment.release()

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str | None, pooling: Pooling) -> list[list[float]]:
        """Returns a vector of unit length for each prompt, read in one pass with an adapter."""
        lengths = [len(prompt) for prompt in prompts]
        ids = [[0] * (max(lengths) - len(prompt)) + list(prompt) for prompt in prompts]
        with torch.inference_mode():
            out = self._forward(ids, lengths, None, [adapter] * len(ids), [max(lengths) - 1], output_hidden_states=True)
            states = out.hidden_states[-1].float()
            if pooling == "mean":
                mask = attention_mask(lengths, states.device)[..., None].bool()
                pooled = states.where(mask, 0).sum(1) / torch.tensor(lengths, device=states.device)[:, None]
            else:
                pooled = states[:, -1]
            return torch.nn.functional.normalize(pooled, dim=-1).tolist()

    def _read(
        self,
        ids: list[list[int]],
        lengths: Sequence[int],
        cache: DynamicCache,
        names: list,
        top: int | None,
        seen: Seen | None,
    ) -> tuple[Tensor, Sequence[Scores], int]:
        """The logits behind every prompt, and unless `top` is None, the scores of the prompts' own tokens with so many
        alternatives; last, what positions are ahead of tokens behind pictures. Logits of a whole prompt may be too many
        to hold: then they come in several passes."""
        if seen is not None:
            out = self._looked(ids, cache, names, seen)
            ahead = out.get("rope_deltas")
            return out.logits[:, -1], [NONE] * len(ids), 0 if ahead is None else int(ahead[0])
        if top is None:
            return self._logits(ids, lengths, cache, names), [NONE] * len(ids), 0
        reading, width = Reading(ids, lengths, top), len(ids[0])
        last: Tensor | None = None
        for start, stop in spans(width, len(ids), self.model.config.get_text_config().vocab_size):
            kept = range(start, stop)
            logits = self._forward(ids, lengths, cache if last is None else None, names, kept).logits
            logits = logits[:, -len(kept) :] if "logits_to_keep" in self._takes else logits[:, start:stop]
            reading.add(logits, start)
            last = logits[:, -1] if last is None else last
        assert last is not None
        return last, reading.scores(), 0

    def _looked(self, ids: list[list[int]], cache: DynamicCache, names: list, seen: Seen) -> Any:
        """A pass over one prompt with its pictures, whose positions are the model's own affair."""
        tokens, device = len(ids[0]), self.model.device
        beside = {name: value.to(device) for name, value in seen.inputs(tokens).items()}
        wanted = {"logits_to_keep": torch.tensor([tokens - 1], device=device)}
        mask = torch.ones(1, tokens, dtype=torch.long, device=device)
        return self._passed(ids, mask, cache, names, wanted, in_its_dtype(self.model, beside))

    def _logits(
        self, ids: list[list[int]], lengths: Sequence[int], cache: DynamicCache, names: list, shifts: Sequence[int] = ()
    ) -> Tensor:
        """The logits behind the last token of every row, [rows, vocabulary]; `lengths` count the tokens of `ids`."""
        return self._forward(ids, lengths, cache, names, [len(ids[0]) - 1], shifts).logits[:, -1]

    def _forward(
        self,
        ids: list[list[int]],
        lengths: Sequence[int],
        cache: DynamicCache | None,
        names: list,
        kept: Iterable[int],
        shifts: Sequence[int] = (),
        **more: bool,
    ) -> Any:
        """One pass over the rows; `kept` are the columns of `ids` whose logits are wanted (some models give all)."""
        device = self.model.device
        mask = attention_mask(lengths, device)
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -len(ids[0]) :]
        if any(shifts):
            places = places + torch.tensor(shifts, device=device)[:, None]
        # as a tensor, because a slice is not contiguous, and a frozen head would be copied for every row
        wanted = {"position_ids": places, "logits_to_keep": torch.tensor([*kept], device=device)}
        return self._passed(ids, mask, cache, names, wanted, more)

    def _passed(
        self,
        ids: list[list[int]],
        mask: Tensor,
        cache: DynamicCache | None,
        names: list,
        wanted: Mapping[str, Tensor],
        more: Mapping[str, Any],
    ) -> Any:
        """What the model gives for rows, each with its adapter; of `wanted` it gets what it takes."""
        self.row_assignment.set(names)
        return self.model(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=mask,
            use_cache=cache is not None,
            **cache_argument(self.model, cache),
            **{name: value for name, value in wanted.items() if name in self._takes},
            **more,
        )


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

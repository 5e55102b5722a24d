"""What a training step costs: its time over the frozen base's, and the memory that it adds."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luthier import data, models
from luthier.comparing.fitted import Fitted
from luthier.comparing.plan import Job
from luthier.core.contracts.kernel import reference_implementation
from luthier.core.device import device_of
from luthier.core.sites.tables import token_tables
from luthier.data.labels import labels_in_order
from luthier.training.context import running_norms

Batch = dict[str, Any]


@dataclass(frozen=True)
class Costs:
    """Of one training step; None where nothing was trained or timed."""

    seconds: float | None = None
    """Median forward and backward pass."""
    ratio: float | None = None
    """Over the frozen base's, with the gradients of its activations: median of the pairs' ratios."""
    peak: int | None = None
    """Bytes over the loaded base: the adapter, and the step's own peak with a fresh AdamW."""


def costs(job: Job, fitted: Fitted, repeats: int) -> Costs:
    """Times `repeats` training batches on the adapted model and on its base in turn, after one warm-up of each.

    Memory is what the allocator was asked for during one more step: forward, backward, AdamW at a learning rate of
    zero. On a GPU it is CUDA's own peak; on a CPU that of the tensors that operations make, without what they use
    within themselves. Of an update that trains a part at a time, it is that of the last step. The weights stay.
    """
    if not (fitted.trained and repeats):
        return Costs()
    batches, model = _batches(job, fitted, repeats), fitted.model
    loss = job.run.objective.loss
    model.train()
    for norm in running_norms(model):
        norm.eval()
    try:
        with _left(fitted):
            trained = [p for p in model.parameters() if p.requires_grad]
            _floor(fitted, loss, batches[0])
            _timed(model, loss, batches[0])
            pairs = [(_timed(model, loss, batch), _floor(fitted, loss, batch)) for batch in batches]
            growth = _growth(lambda: _step(model, loss, batches[0], trained))
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)
    ratios = [step / floor for step, floor in pairs]
    return Costs(statistics.median(step for step, _ in pairs), statistics.median(ratios), fitted.bytes + growth)


@contextmanager
def _left(fitted: Fitted) -> Iterator[None]:
    """What the last step of training left has no gradients here either."""
    held = dict(fitted.model.named_parameters())
    left = [held[name] for name in fitted.resting if name in held]
    for parameter in left:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in left:
            parameter.requires_grad_(True)


def _batches(job: Job, fitted: Fitted, repeats: int) -> list[Batch]:
    """The first training rows, in batches of the run's size."""
    settings, read, model = job.run.training, job.data, fitted.model
    rows = read.examples.rows[: repeats * settings.batch]
    features = data.encode_all(
        read.examples.keep(rows),
        fitted.processor,
        task=read.task,
        max_length=settings.max_length,
        labels=read.labels,
        truncate=settings.truncate,
        positions=models.positions(model),
        pictures=job.run.objective.sees,
    )
    collator = data.collator_for(read.task, fitted.processor)
    ordered = labels_in_order(features, read.labels, model.config)
    made = [collator(list(ordered[i : i + settings.batch])) for i in range(0, len(ordered), settings.batch)]
    device = next(model.parameters()).device
    full = [{key: value.to(device) for key, value in batch.items() if key != "rows"} for batch in made]
    return [full[i % len(full)] for i in range(repeats)]


def _timed(model: Any, loss: Callable, batch: Batch) -> float:
    """Seconds of a forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    _wait()
    begun = time.perf_counter()
    loss(model, batch).sum().backward()
    _wait()
    return time.perf_counter() - begun


def _floor(fitted: Fitted, loss: Callable, batch: Batch) -> float:
    """The same of the frozen base as it came, whose activations still get gradients, as below any adapter."""
    with reference_implementation(), fitted.frozen(), _reached(fitted.model, batch) as inputs:
        return _timed(fitted.model, loss, inputs)


@contextmanager
def _reached(model: Any, batch: Batch) -> Iterator[Batch]:
    """Gradients go back to the embeddings, or to the inputs of a model that has none."""
    if "input_ids" not in batch:
        yield {k: v.detach().requires_grad_() if v.is_floating_point() else v for k, v in batch.items()}
        return
    reach = lambda module, args, out: out.requires_grad_()  # noqa: E731
    handles = [table.register_forward_hook(reach) for table in token_tables(model)]
    try:
        yield batch
    finally:
        for handle in handles:
            handle.remove()


def _step(model: Any, loss: Callable, batch: Batch, trained: Sequence[nn.Parameter]) -> None:
    """A whole training step that moves nothing."""
    optimiser = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    loss(model, batch).sum().backward()
    optimiser.step()


def _growth(step: Callable[[], None]) -> int:
    """Bytes at the peak of `step` over those before it."""
    if device_of().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with Allocated() as seen:
        step()
    return seen.peak


class Allocated(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, each storage once and until it is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.level = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """The operation, and the storages that it gave."""
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _stored(t)}
        for tensor in tree_leaves(made):
            if _stored(tensor) and tensor.untyped_storage()._cdata not in given:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.level += storage.nbytes()
        self.peak = max(self.peak, self.level)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.level -= size


def _stored(value: Any) -> bool:
    """Whether a value has numbers of its own; a matrix in rows of chosen entries is made of tensors that have them."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _wait() -> None:
    if device_of().type == "cuda":
        torch.cuda.synchronize()

"""The teacher of a run that distils: the base, the base with a finished adapter, or another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from luthier import models
from luthier.core.adapters.attach import detach
from luthier.core.adapters.control import acting, disable, disabled, set_acting, tensors, use
from luthier.core.contracts.objective import Batch
from luthier.core.errors import LuthierError
from luthier.core.sites.entering import whole_passes
from luthier.core.sites.probe import eval_mode
from luthier.core.storage.folder import adapter_at, adapter_folder
from luthier.core.storage.store import load
from luthier.data.rewriting.api import is_address
from luthier.training.served_teacher import ServedTeacher
from luthier.training.spec import Run

Teacher = Callable[[Batch], Tensor]
READ = ("input_ids", "attention_mask")
"""What another model is called with: nothing that is said to adapters."""


def check_teacher(run: Run, processor: Any) -> None:
    """Raises `LuthierError` for a teacher that is neither an adapter nor a model or server of the same vocabulary."""
    name = run.objective.teacher_name()
    if not run.objective.teaches or name is None or (not is_address(name) and adapter_at(name)):
        return
    if is_address(name):
        ServedTeacher(name).check(processor)
        return
    own, other = (each.get_vocab() for each in (processor, models.processor_of(name, "causal-lm")))
    if own != other:
        differing = len(set(own.items()) ^ set(other.items()))
        raise LuthierError(
            f"the teacher {name} has another vocabulary than {run.model} ({len(other):,} tokens and {len(own):,}, "
            f"{differing:,} of them differ), so that their distributions cannot be compared; take a model of the same "
            "family."
        )


@contextmanager
def teacher_of(run: Run, model: Any) -> Iterator[Teacher | None]:
    """The logits of the teacher while the context lasts, of a server the log-probabilities of the next tokens; an
    adapter is on `model` as long, silent and never trained."""
    name = run.objective.teacher_name()
    if not run.objective.teaches:
        yield None
    elif name is not None and is_address(name):
        yield ServedTeacher(name)
    elif name is None:
        yield lambda batch: _base(model, batch)
    elif adapter_at(name):
        own = f"{run.name}-teacher"
        load(model, adapter_folder(name), own)
        for tensor in tensors(model, own).values():
            tensor.requires_grad_(False)
        disable(model, own)
        try:
            yield lambda batch: _adapted(model, own, batch)
        finally:
            detach(model, own)
    else:
        other = models.load(name, dtype=run.training.precision, device=str(model.device)).model
        yield lambda batch: other(**{key: batch[key] for key in READ if key in batch}).logits


def _base(model: Any, batch: Batch) -> Tensor:
    with eval_mode(model), disabled(model):
        return model(**batch).logits


def _adapted(model: Any, name: str, batch: Batch) -> Tensor:
    before = acting(model)
    use(model, name)
    try:
        with eval_mode(model), whole_passes():  # it may act below the blocks that are kept
            return model(**batch).logits
    finally:
        set_acting(model, before)

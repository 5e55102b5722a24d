"""A model before and after: an adapter on its base, or a fine-tuned model beside the base that it grew out of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from luthier import data, models
from luthier.combining.lower import lowered
from luthier.combining.parameter_refs import ParameterRef, wide
from luthier.combining.prepare import Job, prepare
from luthier.core.adapters.attach import detach, find_state
from luthier.core.adapters.swap import adapters_of
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.examination import Batch, Change, Pair
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope
from luthier.core.sites.structure import features, weight_of
from luthier.core.storage.folder import adapter_at
from luthier.core.storage.store import load
from luthier.data import Examples
from luthier.measuring.progress import told
from luthier.methods.combinations.task_arithmetic import TaskArithmetic


def pair_of(
    base: nn.Module, target: Path, batches: Mapping[str, Sequence[Batch]], task: str, console: Console, *, force: bool
) -> Pair:
    """Returns the base, and the adapter or model in the folder `target`; nothing is read yet."""
    if find_state(base) is not None:
        raise LuthierError("the base carries an adapter; detach it first, as it is what stood before fitting.")
    folder = adapter_at(target)
    after = partial(_tuned, base, target, task) if folder is None else partial(_adapted, base, folder, force)
    return Pair(
        changes=partial(changes_of, base, target, force=force),
        before=lambda: nullcontext(base),
        after=after,
        data=batches,
        watch=partial(_watched, console),
    )


@contextmanager
def _adapted(base: nn.Module, folder: Path, force: bool) -> Iterator[nn.Module]:
    try:
        yield load(base, folder, force=force)
    finally:
        if find_state(base) is not None:
            detach(base)


@contextmanager
def _tuned(base: nn.Module, folder: Path, task: str) -> Iterator[nn.Module]:
    parameter = next(base.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    yield models.load(str(folder), task=task, dtype=dtype, device=str(parameter.device)).model


def _watched(console: Console, text: str, items: Sequence) -> Iterable:
    with told(console, text) as shown:
        yield from shown(items)


def changes_of(base: nn.Module, target: str | Path, *, force: bool = False) -> list[Change]:
    """Returns what the adapter or model in a folder changes of a bare base, tensor by tensor, each read when asked for.

    Raises `LuthierError` for another base, and for forms that no weight can express.
    """
    job = prepare(TaskArithmetic(), [target], base, None, merged=False, force=force)
    return [Change(group[0].place(job.scope, {}), partial(_delta, job, group)) for group in job.groups]


def _delta(job: Job, group: Sequence[ParameterRef]) -> Delta:
    (delta,) = job.at(group, {})[1]
    return delta


def changes_in(model: nn.Module) -> list[Change]:
    """Returns what the enabled adapters of a model change of its linear layers' weights.

    Layers whose adapter no weight can express, and all other places, are left out.
    """
    scope, found = Scope(model), []
    for path, module in model.named_modules():
        adapters = adapters_of(module)
        if adapters is None or features(module) is None:
            continue
        tuners = [tuner for tuner in adapters.tuners() if tuner.enabled and _on_weight(tuner)]
        if tuners and all(tuner.form.linear and tuner.form.positions == "all" for tuner in tuners):
            ref, (d_in, d_out) = ParameterRef(path, "weight", module), features(module) or (0, 0)
            unpacked = partial(_unpacked, module)
            place = replace(ref.place(scope, {}), shape=(d_out, d_in), base=unpacked)  # of a quantised one, dequantised
            found.append(Change(place, partial(_lowered, ref, tuners)))
    return found


def _unpacked(module: nn.Module) -> Tensor:
    return wide(weight_of(module))


def _on_weight(tuner: TunerLayer) -> bool:
    return tuner.site.kind == "affine" or (tuner.site.kind == "param" and tuner.site.path.endswith(".weight"))


def _lowered(ref: ParameterRef, tuners: Sequence[TunerLayer]) -> Delta:
    found = lowered(ref.path, ref.module, tuners)["weight"]
    stored = ref.flipped and tuners[0].site.kind == "param"
    return Delta.dense_of(found.dense().mT) if stored else found


def batches_of(
    examples: Mapping[str, Examples], model: nn.Module, processor: Any, task: str, batch: int, max_length: int
) -> dict[str, list[Batch]]:
    """Returns every data set as batches of the model's arguments; without any, `processor` may be None."""
    if not examples:
        return {}
    config: Any = model.config if "classification" in task else None
    names = None if config is None else list(config.id2label.values())
    collator, found = data.collator_for(task, processor), {}
    options: Any = {"task": task, "max_length": max_length, "truncate": True, "positions": models.positions(model)}
    for name, each in examples.items():
        rows = data.encode_all(each, processor, labels=names, **options)
        parts = [collator(rows[start : start + batch]) for start in range(0, len(rows), batch)]
        found[name] = [{key: value for key, value in part.items() if key != "rows"} for part in parts]
    return found

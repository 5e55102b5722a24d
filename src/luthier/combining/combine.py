"""The function `combine`: it merges several changes of one base into one adapter or model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from luthier.combining import guards
from luthier.combining.parameter_refs import ParameterRef, wide
from luthier.combining.plot import plot
from luthier.combining.prepare import Job, prepare
from luthier.combining.result import Adapter, Into, Result
from luthier.combining.tally import JSON, PLOT, Combined, Row, Tally
from luthier.core.contracts.combination import Combination
from luthier.core.contracts.component import find
from luthier.core.errors import LuthierError
from luthier.core.files import committed, must_be_free
from luthier.core.numerics.delta import Delta
from luthier.core.records import write_json
from luthier.measuring.progress import told


def combine(
    method: str | Combination,
    inputs: Sequence[str | Path],
    *,
    base: nn.Module,
    out: str | Path,
    weights: Sequence[float] | None = None,
    source: str | None = None,
    merged: bool = False,
    rank: int | None = None,
    processor: Any = None,
    name: str | None = None,
    new: Sequence[str] = (),
    force: bool = False,
    progress: bool = False,
) -> Combined:
    """Combines `inputs` (folders of adapters or of fine-tuned models) by `method` into the folder `out`.

    The result is an adapter of `base`, or, with `merged`, the whole model with `processor` (which is what prepares its
    inputs): `base` is then changed in place, as no second copy is held. `weights` are one number an input, 1 each
    unless told. `rank` truncates every matrix by SVD; the error is in the report. `source` is the base that the inputs
    were fitted on, for the methods that move them to another. `name` is how the base is called in the adapter's spec.
    `new` are the modules that the base's checkpoint lacks (`Loaded.new_modules`): they hold random numbers, which are
    set to 0, and what the inputs hold there is averaged by the weights, whatever the method, as there is no change.

    Raises `LuthierError` before any work for a wrong number of weights, inputs of other bases, tasks or classes (unless
    `force`), and shapes, vocabularies or settings that do not fit.
    """
    console = Console(stderr=True, quiet=not progress)
    made = find("combinations", method)() if isinstance(method, str) else method
    if not isinstance(made, Combination):
        raise LuthierError(f"{made.name()} is not a combination.")
    folder = must_be_free(out)
    if rank is not None and rank < 1:
        raise LuthierError(f"rank is {rank}; expected at least 1.")
    numbers = guards.check_weights(weights, len(_some(inputs)))
    job = prepare(made, inputs, base, source, new=new, merged=merged, force=force)
    if job.new:
        guards.check_mean(numbers)
    with torch.no_grad():
        totals = _surveyed(job, numbers, console)
        with committed(folder) as temporary:
            result = Into(base, job.processor or processor) if merged else Adapter(base, job.scope, temporary, job.new)
            tally = _merged(job, numbers, totals, rank, result, console)
            known = {
                **job.measured,
                "combined": {"method": made.name(), "settings": made.to_dict(), "weights": numbers},
            }
            kept = result.save(temporary, name or getattr(base, "name_or_path", ""), known)
            report = Combined(folder, made, tuple(map(str, inputs)), numbers, kept, totals, tally)
            write_json(temporary / JSON, report.to_dict())
            plot(report.to_dict(), temporary / PLOT)
    return report


def _some(inputs: Sequence[str | Path]) -> Sequence[str | Path]:
    if not inputs:
        raise LuthierError("nothing to combine: give at least one adapter or model folder.")
    return inputs


def _surveyed(job: Job, weights: Sequence[float], console: Console) -> dict[str, float]:
    """What the method measures over all tensors before it merges the first."""
    totals: dict[str, float] = {}
    if job.method.surveys:
        with told(console, "measuring") as shown:
            for group in shown([group for group in job.groups if group[0].name not in job.new]):
                at, deltas = job.at(group, {})
                for key, value in job.method.survey(deltas, weights, at).items():
                    totals[key] = totals.get(key, 0.0) + value
    return totals


def _merged(
    job: Job,
    weights: Sequence[float],
    totals: Mapping[str, float],
    rank: int | None,
    result: Result,
    console: Console,
) -> Tally:
    """Merges tensor after tensor into `result`."""
    tally = Tally(len(job.sources))
    with told(console, f"combining {len(job.groups):,} tensors") as shown:
        for group in shown(job.groups):
            at, deltas = job.at(group, totals)
            if group[0].name in job.new:
                merged = _mean(job, group, deltas, weights)
                tally.add(at.site.layer, deltas, merged)
                result.add(group, merged, False)
                continue
            merged = job.method.merge(deltas, weights, at)
            if merged.shape != at.shape:
                raise LuthierError(f"{job.method.name()} made {merged.shape} of {at.site}, which is {at.shape}.")
            row = tally.row(at.site.layer)
            if rank is not None and not merged.is_zero and len(at.shape) == 2:
                merged = _truncated(merged, rank, row)
            tally.add(at.site.layer, deltas, merged)
            row.gap += _gap(job, group)
            if not merged.is_zero:
                result.add(group, merged, group[0].name in job.apart)
    return tally


def _mean(job: Job, group: Sequence[ParameterRef], deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """The weighted mean of the inputs that hold a module which the base lacks."""
    held = [i for i, each in enumerate(job.sources) if each.touches(group)]
    total = guards.check_mean([weights[i] for i in held])
    tensors = [weights[i] / total * deltas[i].dense() for i in held]
    return Delta.dense_of(torch.stack(tensors).sum(0))


def _truncated(delta: Delta, rank: int, row: Row) -> Delta:
    if rank >= min(delta.shape) or (delta.rank is not None and delta.rank <= rank):
        return delta
    norm = delta.norm()
    best, lost = delta.factor(rank)
    row.lost += (lost * norm) ** 2
    return best


def _gap(job: Job, group: Sequence[ParameterRef]) -> float:
    """‖W_base - W_source‖² of one tensor; 0 without a source, rows that one of the two lacks left out."""
    if job.old is None:
        return 0.0
    old, new = wide(job.old.get(group[0].name)), wide(group[0].tensor)
    if old.dim():
        rows = min(len(old), len(new))
        old, new = old[:rows], new[:rows]
    return float((new - old).norm()) ** 2

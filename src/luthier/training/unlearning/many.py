"""KLOM over many models: trained on all rows, unlearned, and trained on the retained rows alone, each with a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.contracts.example import Examples
from luthier.core.device import AUTO
from luthier.core.errors import LuthierError
from luthier.core.records import recorded, replace_json
from luthier.training.run import train
from luthier.training.spec import Run
from luthier.training.unlearning.klom import klom_above_null, margins
from luthier.training.unlearning.spec import Unlearn

KINDS = ("original", "unlearned", "retrained", "null")
Losses = Mapping[str, np.ndarray]
"""The loss of each row, by set (forget, retain, test)."""


def klom_figures(
    spec: Unlearn, run: Run, folder: Path, losses: Callable[[Run], Losses], lowered: Callable[[Unlearn, Run], Losses]
) -> dict[str, dict[str, float]]:
    """Returns KLOM above its null by set: `before` of the models trained on all rows, `after` of the unlearned ones.

    `spec.models` models of each of `KINDS`; `retrained` and `null` are both trained on the retained rows. `losses` of a
    run that is there, `lowered` of an unlearning of it. `folder` keeps what was measured of each, for going on.
    """
    found: dict[str, list[Losses]] = {kind: [] for kind in KINDS}
    for kind, number, one in _models(spec, run, folder):
        noted = folder / f"{kind}-{number}.json"
        if not noted.is_file():
            measured = _made(kind, number, one, spec, folder, losses, lowered)
            replace_json(noted, {name: values.tolist() for name, values in measured.items()})
        with recorded(noted) as told:
            found[kind].append({name: np.asarray(values, float) for name, values in told.items()})
    figures = {}
    for name in found["null"][0]:
        stacked = {kind: margins(np.stack([each[name] for each in found[kind]])) for kind in KINDS}
        before, after = (klom_above_null(stacked[kind], stacked["retrained"], stacked["null"])
                         for kind in ("original", "unlearned"))  # fmt: skip
        span = {"low": after["low"], "high": after["high"], "count": stacked["null"].shape[1]}
        figures[f"{name} KLOM above null"] = {"before": before["above null"], "after": after["above null"], **span}
    return figures


def _models(spec: Unlearn, run: Run, folder: Path) -> Iterator[tuple[str, int, Run]]:
    """(kind, number, the run that makes it or that it is unlearned from), each run of a seed of its own."""
    for number in range(spec.models):
        for place, kind in enumerate(KINDS):
            whole = kind == "original" or (kind == "unlearned" and not spec.unlearning.retrains)
            made_by = "original" if whole else kind
            seed = run.training.seed + 1 + number + (0 if whole else place * spec.models)
            one = on_all(run, run.data if whole else spec.retain, folder / f"{made_by}-{number}")
            yield kind, number, dataclasses.replace(one, training=dataclasses.replace(one.training, seed=seed))


def check_models(spec: Unlearn, run: Run, held: Examples | None, new: Examples | None) -> None:
    """Raises where models of other seeds would be trained on other rows, or on those that are to be new: what the run
    `held` out of its data, they learn."""
    if spec.models and run.limit is not None:
        raise LuthierError(
            f"models are trained with seeds of their own, by which {run.model}'s run draws its rows (limit "
            f"{run.limit:,}), so they would know others; train it on a file of its rows, or leave models out."
        )
    if spec.models and held is not None and new is not None:
        inputs = {row.key() for row in held.rows}
        if shared := sum(row.key() in inputs for row in new.rows):
            raise LuthierError(
                f"{shared:,} rows of {spec.test} are rows of {run.data}, all of which models are trained on; give "
                "others."
            )


def on_all(run: Run, data: str, out: Path) -> Run:
    """Returns the run on all rows of other data: none is held out or left, as which ones would go by its seed."""
    settings: dict[str, Any] = {"eval_fraction": 0.0, "device": AUTO, "shard": False}
    if run.eval_data is None:  # nothing to choose the best by
        settings |= {"best": None, "patience": None}
    return dataclasses.replace(
        run, data=data, limit=None, training=dataclasses.replace(run.training, **settings), out=str(out)
    )


def _made(
    kind: str,
    number: int,
    one: Run,
    spec: Unlearn,
    folder: Path,
    losses: Callable[[Run], Losses],
    lowered: Callable[[Unlearn, Run], Losses],
) -> Losses:
    if kind == "unlearned" and not spec.unlearning.retrains:
        own = dataclasses.replace(
            spec, adapter=one.out, out=str(folder / f"unlearned-{number}"), seed=spec.seed + number
        )
        return lowered(own, one)
    train(one, resume=(Path(one.out) / "run.json").is_file(), progress=False)
    return losses(one)


def check_classes(spec: Unlearn, known: list[str] | None, retained: list[str] | None) -> None:
    """Raises where a model of the retained rows alone could not be measured: it would not know all classes."""
    lost = sorted(set(known or []) - set(retained or []))
    if lost and (spec.models or spec.unlearning.retrains):
        raise LuthierError(
            f"{spec.retain} has no row of {', '.join(lost)}, so a model that is trained on it alone has no such class, "
            "and cannot be measured on the rows to forget; retain at least one, or take another way without models."
        )

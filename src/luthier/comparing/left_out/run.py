"""Leave one group out: train on the others, and measure what that tells of the group, beside less training."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import set_seed

from luthier.comparing.left_out.sets import QuestionSet, read_sets
from luthier.core.errors import LuthierError
from luthier.core.files import claimed
from luthier.core.numerics.resampling import mean_interval
from luthier.core.owner import owned
from luthier.core.records import as_read, recorded, replace_json
from luthier.evaluating import evaluate
from luthier.evaluating.yes_no import description
from luthier.training.base import load_base
from luthier.training.beginning import begin
from luthier.training.context import loading_for
from luthier.training.folder import holds_run
from luthier.training.run import train
from luthier.training.spec import Run

SPEC, RESULT, GROUPS, SCORES = "metatune.json", "left_out.json", "groups", "scores.json"
UNTUNED, SINGLE, ALL = "untuned", "one set", "all sets"
WAYS = (UNTUNED, SINGLE, ALL)
Areas = dict[str, dict[str, float]]
"""By way, the area under the ROC curve of each description."""


@dataclass(frozen=True)
class LeftOut:
    """What training on other groups tells of a group."""

    folder: Path
    areas: dict[str, Areas]
    """By group, way (untuned, one set, all sets) and `set: description`: the area under the ROC curve."""
    figures: dict[str, dict[str, dict[str, float]]]
    """By group, and of `all` together: by way the mean `auc` over descriptions, with `low` and `high` of its 95%
    interval over these; and of `all sets - untuned` and `all sets - one set` the mean difference likewise."""
    trained_on: dict[str, dict[str, list[str]]]
    """By group and way, the sets that were trained on."""


def leave_out(
    run: Run,
    sets: Sequence[str],
    *,
    single: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> LeftOut:
    """Trains on the questions of all groups except one, and tests on that one; each group in turn.

    `run` is what is trained (its data are not read), `sets` are files of questions (`luthier rewrite --by yes_no`).
    Beside it stand the untuned model, and as many steps on one set: `single`, or the largest of the other groups. The
    folder `run.out` gets `metatune.json`, `left_out.json`, and the runs in `groups/`. With `resume` a killed one goes
    on. Raises `LuthierError` for what the groups have in common, before any weights are loaded.
    """
    console = Console(stderr=True, quiet=not progress)
    folder = claimed(run.out, SPEC, "a meta-tuning", resume, overwrite)
    read = read_sets(sets, run.columns)
    _check_single(read, single)
    with loading_for(run), owned(folder):
        told = {**as_read(run.to_dict()), "sets": list(sets), "single": single}
        here = {"metatune": {key: told[key] for key in told if key != "data"}}
        here["data"] = {each.source: each.rows.fingerprint for each in read}
        if overwrite:
            shutil.rmtree(folder / GROUPS, ignore_errors=True)
        begin(folder, SPEC, here, "meta-tuning", overwrite, [folder / RESULT])
        areas, trained = {}, {}
        for number, group in enumerate(sorted({each.group for each in read})):
            console.rule(f"left out: {group}")
            work = _Group(run, read, group, single, folder / GROUPS / str(number + 1), progress)
            areas[group], trained[group] = work.areas(), work.sources
        figures = _figures(areas, run.training.seed)
        made = LeftOut(folder, areas, figures, trained)
        replace_json(folder / RESULT, {"figures": figures, "areas": areas, "trained_on": trained})
        return made


def _check_single(read: Sequence[QuestionSet], single: str | None) -> None:
    if single is None:
        return
    found = next((each for each in read if each.source == single), None)
    if found is None:
        raise LuthierError(f"single is {single}, which is none of the sets: {', '.join(each.source for each in read)}.")


class _Group:
    """The work for one group that is left out."""

    def __init__(
        self, run: Run, read: Sequence[QuestionSet], group: str, single: str | None, folder: Path, progress: bool
    ) -> None:
        others = [each for each in read if each.group != group]
        largest = max(others, key=lambda each: len(each.rows))
        one = next((each for each in others if each.source == single), largest)
        self.run, self.folder, self.progress = run, folder, progress
        self.held = [each for each in read if each.group == group]
        self.sources = {UNTUNED: [], SINGLE: [one.source], ALL: [each.source for each in others]}

    def areas(self) -> Areas:
        """What is measured of the group; read where it was before a kill."""
        if (self.folder / SCORES).is_file():
            with recorded(self.folder / SCORES) as known:
                return {way: known[way] for way in WAYS}
        set_seed(self.run.training.seed)  # heads that are new
        task = self.held[0].rows.task
        labels = self.held[0].rows.labels
        base = load_base(self.run, task, labels)
        found = {UNTUNED: self._measured(base.model, base.processor)}
        del base
        done = self._trained(ALL, None)
        found[ALL] = self._measured(done.model, done.processor)
        if self.sources[SINGLE] != self.sources[ALL]:  # else it is the same run
            done = self._trained(SINGLE, done.losses[-1][0])
        found[SINGLE] = self._measured(done.model, done.processor)
        ordered = {way: found[way] for way in WAYS}
        replace_json(self.folder / SCORES, ordered)
        return ordered

    def _trained(self, way: str, steps: int | None) -> Any:
        """A run on the sets of this way, for as many steps as another one took."""
        sources = self.sources[way]
        mixed = "mix:" + ",".join(f"{i + 1}={each}" for i, each in enumerate(sources))
        training = self.run.training if steps is None else dataclasses.replace(self.run.training, steps=steps)
        out = self.folder / way.replace(" ", "-")
        data = mixed if len(sources) > 1 else sources[0]
        own = dataclasses.replace(self.run, data=data, out=str(out), training=training)
        return train(own, resume=holds_run(out), progress=self.progress)

    def _measured(self, model: Any, processor: Any) -> dict[str, float]:
        """The area under the ROC curve of each description of the group."""
        found: dict[str, float] = {}
        for each in self.held:
            told = evaluate(
                model, processor, each.rows, batch=2 * self.run.training.batch, yes_no=True, progress=self.progress,
                max_length=self.run.training.max_length, keep_predictions=False,
            )  # fmt: skip
            several = {name: values["auc"] for name, values in told.tasks.items()}
            areas = several or {description(each.rows.rows[0]): told.score}
            found |= {f"{each.source}: {name}": area for name, area in areas.items()}
        return found


def _figures(areas: dict[str, Areas], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    together = {way: {f"{g}: {d}": v for g, ways in areas.items() for d, v in ways[way].items()} for way in WAYS}
    return {name: _of(ways, seed) for name, ways in {**areas, "all": together}.items()}


def _of(ways: Areas, seed: int) -> dict[str, dict[str, float]]:
    columns = {way: np.asarray(list(ways[way].values())) for way in WAYS}
    columns |= {f"{ALL} - {way}": columns[ALL] - columns[way] for way in (UNTUNED, SINGLE)}
    found = {}
    for name, values in columns.items():
        low, high = mean_interval(values, seed, share=name in WAYS)
        found[name] = {"auc": float(values.mean()), "low": low, "high": high, "descriptions": len(values)}
    return found

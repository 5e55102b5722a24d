"""A model without its weights, to try a selector and a budget on before anything long begins."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from luthier import models
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.ranks import Ranks
from luthier.core.contracts.statistic import joined
from luthier.core.contracts.update import Update
from luthier.core.sites.select import select
from luthier.measuring.allocation import resolve_targets
from luthier.methods.targeted_form import TargetedForm


class Tried(NamedTuple):
    """What is known of a model without its weights."""

    processor: Any
    positions: int | None
    """Tokens that it can number; None: any."""


def trial(
    model: str,
    task: str,
    form: Form,
    where: str | None,
    ranks: Ranks | None,
    budget: str | None,
    update: Update | None = None,
    also: Sequence[TargetedForm] = (),
    init: Init | None = None,
) -> Tried:
    """What is known of a model, after selectors, budget, start and update were tried on its shapes alone."""
    import torch

    path = models.resolve(model)
    with _told(model, path, task):
        config = models.config_at(path)
        processor = models.processor_at(path, task, config)
        with torch.device("meta"):
            empty = models.class_of(task, config).from_config(config, trust_remote_code=models.trusted())
    sites, *_ = resolve_targets(empty, form, where, ranks, budget)
    further = [(targeted.form, select(empty, targeted.place)) for targeted in also]
    # refuses a form that the start does not serve, and settings that no single pass can follow
    joined([statistic for each in (ranks, init) if each is not None for statistic in each.statistics(form)])
    if update is not None:
        update.check_form(form, sites)
        for other, places in further:
            update.check_beside(other, places)
    return Tried(processor, models.positions(empty))


def _told(name: str, path: Path | str, task: str) -> AbstractContextManager[None]:
    hint = f"Check that {path} is whole and that its model serves this task."
    return models.explained(f"could not load {name!r} for {task}", lambda error: f"{models.first_line(error)} {hint}")

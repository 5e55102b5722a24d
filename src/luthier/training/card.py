"""The model card of a run."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from luthier.core.storage.card import front, usage
from luthier.models import licence_of as licence
from luthier.training import metrics
from luthier.training.prepare import Prepared
from luthier.training.report import Plan, span
from luthier.training.spec import Run

TEMPLATE = Path(__file__).with_name("card.md.j2")


def card(run: Run, prepared: Prepared, plan: Plan, lines: list[dict[str, Any]], record: dict[str, Any]) -> str:
    """Markdown: equation, where, base, data, results, versions, and the command that repeats the run."""
    known = licence(run.model)
    losses = [line["loss"] for line in lines if "loss" in line]
    evals = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return _template().render(
        run=run,
        form=run.form,
        where=run.where or run.form.where,
        settings=run.form.to_dict(),
        ranks=ranks_of(record["measured"]),
        training=run.training,
        prepared=prepared,
        plan=plan,
        first_loss=losses[0] if losses else None,
        last_loss=sum(losses[-10:]) / len(losses[-10:]) if losses else None,
        eval_loss=evals[-1] if evals else None,
        seconds=metrics.seconds(lines),
        licence=known,
        front=front(
            run.model,
            [run.form.name(), *(targeted.form.name() for targeted in run.also)],
            licence=run.license or known,
            task=prepared.task,
            data=run.data,
            eval_loss=evals[-1] if evals and math.isfinite(evals[-1]) else None,
        ),
        usage=usage(run.model, prepared.task, prepared.examples.labels),
        record=record,
    )


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def ranks_of(measured: dict[str, Any]) -> str:
    """Returns `gelora: 1 to 5, mean 1.4 at 60 sites`, or nothing where no rank was allocated."""
    if not measured:
        return ""
    ranks = list(measured["ranks"].values())
    return f"{measured['by']}: {span(ranks)} at {len(ranks)} sites"

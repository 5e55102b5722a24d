"""Training: from the specification of a run to its folder."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.ranks import Ranks
from luthier.core.contracts.selection import Selection
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError
from luthier.measuring.calibration import Calibration
from luthier.methods.objectives.sft import SFT
from luthier.methods.targeted_form import TargetedForm
from luthier.methods.updates.adamw import AdamW
from luthier.training.result import Result
from luthier.training.spec import Run, Training


def train(
    run: Run | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    notes: Sequence[str] = (),
    model: str | None = None,
    data: str | None = None,
    form: Form | None = None,
    where: str | None = None,
    out: str = "run",
    task: str | None = None,
    eval_data: str | None = None,
    objective: Objective | None = None,
    training: Training | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    name: str = "default",
    ranks: Ranks | None = None,
    init: Init | None = None,
    budget: str | None = None,
    calibration: Calibration | None = None,
    update: Update | None = None,
    also: Sequence[TargetedForm] = (),
    select: Selection | None = None,
    select_rows: int | None = None,
    target: str | None = None,
    license: str | None = None,
    columns: str | None = None,
    strict: bool = False,
) -> Result:
    """Trains `run`, or the run that the fields after `notes` describe (see `Run`), and fills its folder.

    The folder gets `run.json`, `adapter/`, `metrics.jsonl`, `loss.png`, `README.md` and `checkpoints/`. With
    `resume`, an interrupted run goes on from its newest whole checkpoint with the very losses that it would have
    had; a folder without a run starts one. `overwrite` replaces a run. Without `progress` nothing is printed; `notes`
    are lines to print before the overview.

    Raises `LuthierError` for bad rows, a selector that matches nothing, a folder in use and the like before the
    weights are loaded, and for a loss that is not finite, naming the step and the rows.
    """
    from luthier.training.session import Session

    fields = [model, data, form, where, task, eval_data, objective, training, limit, ranks, init, budget, calibration]
    later = (update, *also, select, select_rows, target, license, columns)
    usual = (out, name, skip_bad_rows, strict) == (Run.out, Run.name, Run.skip_bad_rows, Run.strict)
    if run is not None and (not usual or any(field is not None for field in (*fields, *later))):
        raise LuthierError("give a Run or its fields, not both.")
    if run is None:
        if model is None or data is None or form is None:
            raise LuthierError("training needs a model, data and a form (or a Run that holds them).")
        run = Run(
            model,
            data,
            form,
            where,
            out,
            task,
            eval_data,
            objective or SFT(),
            training or Training(),
            skip_bad_rows,
            limit,
            name,
            ranks,
            init,
            budget,
            calibration or Calibration(),
            update or AdamW(),
            tuple(also),
            select,
            select_rows,
            target,
            license,
            columns,
            strict,
        )
    return Session(run, progress, notes).train(resume, overwrite)

"""Training: from the specification of a run to its folder."""

from __future__ import annotations

from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.signature import takes
from luthier.training.result import Result
from luthier.training.spec import Run


@takes(Run)
def train(
    run: Run | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **fields: Any,
) -> Result:
    """Trains `run`, or the run that its fields describe (see `Run`), and fills its folder.

    The folder gets `run.json`, `adapter/`, `metrics.jsonl`, `loss.png`, `README.md` and `checkpoints/`. With
    `resume`, an interrupted run resumes from its newest complete checkpoint with the very losses that it would have
    had; a folder without a run starts one. `overwrite` replaces a run. Without `progress` nothing is printed.

    Raises `LuthierError` for bad rows, a selector that matches nothing, a folder in use and the like before the
    weights are loaded, and for a loss that is not finite, naming the step and the rows.
    """
    from luthier.training.session import Session

    if run is not None and fields:
        raise LuthierError("give a Run or its fields, not both.")
    return Session(run or _described(fields), progress).train(resume, overwrite)


def _described(fields: dict[str, Any]) -> Run:
    """The run that has these fields; None stands for a field's default."""
    given: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
    if not {"model", "data", "form"} <= set(given):
        raise LuthierError("training needs a model, data and a form (or a Run that holds them).")
    given["also"] = tuple(given.get("also", ()))
    return Run(**given)

"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.core.contracts.calibration import Calibration
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.ranks import Ranks
from luthier.core.contracts.selection import Selection
from luthier.core.contracts.update import Update
from luthier.methods.targeted_form import TargetedForm
from luthier.training.result import Result
from luthier.training.spec import Run
from luthier.training.spec import Training

def train(
    run: Run | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    model: str | None = None,
    data: str | None = None,
    form: Form | None = None,
    where: str | None = None,
    ranks: Ranks | None = None,
    init: Init | None = None,
    budget: str | None = None,
    update: Update | None = None,
    objective: Objective | None = None,
    also: tuple[TargetedForm, ...] = (),
    select: Selection | None = None,
    select_rows: int | None = None,
    target: str | None = None,
    calibration: Calibration | None = None,
    out: str = "run",
    task: str | None = None,
    eval_data: str | None = None,
    training: Training | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    name: str = "default",
    license: str | None = None,
    columns: str | None = None,
    strict: bool = False,
    trust_remote_code: bool = False,
) -> Result:
    """Trains `run`, or the run that its fields describe (see `Run`), and fills its folder.

    The folder gets `run.json`, `adapter/`, `metrics.jsonl`, `loss.png`, `README.md` and `checkpoints/`. With
    `resume`, an interrupted run resumes from its newest complete checkpoint with the very losses that it would have
    had; a folder without a run starts one. `overwrite` replaces a run. Without `progress` nothing is printed.

    Raises `LuthierError` for bad rows, a selector that matches nothing, a folder in use and the like before the
    weights are loaded, and for a loss that is not finite, naming the step and the rows.
    """

"""The figures that a run tells beside its loss, and whether its evaluations have what goes by them."""

from __future__ import annotations

from luthier.core.contracts.example import Examples
from luthier.core.errors import LuthierError
from luthier.models import SPEECH
from luthier.training import apart, loss_scale, noise_scale
from luthier.training.judged import told_of
from luthier.training.spec import Run
from luthier.training.writing import writes, written_of


def curves_of(run: Run, examples: Examples) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the figures of a run beside its loss, those that are drawn together side by side."""
    written = ((str(run.training.best),),) if writes(run, examples.task) else ()
    noise = noise_scale.CURVES if run.training.noise_scale else ()
    scale = loss_scale.CURVES if run.training.precision == "float16" else ()
    return (*_told(run, examples), *written, *noise, *scale)


def _told(run: Run, examples: Examples) -> tuple[tuple[str, ...], ...]:
    """The figures of the objective, and those that every evaluation of such rows tells."""
    return (*run.objective.curves, *told_of(examples.task, examples.labels), *apart.told_of(examples))


def check_evaluation(run: Run, examples: Examples, held: Examples | None) -> None:
    """Raises where the objective or `best` goes by evaluations and no row is held out for them, or by a figure that
    they do not tell."""
    objective, best = run.objective, run.training.best
    if held is None and (objective.eval_batches(0) != 0 or objective.steered):
        raise LuthierError(
            f"{objective.name()} goes by the evaluation loss, and no row is held out; give evaluation data "
            "(eval_data) or a share of the rows (eval_fraction)."
        )
    if held is None and best is not None:
        raise LuthierError(
            f"best goes by the evaluation ({best}), and no row is held out; give evaluation data "
            "(eval_data) or a share of the rows (eval_fraction)."
        )
    figures = ["loss", *(name for group in _told(run, examples) for name in group)]
    if held is not None and (held.scorer is not None or examples.task == SPEECH):
        figures += written_of(examples.task)
    if best is not None and best not in figures:
        raise LuthierError(f"best is {best!r}; an evaluation of this run tells: {', '.join(figures)}.")

"""The `--dry-run` of training: everything that comes before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.cli.commands.show import show_feature
from luthier.cli.output import console, say

if TYPE_CHECKING:
    from luthier.training import Run


def dry_run(run: Run, notes: Sequence[str] = ()) -> None:
    """Prints `notes`, what would be trained and the first row's tokens; the run folder is not touched."""
    from luthier import data
    from luthier.models import trusting
    from luthier.training.attachment import attach_all
    from luthier.training.estimate import estimate
    from luthier.training.penalised import refuse_alone
    from luthier.training.prepare import prepare, processes
    from luthier.training.progress import quiet
    from luthier.training.report import overview, plan_of, steps_of
    from luthier.training.rollouts.online import check_online
    from luthier.training.session import load

    with quiet(), trusting(run.trust_remote_code):
        refuse_alone(run)
        prepared = prepare(run)
        check_online(run, prepared)
        loaded = load(run, prepared)
        attach_all(run, loaded, prepared, console(stderr=True))
        plan = plan_of(run, prepared, loaded.model, steps_of(run, len(prepared.train), processes()))
        collator = data.collator_for(prepared.task, loaded.processor)
        memory = estimate(loaded.model, prepared.train, collator, run.objective, run.training.batch)
    for line in notes:
        console(stderr=True).print(line, markup=False, soft_wrap=True)
    console().print(overview(run, prepared, loaded.model, plan, memory))
    say()
    show_feature(prepared.train[0], loaded.processor)
    say("\nDry run: nothing was trained or written.")

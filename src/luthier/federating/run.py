"""`federate`: clients and a server in one process, round by round, to an adapter."""

from __future__ import annotations

from luthier.core.contracts.aggregation import Aggregation
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError
from luthier.federating.result import Federated
from luthier.federating.spec import Federation
from luthier.methods.objectives.sft import SFT
from luthier.methods.updates.adamw import AdamW
from luthier.training.spec import Run, Training


def federate(
    model: str,
    data: str,
    *,
    aggregation: str | Aggregation = "flora",
    form: Form | None = None,
    where: str | None = None,
    clients: int | None = None,
    rounds: int = 5,
    ranks: str | None = None,
    fraction: float = 1.0,
    split: str = "iid",
    concentration: float = 0.5,
    column: str | None = None,
    out: str = "federation",
    training: Training | None = None,
    task: str | None = None,
    eval_data: str | None = None,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    objective: Objective | None = None,
    update: Update | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Federated:
    """Simulates federated fine-tuning: `data` dealt to clients, each trains `form` (LoRA unless told) on its part.

    After each round the server aggregates (see `luthier.methods.aggregations`), every client counting for its rows, and
    measures the result on the rows held out. `training` is what a client does in one round: its epochs or steps are of
    its own rows, and its learning rate, warm-up and schedule begin anew. Ranks, split and the like are those of
    `Federation`. The clients take turns in this process and are in no way apart: for clients that are, see
    `luthier.federating.flower`.

    The folder gets `federation.json`, `metrics.jsonl`, `federation.png`, `state/` and `adapter/`. With `resume`, an
    interrupted run goes on behind the last client that finished, with the very adapter that it would have had; rounds
    may be added. Raises `LuthierError` for all bad input before the weights are loaded.
    """
    made = find("aggregations", aggregation)() if isinstance(aggregation, str) else aggregation
    if not isinstance(made, Aggregation):
        raise LuthierError(f"{made.name()} is not an aggregation.")
    chosen = form or find("forms", "lora")()
    assert isinstance(chosen, Form)
    run = Run(
        model,
        data,
        chosen,
        where,
        out,
        task,
        eval_data,
        objective or SFT(),
        training or Training(epochs=1),
        skip_bad_rows,
        limit,
        update=update or AdamW(),
    )
    federation = Federation(clients, rounds, ranks, fraction, split, concentration, column)  # pyright: ignore
    return carry_out(run, made, federation, resume=resume, overwrite=overwrite, progress=progress)


def carry_out(
    run: Run,
    method: Aggregation,
    federation: Federation,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Federated:
    """`federate`, for parts that are made."""
    from rich.console import Console

    from luthier.federating import folder as folders
    from luthier.federating.command import command
    from luthier.federating.prepare import overview, planned
    from luthier.federating.rounds import all_rounds
    from luthier.training.progress import quiet

    folder, console = folders.claim(run.out, resume, overwrite), Console(stderr=True, quiet=not progress)
    with quiet():
        plan = planned(run, method, federation)
        folders.begin(folder, {**plan.to_dict(), "command": command(run, method, federation)}, overwrite)
        console.print(plan.title, overview(plan), sep="\n", highlight=False)
        return all_rounds(plan, folder, console)

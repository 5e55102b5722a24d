"""The function `federate`: it simulates clients and a server in one process, round by round."""

from __future__ import annotations

import dataclasses
from typing import Any

from luthier.core.contracts.aggregation import Aggregation
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError
from luthier.core.signature import takes
from luthier.federating.result import Federated
from luthier.federating.spec import APART, Federation
from luthier.methods.choices import by_name
from luthier.training.spec import Run, Training


@takes(Run, Federation, but=(*APART, "model", "data", "name"))
def federate(
    model: str,
    data: str,
    *,
    aggregation: str | Aggregation = "flora",
    form: Form | None = None,
    out: str = "federation",
    ranks: str | None = None,
    training: Training | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **fields: Any,
) -> Federated:
    """Simulates federated fine-tuning: `data` dealt to clients, each trains `form` (LoRA unless told) on its part.

    After each round the server aggregates (see `luthier.methods.aggregations`), every client counting for its rows, and
    measures the result on the rows held out. `training` is what a client does in one round: its epochs or steps are of
    its own rows, and its learning rate, warm-up and schedule begin anew. Ranks, split and the like are those of
    `Federation`. The clients take turns in this process and are in no way apart: for clients that are, see
    `luthier.federating.flower`.

    The folder gets `federation.json`, `metrics.jsonl`, `federation.png`, `state/` and `adapter/`. With `resume`, an
    interrupted run resumes after the last client that finished, with the very adapter that it would have had; rounds
    may be added. Raises `LuthierError` for all bad input before the weights are loaded.
    """
    made = find("aggregations", aggregation)() if isinstance(aggregation, str) else aggregation
    if not isinstance(made, Aggregation):
        raise LuthierError(f"{made.name()} is not an aggregation.")
    federation = {f.name for f in dataclasses.fields(Federation)} & set(fields)
    run = {key: value for key, value in fields.items() if key not in federation and value is not None}
    run |= {"form": form or find("forms", "lora")(), "out": out, "training": training or Training(epochs=1)}
    return carry_out(
        Run(model, data, **by_name(run)),
        made,
        Federation(ranks=ranks, **{name: fields[name] for name in federation}),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def carry_out(
    run: Run,
    method: Aggregation,
    federation: Federation,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Federated:
    """Returns `federate`, for parts that are made."""
    from rich.console import Console

    from luthier.core.owner import owned
    from luthier.federating import folder as folders
    from luthier.federating.command import command
    from luthier.federating.prepare import overview, planned
    from luthier.federating.rounds import all_rounds
    from luthier.training.context import loading_for
    from luthier.training.progress import quiet

    folder, console = folders.claim(run.out, resume, overwrite), Console(stderr=True, quiet=not progress)
    with quiet(), loading_for(run), owned(folder):
        folders.claim(run.out, resume, overwrite)  # again, now that nobody else is in it
        plan = planned(run, method, federation)
        folders.begin(folder, {**plan.to_dict(), "command": command(run, method, federation)}, overwrite)
        console.print(plan.title, overview(plan), sep="\n", highlight=False)
        return all_rounds(plan, folder, console)

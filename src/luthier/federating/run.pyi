"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.core.contracts.aggregation import Aggregation
from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.update import Update
from luthier.federating.result import Federated
from luthier.federating.spec import Federation
from luthier.training.spec import Run
from luthier.training.spec import Training
from typing import Literal

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
    where: str | None = None,
    update: Update | str | None = None,
    objective: Objective | str | None = None,
    task: str | None = None,
    eval_data: str | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    license: str | None = None,
    from_adapter: str | None = None,
    columns: str | None = None,
    strict: bool = False,
    trust_remote_code: bool = False,
    clients: int | None = None,
    rounds: int = 5,
    fraction: float = 1.0,
    split: Literal['iid', 'dirichlet', 'column'] = "iid",
    concentration: float = 0.5,
    column: str | None = None,
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

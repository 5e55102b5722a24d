"""The specification of a federation, beside what each client trains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.contracts.component import check_fields
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError
from luthier.methods.choices import CHOICES, Choices
from luthier.training.spec import Run


@dataclass(frozen=True)
class Federation:
    """The clients of a federated run, their rows and ranks, and the number of rounds."""

    clients: int | None = None
    """Clients that the rows are dealt to. Default: 8, or as many as the column has values."""
    rounds: int = 5
    """Rounds of training and aggregation."""
    ranks: str | None = None
    """The clients' ranks, joined by commas and repeated in turn (4,8,16), at one alpha / rank. Default: the form's."""
    fraction: float = 1.0
    """Share of the clients that train in a round, drawn by the seed."""
    split: Literal["iid", "dirichlet", "column"] = "iid"
    """Who gets which rows: iid (at random), dirichlet (skewed by class or column), column (a client for each value)."""
    concentration: float = 0.5
    """The concentration of the Dirichlet split: small is skewed, large is even."""
    column: str | None = None
    """Column of the data that rows are divided by. Default: their class."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, low, high in (("clients", 1, 100_000), ("rounds", 1, 100_000), ("concentration", 1e-6, 1e6)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise LuthierError(f"{name} is {value}; expected {low:g} to {high:g}.")
        if not 0 < self.fraction <= 1:
            raise LuthierError(f"fraction is {self.fraction}; expected a share above 0 and at most 1.")
        if self.split == "column" and self.column is None:
            raise LuthierError("split=column gives each value of a column a client; name the column (column).")
        if self.split == "iid" and self.column is not None:
            raise LuthierError(
                f"split=iid looks at no column, and column is {self.column!r}; leave one of the two out."
            )
        self.numbers()

    def numbers(self) -> tuple[int, ...]:
        """Returns the ranks as numbers; empty for the form's own."""
        words = [] if self.ranks is None else [word.strip() for word in self.ranks.split(",")]
        if not all(word.isdecimal() and int(word) > 0 for word in words):
            raise LuthierError(f"ranks is {self.ranks!r}; expected whole numbers of at least 1, such as 4,8,16.")
        return tuple(map(int, words))

    def rank_of(self, client: int, form: Form) -> int:
        """Returns the rank of a client's adapter."""
        given = self.numbers()
        return given[client % len(given)] if given else int(getattr(form, "rank", 0))

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        return dataclasses.asdict(self)


APART = [name for name, choice in CHOICES.items() if choice.apart or name == "calibration"]
"""Choices of a run that clients cannot make, or have no use for."""


UNREAD = ("pack", "eval_every", "patience", "save_every", "keep", "noise_scale", "report_to", "cache_frozen")
"""Settings of training that a client in a round does not read: it is measured by the server, and begins its round again
where it is interrupted."""
REFUSED = ("quantize", "shard", "best")
"""Settings of training that would change what a client sends."""


def check_run(run: Run) -> None:
    """Raises for a run that clients cannot share."""
    form = run.form
    plain = Choices(form)
    for name, choice in CHOICES.items():
        if choice.apart and getattr(run, name) != getattr(plain, name):
            raise LuthierError(f"{name} {choice.apart}; leave it out.")
    if not (form.down_projection and form.up_projection) or form.share is not None or form.positions != "all":
        raise LuthierError(
            f"clients send the factors B and A of each layer's change s B A, and {form.name()} "
            + ("shares them between layers" if form.share else "has none")
            + ("" if form.positions == "all" else f" at positions {form.positions}")
            + "; take a form such as lora, with a set for each layer."
        )
    if run.objective.compares or run.objective.teaches:
        raise LuthierError(
            f"{run.objective.name()} goes by the base as it was before training, which a federation changes from round "
            "to round; take an objective without a reference or a teacher (orpo, simpo, cpo)."
        )
    if run.objective.samples:
        raise LuthierError(f"{run.objective.name()} samples answers from the model, which clients do not.")
    run.training.refuse(UNREAD, "and clients are measured and kept by the round, on padded batches")
    if run.training.best is not None:
        raise LuthierError(
            "best keeps the adapter of one run's best evaluation, and a client's round has none; leave it out."
        )
    if run.training.quantize is not None or run.training.shard:
        raise LuthierError("the rounds' changes are folded into the base, which must be whole (no quantize, no shard).")

"""MFTCoder: the losses of several tasks balanced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.contracts.objective import PART, Objective, by_part
from luthier.core.errors import LuthierError
from luthier.methods.objectives._coba import Windows, present_weights, remembered

if TYPE_CHECKING:
    from torch import Tensor, nn

TASKS = ("task_token", "task_sample", "coba")
"""Balances that tell tasks apart."""
SAMPLES = ("sample", "task_sample")
"""Balances that take the mean of each row first."""


@dataclass(frozen=True)
class MFT(Objective):
    """L = Σ_k w_k L_k over the tasks k, L_k = mean over the tokens (or rows) of task k

    The column `task` names each row's. `token` is the mean over all tokens (supervised fine-tuning), `sample` over the
    means of rows, `task_token` and `task_sample` over the tasks' means of these; tasks that a step lacks have no
    weight in it. `coba` weighs token means by how the tasks' evaluation losses move: a task that lags weighs more, one
    that diverges less (Gong et al. 2024). Logits of a whole batch are held, unless the balance is `token`.
    """

    paper = "Liu et al. 2023, arXiv 2311.02303; CoBa: Gong et al. 2024, arXiv 2410.06741"
    neutral: ClassVar = {"balance": "token"}
    depends: ClassVar = dict.fromkeys(("warmup", "history", "tau", "interval", "looks"), ("balance", "coba"))
    columns = ("task",)

    balance: Literal["token", "sample", "task_token", "task_sample", "coba"] = "task_token"
    """What the loss is averaged over."""
    warmup: int = 100
    """The steps in which all tasks have equal weight (coba)."""
    history: int = 200
    """The number of evaluations to which a slope is fitted (coba)."""
    tau: float = 5.0
    """The temperature τ of the divergence factor (coba)."""
    interval: int = 1
    """The steps between evaluations (coba)."""
    looks: int = 1
    """The batches per evaluation (coba)."""

    def check(self) -> None:
        for name, least in (("warmup", 0), ("history", 2), ("tau", 0), ("interval", 1), ("looks", 1)):
            self.within(name, least)

    def rows(self, rows):
        if self.balance == "token":
            return rows.features
        if rows.examples.task != "causal-lm":
            raise LuthierError(f"mft balances the tokens of causal language models, not {rows.examples.task}.")
        if self.balance not in TASKS:
            return rows.features
        named = {example.row: example.meta.get("task") for example in rows.examples.rows}
        bare = [row for row, task in named.items() if task is None]
        if bare:
            raise LuthierError(
                f"{len(bare)} rows of {rows.examples.source} have no 'task' (the first: {bare[0]}), by which "
                f"balance={self.balance} tells them apart. Add the column, or choose token or sample."
            )
        return [
            feature | {PART: [int(task == str(named[feature["row"]])) for task in rows.tasks]}
            for feature in rows.features
        ]

    def loss(self, model, batch):
        from luthier.methods.objectives._cross_entropy import causal_loss

        if self.balance == "token":
            return causal_loss(model, batch)
        sums, labels = row_losses(model, {key: value for key, value in batch.items() if key != PART})
        means = by_part(batch, sums / labels.clamp(min=1) if self.balance in SAMPLES else sums)
        return means / self.token_counts(batch, labels).clamp(min=1)

    def token_counts(self, batch, labels):
        return by_part(batch, labels.gt(0).long() if self.balance in SAMPLES else labels)

    def part_weights(self, counts, state):
        return present_weights(counts, state.get("weights"))

    def eval_batches(self, step):
        if self.balance != "coba" or step % self.interval:
            return 0
        return None if step == 0 else self.looks

    def update_state(self, state, step, losses, counts):
        return remembered(state, step, losses, counts, Windows(self.warmup, self.history, self.tau))


def row_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns (sum over its labels of each row's - log p, how many these are), [rows] each, of a causal model."""
    from luthier.methods.log_probs import log_probs

    sums, labels = log_probs(model, batch)
    return -sums, labels

"""A router that is told the tasks, beside fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.objective import TASKS, Objective
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Routing(Objective):
    """L = L_sft + β mean over layers and tokens of - log softmax(G x)[the expert of the row's task]

    For forms that choose experts for each token, such as meteora; the column `task` names the expert of a row. All real
    tokens count, the prompt's as well, as in the authors' code. β = 0 leaves the gates to L_sft.
    """

    paper = "Xu, Lai, Huang 2024 (ICLR 2025), arXiv 2405.13053 (code: NJUDeepEngine/meteora)"
    neutral: ClassVar = {"beta": 0.0}
    columns = ("task",)

    beta: float = 1.0
    """β, the weight of the routers' loss."""

    def check(self) -> None:
        self.within("beta", 0)

    def check_form(self, form):
        from luthier.core.contracts.router import Routed

        if not isinstance(form, Routed) or not form.named or form.positions != "all":
            raise LuthierError(
                f"routing trains what chooses experts for each token, and {form.name()} (positions={form.positions}) "
                "has no such router; fit meteora, or take another objective."
            )

    def rows(self, rows):
        bare = [feature["row"] for feature in rows.features if TASKS not in feature]
        if bare and self.beta:
            raise LuthierError(
                f"{len(bare)} rows of {rows.examples.source} have no 'task' (the first: {bare[0]}), which names their "
                "expert. Add the column, or read several sources as mix:name=source,name=source."
            )
        return rows.features

    def loss(self, model, batch):
        import torch

        from luthier.core.adapters.control import watched
        from luthier.methods.objectives._cross_entropy import causal_loss

        if not self.beta:
            return causal_loss(model, batch)
        with watched(model) as routes:
            loss = causal_loss(model, batch)
        real = batch["attention_mask"].bool()
        wanted = batch[TASKS][:, None].expand_as(real)[real]
        losses = [torch.nn.functional.cross_entropy(route.logits[real].float(), wanted) for route in routes]
        return torch.stack([loss, torch.stack(losses).mean().to(loss.dtype)])

    def token_counts(self, batch, labels):
        import torch

        total = labels.sum()
        return torch.stack([total, batch["attention_mask"].sum()]) if self.beta else total[None]

    def part_weights(self, counts, state):
        import torch

        weights = [1.0, self.beta] if self.beta else [1.0]
        return torch.tensor(weights, device=counts.device)

"""SpIEL: a sparse change whose entries are exchanged while they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from luthier.core.contracts.update import Exchange, ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.methods.forms.sparse import Sparse, count


@dataclass(frozen=True)
class SpIEL(Update):
    """δ trains at η, |η| constant; drop: the smallest |δ| of η; grow: the largest |Σ ∂L/∂W| outside η

    Every `every` steps, a share p₀ (1 - t/T) of each layer's entries is dropped, which gives the weight its own number
    back, and as many grow at 0; the first time all may go, since the first positions are drawn at random. AG sums the
    gradient of |η| candidates, the largest of the first batch, over `accumulate` steps; a newcomer's moments begin
    with the mean of these gradients and of their squares. SM3 needs no gradient of a whole weight: a row and a column
    keep v_r, v_c ← max(min(v_r, v_c) + g²) over their entries, and the largest v_r v_c grow, with moments at zero.

    A candidate that was dropped just now stays as it is. An entry that stays keeps its moments. The whole gradient
    exists for one layer at a time, in `accumulate` of `every` steps. The step is AdamW's for both; the authors'
    AdamW counts the age of each entry, ours of the tensor, and their SM3 also steps by v_r, v_c.
    """

    paper = "Ansell et al. 2024, arXiv 2401.16405 (code: AlanAnsell/peft, ducdauge/sft-llm)"
    family = "selective"
    neutral: ClassVar = {"share": 0.0}
    depends: ClassVar = {"accumulate": ("growth", "ag")}

    growth: Literal["ag", "sm3"] = "ag"
    """What grows: by accumulated gradients, or by SM3's sums over rows and columns."""
    every: int = 20
    """Steps from one exchange to the next."""
    accumulate: int = 5
    """Steps over which the gradient of the candidates is summed."""
    share: float = 0.2
    """p₀: the share of the entries that the first exchanges replace."""

    @property
    def changes(self):
        return bool(self.share)  # and processes would see other gradients, and exchange other entries

    def check(self):
        self.within("share", 0, 1)
        self.within("every", 1)
        self.within("accumulate", 1)
        if self.growth == "ag" and self.accumulate > self.every:
            raise LuthierError(
                f"spiel.accumulate is {self.accumulate}, and an exchange comes every {self.every} steps; expected at "
                "most as many."
            )

    def check_form(self, form, sites):
        if not isinstance(form, Sparse):
            raise LuthierError(
                f"spiel exchanges the entries of a sparse change, and {form.name()} has none; use sparse."
            )
        if form.share is not None:
            raise LuthierError(f"spiel exchanges entries layer by layer; leave share={form.share!r} out.")
        strange = next((site for site in sites if site.kind != "affine"), None)
        if strange is not None:
            raise LuthierError(f"spiel acts on linear layers, and {strange} is none; choose others (where).")
        if all((form.k or count(form.density, site.entries)) == site.entries for site in sites):
            raise LuthierError("spiel has nothing to exchange at a density of 1; lower sparse.density.")

    def check_beside(self, form, sites):
        """Other forms of the adapter are trained as they are."""

    def sparse_groups(self, plan: TrainingPlan) -> list[ParameterGroup]:
        """Returns the groups whose entries are exchanged."""
        return [group for group in plan.groups if isinstance(group.form, Sparse)]

    def phase(self) -> int:
        """Returns the step of the first exchange, and how far behind a multiple of `every` the later ones come."""
        return self.accumulate if self.growth == "ag" else self.every

    def replaced(self, plan: TrainingPlan, step: int) -> float:
        """Returns the share of the entries that are replaced before `step`; 0 where none are."""
        if not self.share or step < self.phase() or (step - self.phase()) % self.every:
            return 0.0
        first = step == self.phase() and self.growth == "ag"
        return 1.0 if first else self.share * (1 - step / plan.steps)

    def watches(self, plan, step):
        if self.growth != "ag" or not self.share or (step - self.phase()) % self.every < self.every - self.accumulate:
            return ()
        return self.sparse_groups(plan)

    def init(self, group):
        if not isinstance(group.form, Sparse) or not self.share:
            return {}
        if self.growth == "ag":
            return {"passes": torch.zeros((), dtype=torch.int64)}
        device = group.params["values"].device
        return {
            "rows": torch.zeros(group.site.d_out, device=device),
            "columns": torch.zeros(group.site.d_in, device=device),
        }

    def seen(self, grad, state, group):
        flat = grad.flatten()
        if not state["passes"]:
            state["candidates"] = flat.abs().topk(len(group.params["values"])).indices.sort().values
        found = flat[state["candidates"]]
        state["sum"] = found + (state["sum"] if state["passes"] else 0)
        state["squares"] = found.square() + (state["squares"] if state["passes"] else 0)
        state["passes"] = state["passes"] + 1

    def update(self, grads, state, group):
        if "rows" in state:
            index, g = group.frozen["index"].long(), grads["values"]
            row, column = index // group.site.d_in, index % group.site.d_in
            new = torch.minimum(state["rows"][row], state["columns"][column]) + g.square().to(state["rows"].dtype)
            state["rows"].scatter_reduce_(0, row, new, "amax")
            state["columns"].scatter_reduce_(0, column, new, "amax")
        return grads

    def exchanges(self, plan, step):
        share, found = self.replaced(plan, step), {}
        for group in self.sparse_groups(plan) if share else ():
            state = plan.states[group.name]
            if "rows" in state or "sum" in state:  # a layer that no pass called has seen nothing
                found[group.name] = self.exchanged(group, state, share)
        return found

    def exchanged(self, group: ParameterGroup, state, share: float) -> Exchange:
        """The entries of a group where a share of them gave way; what was accumulated is spent."""
        index, values = group.frozen["index"].long(), group.params["values"].detach()
        many = int(len(index) * share)
        dropped = torch.zeros(len(index), dtype=torch.bool, device=index.device)
        dropped[values.abs().topk(many, largest=False).indices] = True
        offered, score, mean, square = self.offered(group, state, index)
        free = ~torch.isin(offered, index[~dropped])
        best = score[free].topk(min(many, int(free.sum()))).indices
        grown = offered[free][best]
        stays = ~dropped | torch.isin(index, grown)
        new = ~torch.isin(grown, index)
        going = values.abs().masked_fill(stays, torch.inf).topk(int(new.sum()), largest=False).indices
        stays = torch.ones_like(stays).index_fill_(0, going, False)  # as many go as come
        kept = state if "rows" in state else {"passes": torch.zeros_like(state["passes"])}
        return exchange(index, values, stays, grown[new], mean[free][best][new], square[free][best][new], kept)

    def offered(self, group: ParameterGroup, state, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(positions that may grow, their scores, and the mean gradient and squared gradient of each)."""
        if self.growth == "sm3":
            score = torch.outer(state["rows"], state["columns"]).flatten()
            score[index] = -1  # what was dropped does not come back at once
            best = score.topk(min(len(index), len(score) - len(index))).indices
            return best, score[best], torch.zeros_like(score[best]), torch.zeros_like(score[best])
        passes = state["passes"].clamp(min=1).to(state["sum"].device)
        return state["candidates"], state["sum"].abs(), state["sum"] / passes, state["squares"] / passes


def exchange(
    index: Tensor,
    values: Tensor,
    stays: Tensor,
    grown: Tensor,
    mean: Tensor,
    square: Tensor,
    state: Mapping[str, Tensor],
) -> Exchange:
    """Returns the entries that stay and those that grew, by position."""
    place = torch.arange(len(index), device=index.device)[stays]
    joined = torch.cat([index[stays], grown])
    order = joined.argsort()
    zeros = values.new_zeros(len(grown))

    def laid(kept: Tensor, new: Tensor) -> Tensor:
        return torch.cat([kept, new.to(kept.dtype)])[order]

    return Exchange(
        {"index": joined[order], "values": laid(values[stays], zeros)},
        state,
        laid(place, torch.full_like(grown, -1)),
        laid(zeros.new_zeros(len(place)), mean),
        laid(zeros.new_zeros(len(place)), square),
    )

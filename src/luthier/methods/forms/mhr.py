"""Multi-head routing (and Poly): an inventory of skills, averaged for each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, einsum, rand, zeros
from torch.nn.functional import logsigmoid

from luthier.core.contracts.form import dropout, kaiming, rank_scale
from luthier.core.contracts.router import ROUTE, ROUTE_TASKS, Routed
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class MHR(Routed):
    """W' = W + s B A; head j of A and of B is Σ_i w_ij of skill i, w_ij = σ(Z_ij) / Σ_k σ(Z_kj), Z of the row's task

    The parameters of the skills are averaged, not their outputs. A [skills, heads, d_in / heads, rank] is divided by
    the inputs, B [skills, rank, heads, d_out / heads] by the outputs, and each head has an average of its own; one head
    is Poly. Z is [tasks, heads, skills]. For a new task, `source` gives the skills of a finished adapter, and Z starts
    anew: with train = router that is MHR-z, and route_by = uniform, which has no Z and averages alike, is MHR-μ. An
    adapter of one task merges, and exports as LoRA of the same rank; of several, it is POLY in peft.

    The authors' A starts √3 narrower than here. Their `module_logits_relaxed_bernoulli`, the noise on Z that peft
    always has in training, is off in their configurations for MHR and left out.
    """

    paper = (
        "Caccia et al. 2022 (NeurIPS 2023), arXiv 2211.03831; Poly: Ponti et al. 2022, arXiv 2202.13914 "
        "(code: microsoft/mttl)"
    )
    family = "hybrid"
    linear = True
    by_task = True
    router = ("Z",)
    mixed = ("A", "B")
    lr = 1e-3
    neutral: ClassVar = {"skills": 1}

    rank: int = 8
    """Rank of the change of each task."""
    alpha: float = 16.0
    """Numerator of the scale s = alpha / rank."""
    skills: int = 8
    """Skills in the inventory."""
    heads: int = 1
    """Parts of the inputs and of the outputs that are routed apart; they must divide the widths of all sites."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, as the column task has them. Default: all rows are of one."""
    route_by: Literal["task", "uniform"] = "task"
    """What weighs the skills: Z of the task, or nothing, so that all weigh alike."""
    source: str | None = None
    """A finished adapter of this form, whose skills are the start."""
    dropout: float = 0.0
    """Dropout on x before A."""

    def check(self):
        super().check()
        if len(set(self.tasks)) < len(self.tasks):
            raise LuthierError(f"mhr.tasks are {', '.join(self.tasks)}; expected each once.")
        if self.route_by == "uniform" and (self.train == "router" or len(self.tasks) > 1):
            raise LuthierError(
                "mhr.route_by=uniform has no router: it has no tasks, and trains the skills (train=all)."
            )

    @property
    def scale(self) -> float:
        """The scale s."""
        return rank_scale(self.alpha, self.rank, "lora")

    def known(self):
        return self.tasks

    def sources(self):
        return () if self.source is None else (self.source,)

    def gather(self, model, sites):
        if self.source is None:
            return {}
        from luthier.core.storage.experts import parameters

        return parameters(model, self.source, self.name(), sites, self.mixed)

    def init(self, site, stats):
        count, heads, rank = self.skills, self.heads, self.rank
        if site.d_in % heads or site.d_out % heads:
            raise LuthierError(f"mhr: {site} ({site.d_in} -> {site.d_out}) cannot be divided into {heads} heads.")
        a = kaiming(count, rank, site.d_in).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).contiguous()
        fresh = {"A": a, "B": zeros(count, rank, heads, site.d_out // heads)}
        found = {key: stats.get(key, tensor) for key, tensor in fresh.items()}
        if any(found[key].shape != tensor.shape for key, tensor in fresh.items()):
            raise LuthierError(f"{self.source} has A {tuple(found['A'].shape)} at {site}; here it is {tuple(a.shape)}.")
        logits = {"Z": 2e-3 * rand(max(1, len(self.tasks)), heads, count) - 1e-3}
        return found if self.route_by == "uniform" else found | logits

    def route(self, p, x):
        if "Z" not in p:
            return p["A"].new_zeros(self.heads, self.skills)
        return p["Z"][p[ROUTE_TASKS]] if ROUTE_TASKS in p else p["Z"][0]

    def weights(self, logits):
        return logsigmoid(logits).softmax(-1)  # σ / Σ σ, also where every σ vanishes

    def averaged(self, p, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (A [..., d_in, rank], B [..., rank, d_out]) of each row's task."""
        w = self.weights(logits)
        a = einsum("...hs,shdr->...hdr", w, p["A"]).flatten(-3, -2)
        return a, einsum("...hs,srhd->...rhd", w, p["B"]).flatten(-2)

    def post(self, p, x, y):
        """y + s B A x with the parameters of each row's task, x [rows, ..., d_in] and y [rows, ..., d_out]."""
        a, b = self.averaged(p, p[ROUTE])
        x = dropout(x, self.dropout)
        if a.dim() == 2 or len(a) == 1:
            return y + x @ a.view(a.shape[-2:]) @ (self.scale * b.view(b.shape[-2:]))
        inner = einsum("n...d,ndr->n...r", x, a)
        return y + self.scale * einsum("n...r,nrd->n...d", inner, b)

    def factors(self, p, w):
        a, b = self.averaged(p, self.route(p, w))
        return (self.scale * b.mT, a.mT) if a.dim() == 2 else None

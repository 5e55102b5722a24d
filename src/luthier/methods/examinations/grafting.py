"""Skill localisation: how few of the changed numbers carry what was learnt, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from luthier.core.contracts.examination import Batch, Change, Examination, Pair, Report
from luthier.core.errors import LuthierError
from luthier.core.numerics.confidence import calibration_error
from luthier.core.sites.answers import Answers, answers, spoken
from luthier.core.sites.probe import eval_mode

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Grafting(Examination):
    """θ = θ0 + γ ⊙ δ, γ = b + (1 - 2b) ⊙ sigmoid(S), b the `share` largest of |δ|, S by gradient descent on the loss

    The graft is where γ rounds to 1. Half of the batches fit S, in steps over all of them, and the step is kept whose
    rounded graft scores best on them, b itself among them (the authors' code goes by training and validation scores
    together, without b); scores are those of the other half. The null is a
    random graft of the same size, over `draws` of them. The share of each tensor that was grafted says where the
    skill lies; `error` is the expected calibration error, which the authors find lower than that of the whole change.
    """

    paper = "Panigrahi et al. 2023 (ICML), arXiv 2302.06600 (code: abhishekpanigrahi1996)"
    reads = True

    share: float = 1e-4
    """Share of the changed numbers that the graft starts from (0.01% in the paper's abstract)."""
    lr: float = 1e7
    """Learning rate of S, as in the authors' script: the sigmoid is nearly flat where S starts."""
    steps: int = 10
    """The number of gradient steps on S."""
    bias: float = 10.0
    """S starts at -bias, so that γ starts at b (ours; the authors add uniform noise)."""
    draws: int = 3
    """The number of random grafts."""
    seed: int = 0
    """The seed of the random grafts."""

    def check(self):
        self.within("share", 0, 1)
        self.within("steps", 0, float("inf"))
        self.within("draws", 1, float("inf"))

    def measure(self, pair):
        batches = [batch for each in pair.data.values() for batch in each]
        if len(batches) < 2:
            raise LuthierError("one half of the batches finds the graft and the other tests it; give two (batch).")
        fitting, testing = batches[::2], batches[1::2]
        changes = pair.changes()
        if not changes:
            raise LuthierError("no tensor changed, so there is nothing to graft.")
        deltas = {change.place.site.path: _stored(change) for change in pair.watch("reading changes", changes)}
        with pair.before() as model, eval_mode(model):
            gamma = self._graft(pair, model, deltas, fitting)
            base = answers(model, testing)
            graft = answers(model, testing, grafted(model, deltas, gamma))
            others = [self._random(gamma, i) for i in range(self.draws)]
            chance = [answers(model, testing, grafted(model, deltas, other)) for other in others]
        with pair.after() as model:
            tuned = answers(model, testing)
        return self._report(changes, gamma, others, base, tuned, graft, chance)

    def _graft(self, pair: Pair, model: nn.Module, deltas: Tensors, batches: Sequence[Batch]) -> Tensors:
        """The rounded γ of the best step."""
        b = largest(deltas, self.share)
        s = {name: torch.full_like(delta, -self.bias) for name, delta in deltas.items()}
        best, score = b, _score(answers(model, batches, grafted(model, deltas, b)))
        for _ in pair.watch("fitting the graft", list(range(self.steps))):
            gradient = gradient_of(model, deltas, b, s, batches)
            s = {name: s[name] - self.lr * gradient[name] for name in s}
            rounded = {name: each.round() for name, each in gate(b, s).items()}
            now = _score(answers(model, batches, grafted(model, deltas, rounded)))
            if now > score:
                best, score = rounded, now
        return best

    def _random(self, gamma: Tensors, draw: int) -> Tensors:
        """As many numbers, drawn from all."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + draw)
        sizes = [each.numel() for each in gamma.values()]
        flat = torch.zeros(sum(sizes))
        count = int(sum(float(each.sum()) for each in gamma.values()))
        flat[torch.randperm(len(flat), generator=generator)[:count]] = 1
        parts = zip(gamma.items(), flat.split(sizes), strict=True)
        return {name: part.reshape(each.shape).to(each) for (name, each), part in parts}

    def _report(self, changes: Sequence[Change], gamma, others, base, tuned, graft, chance) -> Report:
        mean = {name: torch.stack([each[name] for each in others]).mean(0) for name in gamma}
        places, null = ({n: {"share": float(t.mean())} for n, t in each.items()} for each in (gamma, mean))
        size = sum(float(each.sum()) for each in gamma.values())
        common = {"size": size, "share": size / sum(each.numel() for each in gamma.values())}
        whole = {"base": _score(base), "tuned": _score(tuned), "tuned error": _error(tuned)}
        luck = [sum(each) / len(chance) for each in zip(*((_score(x), _error(x)) for x in chance), strict=True)]
        gained = _score(graft) - _score(base)
        return Report(
            effect=gained,
            column="share",
            places=places,
            null=null,
            layers={change.place.site.path: change.place.site.layer for change in changes},
            summary=common | whole | {"grafted": _score(graft), "error": _error(graft)},
            null_summary=common | whole | {"grafted": luck[0], "error": luck[1]},
            baseline="a random graft of the same size",
            verdict=f"{size:,.0f} numbers ({common['share']:.2%} of those that changed) score {_score(graft):.3f}: "
            f"the base {whole['base']:.3f}, all of the change {whole['tuned']:.3f}, random ones {luck[0]:.3f}.",
        )


def grafted(model: nn.Module, deltas: Tensors, gamma: Tensors) -> Callable:
    """The base with γ ⊙ δ added while it is called; the base itself stays."""
    own = {name: model.get_parameter(name) for name in deltas}
    changed = {name: p + (gamma[name] * deltas[name]).to(p) for name, p in own.items()}
    return lambda **batch: functional_call(model, changed, kwargs=batch)


def largest(deltas: Tensors, share: float) -> Tensors:
    """b: 1 at the share (at least one) of all numbers that moved most, else 0."""
    flat = torch.cat([delta.abs().flatten() for delta in deltas.values()])
    chosen = torch.zeros_like(flat)
    chosen[flat.topk(max(1, int(share * len(flat)))).indices] = 1
    parts = chosen.split([delta.numel() for delta in deltas.values()])
    return {name: part.reshape(delta.shape) for (name, delta), part in zip(deltas.items(), parts, strict=True)}


def gate(b: Tensors, s: Tensors) -> Tensors:
    """Computes the gate γ."""
    return {name: b[name] + (1 - 2 * b[name]) * s[name].sigmoid() for name in b}


def gradient_of(model: nn.Module, deltas: Tensors, b: Tensors, s: Tensors, batches: Sequence[Batch]) -> Tensors:
    """dL/dS, L the mean over batches of the mean loss of their labels."""
    total = {name: torch.zeros_like(each) for name, each in s.items()}
    with torch.enable_grad():
        for batch in batches:
            leaves = {name: each.detach().requires_grad_() for name, each in s.items()}
            logits, labels, _ = spoken(model, batch, grafted(model, deltas, gate(b, leaves)))
            loss = nn.functional.cross_entropy(logits, labels)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                total[name] += 0 if gradient is None else gradient / len(batches)
    return total


def _stored(change: Change) -> Tensor:
    """δ of the shape that the model stores."""
    full = change.delta().dense()
    return full.mT if change.place.site.transposed and full.dim() == 2 else full


def _score(found: Answers) -> float:
    return float(found.hit.mean())


def _error(found: Answers) -> float:
    return calibration_error(found.confidence.numpy(), found.hit.numpy())

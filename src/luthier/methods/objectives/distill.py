"""Distillation: the student's distribution of each token is drawn to the teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts.objective import ALSO, Objective, Rollouts
from luthier.core.errors import LuthierError
from luthier.methods.objectives._online import check_room, refuse_tasks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.contracts.objective import Batch, Figures
    from luthier.data import Example

HINT = "hint"
"""Column: what the teacher alone reads, ahead of the prompt."""
HINTED, TAUGHT = "hinted", "taught"
"""Features: that the teacher's row stands behind the student's; in a batch, the teacher's logits."""


@dataclass(frozen=True)
class Distill(Objective):
    """L = mean over the answers' tokens of D(p_T(·| c, x, y_<t), p_S(·| x, y_<t)), p = softmax(logits / τ)

    D is KL(p_T ‖ p_S) (`forward`), KL(p_S ‖ p_T) (`reverse`), or the generalised Jensen-Shannon divergence
    β KL(p_T ‖ m) + (1 - β) KL(p_S ‖ m), m = β p_T + (1 - β) p_S (`jsd`). The teacher is a larger model with the same
    vocabulary, the same base with the adapter of a run, or the base itself; with the column `hint` it reads c, that
    text, in its system message, which the student does not see (prompt distillation). It stays as it is. In a share λ
    (`own`) of the steps, drawn by the seed, the answers are not those of the rows but the student's own, sampled at
    temperature 1 (on-policy, GKD), and the gradient does not pass through the sampling. No factor τ² is applied, as in
    TRL. Logits of a batch's answers are held. A teacher on a server tells log p_T of the tokens that were sampled and
    no more: the loss is then the mean of the gap log p_S(y_t) - log p_T(y_t), an estimate of KL(p_S ‖ p_T), and its
    gradient the mean of the gap, held fixed, times ∇ log p_S(y_t), which is the divergence's on average. (Of rows held
    out it is the mean gap of their own answers, which is not a divergence.)
    """

    paper = (
        "Hinton et al. 2015, arXiv 1503.02531; reverse: Gu et al. 2024, arXiv 2306.08543; generalised: Agarwal et al. "
        "2024, arXiv 2306.13649; prompts: Askell et al. 2021, arXiv 2112.00861"
    )
    columns = (HINT,)
    teaches = True
    curves = (("agreement",), ("gap",))

    teacher: str | None = None
    """A run or adapter folder of the same base, another model, or a server, http://host/v1#model, which tells the
    log-probabilities of tokens (for reverse with own 1). Default: the base itself, which needs a hint."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """The divergence D."""
    beta: float = 0.5
    """β of jsd, between 0 and 1: near 0 it is like forward, near 1 like reverse."""
    temperature: float = 1.0
    """The temperature τ."""
    own: float = 0.0
    """λ, the share of the steps on the student's own answers: 0 none, 1 all."""
    max_tokens: int = 128
    """The most tokens of the student's own answers."""

    def check(self) -> None:
        self.above("temperature", 0)
        self.within("own", 0, 1)
        self.within("max_tokens", 1)
        if not self.own and self.max_tokens != type(self).max_tokens:
            raise LuthierError("max_tokens is of the student's own answers, of which there are none; set own as well.")
        if not 0 < self.beta < 1:
            raise LuthierError(f"distill.beta is {self.beta}; expected a number between 0 and 1, without them.")
        if self.divergence != "jsd" and self.beta != type(self).beta:
            raise LuthierError(f"beta belongs to jsd; the divergence {self.divergence} would ignore it.")
        if self.served and (self.divergence, self.own, self.temperature) != ("reverse", 1, 1):
            raise LuthierError(
                f"the server {self.teacher} tells the log-probabilities of tokens that were sampled, from which the "
                "reverse divergence alone can be estimated, on the student's own answers: set divergence to reverse, "
                "own to 1, and leave the temperature at 1."
            )

    @property
    def served(self) -> bool:
        """Whether the teacher is a server."""
        from luthier.data.rewriting.api import is_address

        return self.teacher is not None and is_address(self.teacher)

    @property
    def samples(self):
        """Whether the student's own answers are learned from."""
        return self.own > 0

    def rollouts(self, step, seed):
        import random

        return Rollouts(1, self.max_tokens, 1.0, 1.0) if random.Random(f"{seed} {step}").random() < self.own else None

    def check_form(self, form):
        if self.own:
            refuse_tasks(self, form)

    def teacher_name(self):
        return self.teacher

    def rows(self, rows):
        if self.own:
            check_room(rows, self.max_tokens)
        told = {e.row: str(e.meta[HINT]) for e in rows.examples.rows if str(e.meta.get(HINT) or "").strip()}
        if not told and self.teacher is None:
            raise LuthierError(
                f"the student starts as its teacher, the base, and the rows of {rows.examples.source} have no {HINT!r} "
                "that the teacher alone would read: there is nothing to learn. Name a teacher, or add the column."
            )
        if not told:
            return rows.features
        bare = [feature["row"] for feature in rows.features if feature["row"] not in told]
        if bare:
            raise LuthierError(f"{len(bare)} rows have no {HINT!r} (the first: {bare[0]}), and others have one.")
        kept = {feature["row"] for feature in rows.features}
        hinted = [with_hint(e, told[e.row]) for e in rows.examples.rows if e.row in kept]
        seen = {feature["row"]: feature for feature in rows.encode(rows.examples.keep(hinted))}
        found = [feature for feature in rows.features if feature["row"] in seen]
        check_answers([(feature, seen[feature["row"]]) for feature in found])
        return [f | {HINTED: 1, ALSO: [seen[f["row"]] | {HINTED: 1}]} for f in found]

    def inputs(self, batch, at):
        import torch

        if at.teacher is None:
            raise LuthierError(
                "distill needs its teacher beside the model, and nobody holds one here; use luthier train."
            )
        plain = {key: value for key, value in batch.items() if key != HINTED}
        own = {key: value[0::2] for key, value in plain.items()} if HINTED in batch else plain
        seen = {key: value[1::2] for key, value in plain.items()} if HINTED in batch else plain
        with torch.no_grad():
            told = at.teacher(seen)
            return own | {TAUGHT: sampled(told, seen["labels"]) if self.served else answered(told, seen["labels"])}

    def loss(self, model, batch):
        return self.loss_and_figures(model, batch)[0]

    def loss_and_figures(self, model, batch):
        own = {key: value for key, value in batch.items() if key != TAUGHT}
        if self.served:
            return sampled_reverse(model, own, batch[TAUGHT])
        student, teacher = answered(model(**own).logits, own["labels"]), batch[TAUGHT]
        agreed = student.detach().argmax(-1).eq(teacher.argmax(-1)).float()
        return self.of(student, teacher).mean(), {"agreement": agreed}

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """D of each token, [N], from the logits of both, [N, V]."""
        import torch

        p_s, p_t = (torch.log_softmax(logits / self.temperature, -1) for logits in (student, teacher.to(student.dtype)))
        if self.divergence == "forward":
            return kl(p_t, p_s)
        if self.divergence == "reverse":
            return kl(p_s, p_t)
        share = torch.tensor(self.beta, dtype=p_s.dtype, device=p_s.device)
        mixed = torch.logaddexp(p_t + share.log(), p_s + torch.log1p(-share))
        return self.beta * kl(p_t, mixed) + (1 - self.beta) * kl(p_s, mixed)

    def token_counts(self, batch, labels):
        """[1], the tokens of the answers, those of the student's rows."""
        return (labels[0::2] if HINTED in batch else labels).sum()[None]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities, over the last dimension."""
    return (p.exp() * (p - q)).sum(-1)


def sampled_reverse(model: nn.Module, batch: Batch, taught: Tensor) -> tuple[Tensor, Figures]:
    """KL(p_S ‖ p_T) estimated on tokens that the student sampled, and their gaps; `taught` is log p_T of them, [N]."""
    from luthier.methods.log_probs import token_log_probs

    logs = token_log_probs(model, batch)[0][batch["labels"][:, 1:].ne(-100)]
    gap = logs.detach() - taught.to(logs)
    return (gap + gap * (logs - logs.detach())).mean(), {"gap": gap}


def answered(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits that predict the answers' tokens, [N, V], float32 at least, in the order of rows and places."""
    import torch

    found = logits[:, :-1][labels[:, 1:].ne(-100)]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def sampled(told: Tensor, labels: Tensor) -> Tensor:
    """log p of the answers' tokens, [N], of that of all next tokens [rows, T - 1], or of logits [rows, T, V]."""
    wanted = labels[:, 1:]
    if told.dim() == 3:  # of a model that stands for the server, as where memory is estimated
        told = told[:, :-1].log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return told[wanted.ne(-100)]


def with_hint(example: Example, hint: str) -> Example:
    """Returns the row with a hint in its system message."""
    turns = example.messages
    if turns is None:
        raise LuthierError(f"row {example.row} is a text without a prompt, ahead of which a {HINT} could stand.")
    if turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{hint}\n\n{turns[0].get('content') or ''}".strip()}
        return dataclasses.replace(example, messages=[first, *turns[1:]])
    context = example.context + 1 if example.context else 0
    masked = tuple(i + 1 for i in example.masked)
    system = {"role": "system", "content": hint}
    return dataclasses.replace(example, messages=[system, *turns], context=context, masked=masked)


def check_answers(pairs: Sequence[tuple[dict, dict]]) -> None:
    """Raises unless the student's and the teacher's row have the same answer, token by token."""
    for own, seen in pairs:
        left, right = ([label for label in each["labels"][1:] if label != -100] for each in (own, seen))
        if left != right:
            raise LuthierError(
                f"the answer of row {own['row']} has other tokens behind its {HINT}: the chat template renders it "
                "otherwise."
            )

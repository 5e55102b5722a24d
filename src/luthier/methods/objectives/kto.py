"""Kahneman-Tversky optimisation: answers that are judged one by one, wanted or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.objective import ALSO, BASE, REFERENCE, Feature, Objective
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from torch import Tensor

WANTED = "wanted"
"""Feature: whether the answer of a row is wanted, 1 or 0."""


@dataclass(frozen=True)
class KTO(Objective):
    """L = mean over the rows of λ_D (1 - σ(β (r - z))) for a wanted answer, λ_U (1 - σ(β (z - r))) for another

    r = log π(y|x)/π_ref(y|x), summed over the tokens. z = max(0, mean of r over answers y' of other prompts) estimates
    the KL divergence from the reference; it is a constant of the batch (`batch` rows; not of all that `accumulate`
    joins), as in the authors' code and TRL. y' is the next row's answer, cut to `max_length`; no dropout acts in it.
    Pairs are two rows each. The reward of an answer is β r. λ_D n_D / (λ_U n_U) between 1 and 4/3 is what the paper
    advises, for n_D wanted and n_U other answers.
    """

    paper = "Ethayarajh et al. 2024, arXiv 2402.01306"
    reads = ("judged", "pairs")
    compares = True
    whole = False
    curves = (("reward_wanted", "reward_unwanted", "kl"), ("accuracy",), ("tokens",))

    beta: float = 0.1
    """β: how averse to risk, and how strongly the model is held to the reference."""
    wanted: float = 1.0
    """λ_D, the weight of wanted answers."""
    unwanted: float = 1.0
    """λ_U, the weight of the others."""
    reference: str | None = None
    """A run or adapter folder of the same base that is the reference, or base. Default: what training starts from: the
    adapter that the run goes on from, else the base."""

    def check(self) -> None:
        for name in ("beta", "wanted", "unwanted"):
            self.within(name, 0)

    def reference_adapter(self):
        return None if self.reference == BASE else self.reference

    def rows(self, rows):
        judged = {example.row: example.wanted for example in rows.examples.rows}
        found: list[Feature] = []
        for feature in rows.features:
            alone = {key: value for key, value in feature.items() if key != ALSO}
            known = judged[feature["row"]]
            found += [alone | {WANTED: int(known is not False)}]
            found += [each | {WANTED: 0} for each in feature.get(ALSO, ())]
        if not rows.held:
            check_both(found, rows.examples.source)
        after = [*found[1:], *found[:1]]
        return [
            feature | {ALSO: [crossed(feature, other, rows.max_length)]}
            for feature, other in zip(found, after, strict=True)
        ]

    def loss(self, model, batch):
        return self.loss_and_figures(model, batch)[0]

    def loss_and_figures(self, model, batch):
        from luthier.methods.log_probs import log_probs, reference_log_probs

        whole = {key: value for key, value in batch.items() if key != WANTED}
        known = reference_log_probs(model, whole, self.reference_adapter())
        inputs = {key: value for key, value in batch.items() if key not in (WANTED, REFERENCE)}
        own = {key: value[0::2] for key, value in inputs.items()}
        sums, tokens = log_probs(model, own)
        z = divergence(model, {key: value[1::2] for key, value in inputs.items()}, known[1::2])
        ratios, wanted = sums - known[0::2], batch[WANTED][0::2].bool()
        losses = self.of(ratios, wanted, z)
        rewards = self.beta * ratios.detach()
        told = {
            "reward_wanted": rewards[wanted],
            "reward_unwanted": rewards[~wanted],
            "kl": z.expand(len(rewards)),
            "accuracy": (rewards > self.beta * z).eq(wanted).float(),
            "tokens": tokens,
        }
        return losses.mean(), told

    def of(self, ratios: Tensor, wanted: Tensor, z: Tensor) -> Tensor:
        """Returns the loss of each row, from r [rows], whether it is wanted [rows] and z."""
        import torch

        gain = self.beta * (ratios - z)
        good, bad = self.wanted * (1 - torch.sigmoid(gain)), self.unwanted * (1 - torch.sigmoid(-gain))
        return torch.where(wanted, good, bad)

    def token_counts(self, batch, labels):
        """[1], the rows."""
        return (labels.new_zeros(1) + len(labels)) // 2


def divergence(model: Any, batch: dict[str, Tensor], known: Tensor) -> Tensor:
    """z: the mean log-ratio of answers to other prompts than their own, at least 0; a constant."""
    from luthier.core.sites.probe import eval_mode
    from luthier.methods.log_probs import log_probs, unwrapped

    inner = unwrapped(model)
    with eval_mode(inner):
        return (log_probs(inner, batch)[0] - known).mean().clamp(min=0)


def check_both(features: list[Feature], source: str) -> None:
    """Raises unless there are wanted answers and others."""
    count = sum(feature[WANTED] for feature in features)
    if not 0 < count < len(features):
        which = "wanted" if count else "unwanted"
        raise LuthierError(
            f"all {len(features)} answers of {source} are {which}, and kto tells the wanted from the others. "
            + ("Take sft for rows that are all to be learned." if count else "Add rows whose label is true.")
        )


def crossed(feature: Feature, other: Feature, most: int) -> Feature:
    """Returns the prompt of one row with the answer of another."""
    cut, start = answer_of(feature), answer_of(other)
    ids = [*feature["input_ids"][:cut], *other["input_ids"][start:]][:most]
    labels = [*feature["labels"][:cut], *other["labels"][start:]][:most]
    made = feature | {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    return made if any(label != -100 for label in labels) else feature  # a prompt that leaves no room


def answer_of(feature: Feature) -> int:
    """Returns where the answer begins."""
    return next(i for i, label in enumerate(feature["labels"]) if label != -100)

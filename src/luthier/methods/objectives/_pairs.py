"""What objectives over pairs share: rows of a prompt with a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.objective import REFERENCE, Batch, Figures, Objective

if TYPE_CHECKING:
    from torch import Tensor, nn

REWARDS = (("reward_chosen", "reward_rejected", "margin"), ("accuracy",))
"""Figures of every objective over pairs, as they are drawn."""
LENGTHS = ("tokens_chosen", "tokens_rejected")


@dataclass(frozen=True)
class Pairs(Objective):
    """An objective over pairs, whose two answers stand next to each other in a batch: chosen, then rejected."""

    reads = ("pairs",)
    sees = True
    curves = (*REWARDS, LENGTHS)

    def loss(self, model, batch):
        return self.loss_and_figures(model, batch)[0]

    def loss_and_figures(self, model, batch):
        raise NotImplementedError(f"{type(self).__name__} must define loss_and_figures")

    def token_counts(self, batch, labels):
        """[1], the pairs."""
        return (labels.new_zeros(1) + len(labels)) // 2


@dataclass(frozen=True)
class Sides:
    """A number of each answer, [pairs] each."""

    chosen: Tensor
    rejected: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Sides:
        """From [2 pairs], as they stand in a batch."""
        return cls(values[0::2], values[1::2])

    def over(self, other: Sides) -> Sides:
        """Returns each divided by the other's."""
        return Sides(self.chosen / other.chosen, self.rejected / other.rejected)

    def less(self, other: Sides) -> Sides:
        """Returns each minus the other's."""
        return Sides(self.chosen - other.chosen, self.rejected - other.rejected)

    @property
    def margin(self) -> Tensor:
        """Chosen minus rejected."""
        return self.chosen - self.rejected


def answers(model: nn.Module, batch: Batch) -> tuple[Sides, Sides]:
    """(log π(y|x), tokens) of both answers."""
    from luthier.methods.log_probs import log_probs

    sums, tokens = log_probs(model, arguments(batch))
    return Sides.of(sums), Sides.of(tokens)


def against(model: nn.Module, batch: Batch, named: str | None) -> Sides:
    """log π_ref(y|x) of both answers; `named` is an adapter as the reference."""
    from luthier.methods.log_probs import reference_log_probs

    return Sides.of(reference_log_probs(model, batch, named))


def arguments(batch: Batch, *beside: str) -> dict[str, Any]:
    """What the model is called with."""
    return {key: value for key, value in batch.items() if key not in (REFERENCE, *beside)}


def preferred(margins: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - ε) log σ(m) - ε log σ(-m) of margins m: Bradley and Terry's, where a share ε of the labels is wrong."""
    from torch.nn.functional import logsigmoid

    right = -logsigmoid(margins)
    return (1 - smoothing) * right - smoothing * logsigmoid(-margins) if smoothing else right


def figures(rewards: Sides, tokens: Sides | None = None) -> Figures:
    """Rewards, their margin, whether the chosen answer has the higher one, and lengths."""
    told: Mapping[str, Tensor] = {
        "reward_chosen": rewards.chosen,
        "reward_rejected": rewards.rejected,
        "margin": rewards.margin,
        "accuracy": rewards.margin.gt(0).float(),
    }
    lengths = {} if tokens is None else {"tokens_chosen": tokens.chosen, "tokens_rejected": tokens.rejected}
    return {name: values.detach() for name, values in {**told, **lengths}.items()}

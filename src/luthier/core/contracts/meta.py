"""The contract of a meta-learner: what is trained so that few demonstrations are enough to adapt it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from luthier.core.contracts.component import Component

Tensors = Mapping[str, Tensor]
"""The tensors of an adapter, by name."""
Loss = Callable[[Tensors, Any], Tensor]
"""The mean loss of rows under an adapter of these tensors, differentiable by them."""


@dataclass(frozen=True)
class Meta(Component):
    """The inner loop on demonstrations of one domain, and the outer gradient on other rows of it.

    begin(params) -> tensors                                  what is trained beside the adapter, by other names
    adapt(loss, params, shown, draw) -> tensors               all of it after the inner loop on the demonstrations
    outer(loss, params, shown, asked, draw) -> (loss, grads)  of one domain; a step takes the mean over several
    samples(tensors, count, draw) -> adapters                 what predictions are averaged over
    spread(tensors) -> tensors                                the adapter's standard deviations, if it is a distribution

    `params` are the adapter's tensors and those of `begin`; they are left as they are. What is drawn comes from `draw`,
    which is seeded by the step.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"inner_lr": 0.0}
    """Settings at which a step is the multi-task step: the mean gradient on the rows that are asked."""

    plain: ClassVar[Mapping[str, Any]] = {}
    """Settings without what is trained beside the adapter, with which models that have none of it adapt."""

    rows: ClassVar[str] = "answers"
    """What it learns from: `answers` (prompts with their answers), or `masks` (see `MaskMeta`)."""

    form: ClassVar[str] = "lora"
    """The form that is attached unless another is asked for."""

    inner_lr: float = 1e-2
    """Learning rate of the inner loop, which is plain gradient descent."""
    inner_steps: int = 1
    """Steps of the inner loop."""

    def check(self) -> None:
        self.within("inner_lr", 0.0)
        self.within("inner_steps", 1)

    def begin(self, params: Tensors) -> dict[str, Tensor]:
        """Returns further tensors to train; none unless defined."""
        return {}

    def adapt(self, loss: Loss, params: Tensors, shown: Any, draw: Generator) -> dict[str, Tensor]:
        """Returns the tensors after the inner loop, without a graph."""
        raise NotImplementedError(f"{type(self).__name__} must define adapt")

    def samples(self, params: Tensors, count: int, draw: Generator) -> list[Tensors]:
        """Returns the adapters whose predictions are averaged: the one unless defined."""
        return [params]

    def spread(self, params: Tensors) -> dict[str, Tensor]:
        """Returns the standard deviation of each tensor of the adapter; nothing unless it is a distribution."""
        return {}

    def outer(
        self, loss: Loss, params: Tensors, shown: Any, asked: Any, draw: Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (the loss on what is asked, the gradient for the outer step)."""
        raise NotImplementedError(f"{type(self).__name__} must define outer")


@dataclass(frozen=True)
class Shots:
    """Pictures with their masks."""

    pictures: Tensor
    """Pictures as the model reads them, [k, 3, side, side]."""
    masks: Tensor
    """Their masks from 0 to 1, [k, side, side]."""

    def __len__(self) -> int:
        return len(self.masks)

    def at(self, places: list[int]) -> Shots:
        """Returns those at these places, in this order."""
        return Shots(self.pictures[places], self.masks[places])

    def parted(self, draw: Generator) -> tuple[Shots, Shots]:
        """Returns two parts, of which each is drawn anew: one to show, one to ask; a single shot is both."""
        order = torch.randperm(len(self), generator=draw).tolist()
        half = max(1, len(self) // 2)
        return self.at(order[:half]), self.at(order[half:] or order)


@dataclass(frozen=True)
class MaskMeta(Meta):
    """A meta-learner of masks: an episode shows pictures with masks of one kind, and asks for those of others.

    network(widths, side) -> module   trained beside the adapter, of which every task has its own; called with four
                                      levels of states of the asked and of the shown pictures, [n, tokens, width]
                                      each, and the shown masks, it gives logits [asked, side, side]

    In `params` its tensors have names that start with `matcher`; the others are the adapter of the task. `shown` are
    `Shots`, and `loss` takes (the shots to show, the shots to ask).
    """

    rows: ClassVar[str] = "masks"
    matcher: ClassVar[str] = "matcher/"
    """Before the names of the tensors of the network."""

    grid: int = 16
    """Tokens of the side that every level is brought to."""

    def check(self) -> None:
        super().check()
        self.within("grid", 1)

    def network(self, widths: tuple[int, ...], side: int) -> nn.Module:
        """Returns the network for levels of these widths and masks of `side` pixels."""
        raise NotImplementedError(f"{type(self).__name__} must define network")

"""What a training step costs, group by group: floating-point operations read off the graph of one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True, eq=False)
class BackwardCosts:
    """The operations of a step: the forward pass, and each gradient that the backward pass may have to compute.

    A gradient is computed if one of the trained groups lies behind it. So the gradient of a weight (t_dw) is due to one
    group, and that of an activation (t_dy) to every group nearer to the input.
    """

    forward: int
    """Operations of the forward pass."""
    names: tuple[str, ...]
    """The groups that the loss reaches, from the loss to the input, by the first use of each in the forward pass."""
    gradients: Mapping[int, int]
    """Operations of the gradients that have the same groups behind them, by these groups as bits: `1 << i` is
    `names[i]`."""
    forced: int = 0
    """The groups, as bits, that every step trains whatever is selected."""

    @property
    def total(self) -> int:
        """The operations of a step that trains everything."""
        return self.forward + sum(self.gradients.values())

    def of(self, selected: Collection[str]) -> int:
        """Returns the operations of a step that trains the groups `selected`, forward pass included."""
        chosen = self.forced | sum(1 << i for i, name in enumerate(self.names) if name in selected)
        return self.forward + sum(cost for bits, cost in self.gradients.items() if bits & chosen)

    @cached_property
    def own(self) -> tuple[int, ...]:
        """Counts t_dw: the operations of the gradients that are due to one group alone, by `names`."""
        found = [0] * len(self.names)
        for bits, cost in self.gradients.items():
            if not bits & self.forced and bits & (bits - 1) == 0:
                found[bits.bit_length() - 1] += cost
        return tuple(found)

    @cached_property
    def passed(self) -> tuple[int, ...]:
        """Counts Σ t_dy: the operations due once group k is the deepest that is trained, its own apart, by `names`.

        All gradients count that a group as near as k might ask for; branches of k's own block that hold none of the
        selected groups may cost less, nothing costs more.
        """
        due = [0] * len(self.names)
        base = 0
        for bits, cost in self.gradients.items():
            if bits & self.forced:
                base += cost
            elif bits & (bits - 1):
                due[(bits & -bits).bit_length() - 1] += cost
        return tuple(base + each for each in accumulate(due))

    @property
    def least(self) -> int:
        """The operations of a step that trains the one group that costs least."""
        return self.forward + min(own + passed for own, passed in zip(self.own, self.passed, strict=True))

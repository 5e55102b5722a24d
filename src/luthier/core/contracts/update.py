"""The contract of an update: how gradients change before AdamW's step, and which parameters are trained in a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.contracts.component import Component
from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """The trainable parameters of one form at one site, or at the sites that share them."""

    name: str
    """The prefix of its tensors' names, as `luthier.trainable` gives them: `<name>.<parameter>`."""
    site: Site
    form: Form
    """The form at the site's own rank."""
    level: int
    """The depth in the model: 0 before the blocks, i + 1 in block i, depth + 1 behind them (final norm, head)."""
    params: Mapping[str, nn.Parameter]
    """The trainable tensors, by the form's parameter names."""
    base: Callable[[], Tensor] = field(repr=False)
    """Reads the base's own tensor at the site, [..., d_out, d_in] as the form meets it."""
    module: nn.Module = field(repr=False)
    owner: nn.Module = field(repr=False)
    """The innermost model that holds the module; it knows how its modules are initialised."""

    def key(self, parameter: str) -> str:
        """Returns the full name of a tensor in the model."""
        return f"{self.name}.{parameter}"


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """The parameter groups that a run trains, and for how many steps."""

    groups: Sequence[ParameterGroup]
    """The parameter groups that the update decides about."""
    depth: int
    """The number of transformer blocks in the deepest stack."""
    steps: int
    """The number of optimiser steps of the run."""
    seed: int = 0
    """The seed of what is drawn: a step draws the same again after an interruption."""
    new_groups: Sequence[ParameterGroup] = ()
    """Groups of modules that the checkpoint lacks, such as a new head. They hold random numbers, so every step trains
    them whole, whatever the update does elsewhere."""

    @property
    def all(self) -> Sequence[ParameterGroup]:
        """Every parameter group that is trained."""
        return (*self.groups, *self.new_groups)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Returns the trainable tensors, by name."""
        return {group.key(key): p for group in self.all for key, p in group.params.items()}


@dataclass(frozen=True)
class Update(Component):
    """A change of how AdamW trains: gradients, learning rates or what is trained; the rest is plain AdamW.

    rate(plan, group, key) -> float         the learning rate of a tensor, as a multiple of the run's
    active(plan, step) -> groups            what is trained in a step; the rest gets no gradient and holds no state
    entries(plan, step) -> {name: index}    which entries of a tensor are trained from a step on; only they have moments
    values(plan, step) -> {name: tensor}    what tensors are set to before a step
    restarts(steps) -> steps                where the learning rate's schedule begins anew
    init(group) -> state                    what it keeps for a group; it goes into checkpoints
    update(grads, state, group) -> grads    the gradients that AdamW is given, all of a group at once

    Steps count from 0. All but `init` and `update` follow from their arguments alone, draws from `plan.seed`
    included, so a resumed run goes on as if it had never stopped. A head that is new to the checkpoint
    (`plan.new_groups`) is not an update's to rest, thin out or set: AdamW trains it whole in every step.
    """

    family: ClassVar[str] = "hybrid"
    """An update that trains what its form trains goes with every family; one that chooses what is trained says so."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Settings at which it is plain AdamW, bit for bit; None where there are no such settings."""
    sparse: ClassVar[bool] = False
    """Whether few entries of a tensor differ from the base in the end, so that the adapter is saved as sparse."""
    decays: ClassVar[bool] = True
    """Whether weight decay may be combined with it."""

    @property
    def changes(self) -> bool:
        """Whether the active parameters change from step to step."""
        return False

    def check_form(self, form: Form, sites: Sequence[Site]) -> None:
        """Raises for a form or sites that it cannot train; called before the weights are loaded."""

    def check_beside(self, form: Form, sites: Sequence[Site]) -> None:
        """Raises for a further form of the adapter that it cannot train beside the first; called likewise."""

    def rate(self, plan: TrainingPlan, group: ParameterGroup, key: str) -> float:
        """Returns the learning rate of tensor `key` of a group, as a multiple of the run's."""
        return 1.0

    def active(self, plan: TrainingPlan, step: int) -> Collection[ParameterGroup]:
        """Returns the parameter groups that are trained in `step`."""
        return plan.groups

    def entries(self, plan: TrainingPlan, step: int) -> Mapping[str, Tensor] | None:
        """Returns flat indices, unique and sorted, of the entries that are trained from `step` on, by tensor name.

        None leaves all as it was. A tensor that was never named is trained whole. An entry that stays keeps its
        moments, a new one starts from zero.
        """
        return None

    def values(self, plan: TrainingPlan, step: int) -> Mapping[str, Tensor]:
        """Returns tensors that are set before `step`, by name, with new moments; called after `entries`."""
        return {}

    def restarts(self, steps: int) -> tuple[int, ...]:
        """Returns the steps, ascending and above 0, at which the learning-rate schedule restarts."""
        return ()

    def init(self, group: ParameterGroup) -> dict[str, Tensor]:
        """Returns the initial state that `update` is given for a group."""
        return {}

    def update(
        self, grads: Mapping[str, Tensor], state: dict[str, Tensor], group: ParameterGroup
    ) -> Mapping[str, Tensor]:
        """Returns the gradients that AdamW uses instead of `grads` (after clipping); it may change `state`."""
        return grads

    def check_decay(self, weight_decay: float) -> None:
        """Raises if weight decay is asked for and the update has none."""
        if weight_decay and not self.decays:
            raise LuthierError(f"{self.name()} has no weight decay, and weight_decay is {weight_decay:g}; leave it 0.")

"""The contract of an update: what becomes of the gradients before AdamW's step, and what is trained at all."""

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
    """Parameters that train together: those of a form at a site, or at the sites that share them."""

    name: str
    """Opens the names of its tensors, as `luthier.trainable` gives them: `<name>.<parameter>`."""
    site: Site
    form: Form
    """The form at the site's own rank."""
    level: int
    """0 before the blocks (embeddings), i + 1 in block i, depth + 1 behind the blocks (final norm, head)."""
    params: Mapping[str, nn.Parameter]
    """The trained tensors by the form's names."""
    base: Callable[[], Tensor] = field(repr=False)
    """Reads the base's own tensor at the site, [..., d_out, d_in] as the form meets it."""
    module: nn.Module = field(repr=False)
    owner: nn.Module = field(repr=False)
    """The innermost model that the module is part of, which knows how its modules start."""

    def key(self, parameter: str) -> str:
        """The name of a tensor among all of the model's."""
        return f"{self.name}.{parameter}"


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What a run trains, and how long."""

    groups: Sequence[ParameterGroup]
    """What an update decides about."""
    depth: int
    """Blocks of the deepest stack."""
    steps: int
    """Optimiser steps of the run."""
    seed: int = 0
    """Fixes what is drawn: the same step draws the same, also after an interruption."""
    new_groups: Sequence[ParameterGroup] = ()
    """Places of modules that the checkpoint lacks, such as a new head. They hold random numbers, so every step trains
    them whole, whatever the update does elsewhere."""

    @property
    def all(self) -> Sequence[ParameterGroup]:
        """Every place that is trained."""
        return (*self.groups, *self.new_groups)

    def tensors(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name."""
        return {group.key(key): p for group in self.all for key, p in group.params.items()}


@dataclass(frozen=True)
class Update(Component):
    """How a form is trained: AdamW, with as much changed as an update says. What it leaves out is plain AdamW.

    rate(course, place, key) -> float       the learning rate of a tensor, as a multiple of the run's
    active(course, step) -> places          what is trained in a step; the rest gets no gradient and holds no state
    entries(course, step) -> {name: index}  which entries of a tensor are trained from a step on; moments are packed
    values(course, step) -> {name: tensor}  what tensors are set to before a step
    restarts(steps) -> steps                where the learning rate's schedule begins anew
    init(place) -> state                    what it keeps for a place; it goes into checkpoints
    update(grads, state, place) -> grads    the gradients that AdamW is given, all of a place at once

    Steps count from 0. All but `init` and `update` follow from their arguments alone, draws from `course.seed`
    included, so a resumed run goes on as if it had never stopped. A head that is new to the checkpoint
    (`course.fresh`) is no update's to rest, thin out or set: AdamW trains it whole in every step.
    """

    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Settings at which it is plain AdamW bit for bit, for those that have such."""
    sparse: ClassVar[bool] = False
    """Few entries of a tensor differ from the base in the end, so that the adapter is saved as such."""
    decays: ClassVar[bool] = True
    """It can be had with weight decay."""

    @property
    def changes(self) -> bool:
        """What is active changes from step to step."""
        return False

    def check_form(self, form: Form, sites: Sequence[Site]) -> None:
        """Raises for a form or sites that it cannot train; called before the weights are loaded."""

    def check_beside(self, form: Form, sites: Sequence[Site]) -> None:
        """Raises for a further form of the adapter that it cannot train beside the first; called likewise."""

    def rate(self, plan: TrainingPlan, group: ParameterGroup, key: str) -> float:
        """The learning rate of tensor `key` of a place, as a multiple of the run's."""
        return 1.0

    def active(self, plan: TrainingPlan, step: int) -> Collection[ParameterGroup]:
        """The places that are trained in `step`."""
        return plan.groups

    def entries(self, plan: TrainingPlan, step: int) -> Mapping[str, Tensor] | None:
        """Flat indices, unique and sorted, of the entries that are trained from `step` on, by tensor name.

        None leaves all as it was. A tensor that was never named is trained whole. An entry that stays keeps its
        moments, a new one starts from zero.
        """
        return None

    def values(self, plan: TrainingPlan, step: int) -> Mapping[str, Tensor]:
        """Tensors that are set before `step`, by name, with fresh moments; called after `entries`."""
        return {}

    def restarts(self, steps: int) -> tuple[int, ...]:
        """The steps, ascending and above 0, at which the schedule of the learning rate begins anew."""
        return ()

    def init(self, group: ParameterGroup) -> dict[str, Tensor]:
        """The state that `update` finds for a place."""
        return {}

    def update(
        self, grads: Mapping[str, Tensor], state: dict[str, Tensor], group: ParameterGroup
    ) -> Mapping[str, Tensor]:
        """The gradients that AdamW sees instead of `grads` (after clipping), by parameter; it may change `state`."""
        return grads

    def check_decay(self, weight_decay: float) -> None:
        """Raises if weight decay is asked for and the update has none."""
        if weight_decay and not self.decays:
            raise LuthierError(f"{self.name()} has no weight decay, and weight_decay is {weight_decay:g}; leave it 0.")

"""The contract of an update: how gradients change before AdamW's step, and which parameters are trained in a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.contracts.component import Component
from luthier.core.contracts.costs import BackwardCosts
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
    frozen: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The tensors of the form that no gradient trains, such as the positions of a sparse change."""

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
    epoch: int | None = None
    """The number of optimiser steps of an epoch; None where none is given."""
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    """What the update keeps for each group, by its name, as it is now (see `Update.init`); empty before training."""
    chosen: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The entries that train now, by tensor name, where `Update.entries` named some (see there)."""
    costs: Callable[[], BackwardCosts] | None = field(default=None, repr=False)
    """Finds, once, what a step costs; None where no forward pass can be run."""
    logits: Callable[[int], Tensor] | None = field(default=None, repr=False)
    """Computes the logits of some batch of the rows to learn, by its number, in the mode that the model is in."""

    @property
    def all(self) -> Sequence[ParameterGroup]:
        """Every parameter group that is trained."""
        return (*self.groups, *self.new_groups)

    def tensors(self) -> dict[str, nn.Parameter]:
        """Returns the trainable tensors, by name."""
        return {group.key(key): p for group in self.all for key, p in group.params.items()}


@dataclass(frozen=True, eq=False)
class Exchange:
    """New contents of a group's tensors; of those that are lists of entries, which stay and which are newcomers."""

    tensors: Mapping[str, Tensor]
    """The new contents by parameter name, frozen tensors included."""
    state: Mapping[str, Tensor]
    """What the update keeps for the group from now on."""
    origin: Tensor | None = None
    """For each new entry its place among the old ones, whose moments it takes along; -1 for a newcomer. None where all
    moments stay as they are."""
    mean: Tensor | float = 0.0
    """The gradient that the moments of a newcomer begin with, by entry."""
    square: Tensor | float = 0.0
    """The squared gradient, likewise."""


@dataclass(frozen=True)
class Update(Component):
    """A change of how AdamW trains: gradients, learning rates or what is trained; the rest is plain AdamW.

    rate(plan, group, key) -> float         the learning rate of a tensor, as a multiple of the run's
    active(plan, step) -> groups            what is trained in a step; the rest gets no gradient and holds no state
    entries(plan, step) -> {name: index}    which entries of a tensor are trained from a step on; only they have moments
    penalties(plan, step) -> {name: grad}   gradients that are added to the loss's in a step, after clipping
    values(plan, step) -> {name: tensor}    what tensors are set to before a step
    watches(plan, step) -> groups           of which places the whole weight's gradient is shown in a step
    seen(grad, state, group)                what it learns from such a gradient, one place at a time
    exchanges(plan, step) -> {name: …}      which entries of sparse changes give way to others before a step
    restarts(steps) -> steps                where the learning rate's schedule begins anew
    init(group) -> state                    what it keeps for a group; it goes into checkpoints
    begin(plan) -> {name: state}            what it measures before the first step, and keeps as well
    update(grads, state, group) -> grads    the gradients that AdamW is given, all of a group at once
    probes(plan, step) -> bool              whether a step is taken back once the next step's gradients were seen
    probed(grads, moved, state, group)      what it learns from these gradients, and from where the step led
    project(grads, reference) -> grads      before clipping, all tensors at once, where it `rehearses`

    Steps count from 0. All but `init`, `begin`, `update`, `seen` and `probed` follow from their arguments alone, draws
    from `plan.seed` and what was kept (`plan.states`) included, so a resumed run goes on as if it had never stopped. A
    head that is new to the checkpoint (`plan.new_groups`) is not an update's to rest, thin out or set: AdamW trains it
    whole in every step.
    """

    family: ClassVar[str] = "hybrid"
    """An update that trains what its form trains goes with every family; one that chooses what is trained says so."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Settings at which it is plain AdamW, bit for bit; None where there are no such settings."""
    sparse: ClassVar[bool] = False
    """Whether few entries of a tensor differ from the base in the end, so that the adapter is saved as sparse."""
    decays: ClassVar[bool] = True
    """Whether weight decay may be combined with it."""

    rehearses: ClassVar[bool] = False
    """Whether it goes by the gradient on rows of earlier tasks (`project`), which a sequence of tasks alone has."""

    @property
    def changes(self) -> bool:
        """Whether the active parameters change from step to step."""
        return False

    def check_form(self, form: Form, sites: Sequence[Site]) -> None:
        """Raises for a form or sites that it cannot train; called before the weights are loaded."""

    def check_plan(self, plan: TrainingPlan) -> None:
        """Raises for a plan that it cannot train: the weights are loaded, and no step was made."""

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

    def watches(self, plan: TrainingPlan, step: int) -> Collection[ParameterGroup]:
        """Returns the groups, at linear layers, of which `seen` is shown the whole gradient in `step`."""
        return ()

    def seen(self, grad: Tensor, state: dict[str, Tensor], group: ParameterGroup) -> None:
        """Learns from the gradient of a layer's weight, [d_out, d_in], of one backward pass; it changes `state`."""

    def exchanges(self, plan: TrainingPlan, step: int) -> Mapping[str, Exchange]:
        """Returns the entries that change before `step`, by the group's name; called after `values`."""
        return {}

    def penalties(self, plan: TrainingPlan, step: int) -> Mapping[str, Tensor]:
        """Returns the gradients of what is added to the loss of `step`, by tensor name; before `update`."""
        return {}

    def restarts(self, steps: int) -> tuple[int, ...]:
        """Returns the steps, ascending and above 0, at which the learning-rate schedule restarts."""
        return ()

    def init(self, group: ParameterGroup) -> dict[str, Tensor]:
        """Returns the initial state that `update` is given for a group."""
        return {}

    def begin(self, plan: TrainingPlan) -> Mapping[str, Mapping[str, Tensor]]:
        """Returns what else it keeps, by the group's name; called once, before the first step of a run that begins."""
        return {}

    def update(
        self, grads: Mapping[str, Tensor], state: dict[str, Tensor], group: ParameterGroup
    ) -> Mapping[str, Tensor]:
        """Returns the gradients that AdamW uses instead of `grads` (after clipping); it may change `state`."""
        return grads

    def probes(self, plan: TrainingPlan, step: int) -> bool:
        """Returns whether `step` is a probe.

        A probe is made at the run's full learning rate, and the step behind it computes gradients alone, for `probed`.
        Then parameters and moments are those from before the probe, so that the two train nothing.
        """
        return False

    def probed(
        self, grads: Mapping[str, Tensor], moved: Mapping[str, Tensor], state: dict[str, Tensor], group: ParameterGroup
    ) -> None:
        """Learns from the gradients behind a probe, and from how far it `moved` each tensor; it changes `state`."""

    def project(self, grads: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns the gradients of all trained tensors, by name, given those on rows of earlier tasks."""
        return grads

    def check_decay(self, weight_decay: float) -> None:
        """Raises if weight decay is asked for and the update has none."""
        if weight_decay and not self.decays:
            raise LuthierError(f"{self.name()} has no weight decay, and weight_decay is {weight_decay:g}; leave it 0.")

"""The optimiser: torch's own AdamW with an update hooked before and after its step, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from luthier.core.adapters.entries import Pack
from luthier.core.adapters.flops import backward_costs, probing_logits, probing_loss
from luthier.core.adapters.training_plan import active_groups, training_plan
from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site
from luthier.core.contracts.update import Exchange, ParameterGroup, TrainingPlan, Update


def optimiser(
    model: nn.Module,
    update: Update,
    *,
    lr: float,
    steps: int,
    name: str | None = None,
    seed: int = 0,
    weight_decay: float = 0.0,
    undecayed: Iterable[nn.Parameter] = (),
    settings: Mapping[str, Any] | None = None,
    resumes: bool = False,
    epoch: int | None = None,
    loss: Callable[[], Tensor] | None = None,
    logits: Callable[[int], Tensor] | None = None,
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Any:
    """Makes an AdamW over the adapters of a model (or the one named), trained as `update` says.

    Call `step` and `zero_grad` as of any optimiser; its `state_dict` holds the update's state as well. `undecayed`
    get no weight decay; `settings` are further ones of the optimiser (AdamW's betas, eps, fused), which may be of
    another `optimizer_class`. Between the steps, what is not active has `requires_grad` off. With `resumes`, nothing is
    begun until `load_state_dict` tells where. `epoch` is the number of steps in an epoch; `loss` computes the loss of a
    usual batch, for updates that weigh what a step costs (default: of one short made-up row), and `logits` those of
    batches, for updates that measure before they begin.
    """
    update.check_decay(weight_decay)
    plan = training_plan(model, steps, name=name, seed=seed)
    typical = loss or partial(probing_loss, model)
    costs = cache(partial(backward_costs, typical, plan.groups, plan.new_groups))
    shown = logits or partial(probing_logits, model)
    states = {group.name: update.init(group) for group in plan.groups}
    plan = replace(plan, epoch=epoch, states=states, costs=costs, logits=shown)
    _check(update, plan)
    spared = {id(p) for p in undecayed}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for group in plan.all:
        for key, parameter in group.params.items():
            rate = update.rate(plan, group, key), id(parameter) not in spared
            groups.setdefault(rate, []).append(parameter)
    make: Any = optimizer_class
    made = make(
        [
            {"params": params, "lr": lr * multiple, "weight_decay": weight_decay if decays else 0.0}
            for (multiple, decays), params in groups.items()
        ],
        **{**(settings or {}), "lr": lr},
    )
    _Driver(update, plan, made, begins=not resumes)
    return made


def _check(update: Update, plan: TrainingPlan) -> None:
    """Raises for forms and sites that the update cannot train; heads that are new are not its concern."""
    sites: dict[type[Form], list[Site]] = {}
    for group in plan.groups:
        sites.setdefault(type(group.form), []).append(group.site)
    forms = {type(group.form): group.form for group in reversed(plan.groups)}
    for number, (form, at) in enumerate(sites.items()):
        (update.check_beside if number else update.check_form)(forms[form], at)
    if plan.groups:
        update.check_plan(plan)


MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, in the order of its betas."""


class _Driver:
    """Follows an optimiser through its steps by hooks; the optimiser keeps it alive."""

    def __init__(self, update: Update, plan: TrainingPlan, optimizer: torch.optim.Optimizer, begins: bool) -> None:
        self.update, self.optimizer = update, optimizer
        self.chosen: dict[str, Tensor] = {}
        self.plan = replace(plan, chosen=self.chosen)
        self.params = plan.tensors()
        self.packs: dict[str, Pack] = {}
        self.states: Any = plan.states
        """What the update keeps; the plan shows it to the update."""
        self.snapshot: dict[str, dict[str, Any]] | None = None
        """Parameters and moments from before a probe, while it lasts."""
        self.rates: list[float] | None = None
        """The learning rates that a probe does without."""
        self.watching: list[RemovableHandle] = []
        self.active: list[ParameterGroup] = []
        """What the update changes the gradients of."""
        self.step = -1
        optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)
        optimizer.register_state_dict_post_hook(self.save)
        optimizer.register_load_state_dict_pre_hook(self.load)
        if begins:
            for name, kept in (update.begin(self.plan) if plan.groups else {}).items():
                self.states[name] |= kept
            self.advance()

    @torch.no_grad()
    def advance(self) -> None:
        """Goes to the next step: what it trains, from which values. Behind the last one nothing is chosen anew."""
        self.step += 1
        if self.step == self.plan.steps:
            for handle in self.watching:
                handle.remove()
            return
        if self.plan.groups:
            self.choose()
        self.activate()

    def choose(self) -> None:
        """What the update has of entries and values for the step at hand."""
        for key, index in (self.update.entries(self.plan, self.step) or {}).items():
            self.pack(key, index)
        for key, value in self.update.values(self.plan, self.step).items():
            self.params[key].copy_(value)
            self.optimizer.state.pop(self.stepped(key), None)
        exchanges = self.update.exchanges(self.plan, self.step)
        for group in self.plan.groups if exchanges else ():
            if group.name in exchanges:
                self.exchange(group, exchanges[group.name])

    def exchange(self, group: ParameterGroup, new: Exchange) -> None:
        """Puts new entries in the place of some; moments go with those that stay.

        A newcomer's moments are such that AdamW's correction for their start gives back the gradients they begin with.
        """
        for key, tensor in new.tensors.items():
            (group.params[key] if key in group.params else group.frozen[key]).copy_(tensor)
        self.states[group.name] = dict(new.state)
        if new.origin is None:
            return
        betas = {id(p): each["betas"] for each in self.optimizer.param_groups for p in each["params"]}
        stays, at = new.origin >= 0, new.origin.clamp(min=0)
        for p in group.params.values():
            state = self.optimizer.state.get(p)
            for moment, beta, start in zip(MOMENTS, betas[id(p)], (new.mean, new.square), strict=True):
                if state:
                    begun = torch.as_tensor(start * (1 - beta ** float(state["step"])), dtype=state[moment].dtype)
                    state[moment].copy_(torch.where(stays, state[moment][at], begun.to(at.device)))

    def watch(self) -> None:
        """Hooks the layers whose whole gradient the update wants in this step, and no others."""
        for handle in self.watching:
            handle.remove()
        watched = self.update.watches(self.plan, self.step) if self.plan.groups else ()
        self.watching = [group.module.register_forward_hook(partial(self.entered, group)) for group in watched]

    def entered(self, group: ParameterGroup, module: nn.Module, args: tuple, y: Tensor) -> None:
        """A layer was called: its weight's gradient is taken when the gradient of its output is there."""
        if y.requires_grad:
            y.register_hook(partial(self.look, group, args[0].detach()))

    @torch.no_grad()
    def look(self, group: ParameterGroup, x: Tensor, dy: Tensor) -> None:
        """Shows the update dŴ = dyᵀ x of one layer, which exists no longer than that."""
        grad = dy.reshape(-1, dy.shape[-1]).mT @ x.reshape(-1, x.shape[-1]).to(dy.dtype)
        self.update.seen(grad, self.states[group.name], group)

    def activate(self) -> None:
        """Switches gradients on where the step trains; elsewhere they and all moments go."""
        names = {group.name for group in active_groups(self.update, self.plan, self.step)}
        self.active = [group for group in self.plan.groups if group.name in names]
        for group in self.plan.all:
            for key, parameter in group.params.items():
                parameter.requires_grad_(group.name in names)
                if group.name not in names:
                    parameter.grad = None
                    self.optimizer.state.pop(self.stepped(group.key(key)), None)
        self.watch()

    def stepped(self, key: str) -> nn.Parameter:
        """Returns the parameter that AdamW steps for a tensor: itself, or its chosen entries."""
        return self.packs[key].held if key in self.packs else self.params[key]

    def pack(self, key: str, index: Tensor) -> None:
        """Lets AdamW step the entries `index` of a tensor; moments of entries that stay are kept."""
        before, old = self.stepped(key), self.packs.get(key)
        if old is not None and torch.equal(old.index, index):
            return
        self.params[key].grad = None  # the optimiser no longer clears it
        self.packs[key] = new = Pack(index, self.params[key])
        self.chosen[key] = index
        for group in self.optimizer.param_groups:
            group["params"][:] = [new.held if p is before else p for p in group["params"]]
        state = self.optimizer.state.pop(before, {})
        if old is not None and state:
            self.optimizer.state[new.held] = new.moved(state, old.index)

    @torch.no_grad()
    def before(self, *_: Any) -> None:
        """Hands AdamW the gradients that the update makes; behind a probe, takes it back."""
        if self.snapshot is not None:
            return self.take_back(self.snapshot)
        if self.plan.groups and self.update.probes(self.plan, self.step):
            self.begin_probe()
        for key, grad in (self.update.penalties(self.plan, self.step) if self.plan.groups else {}).items():
            whole = self.params[key]
            whole.grad = grad.to(whole.dtype) if whole.grad is None else whole.grad + grad.to(whole.dtype)
        for group in self.active:
            grads = {key: p.grad for key, p in group.params.items() if p.grad is not None}
            if grads:
                for key, grad in self.update.update(grads, self.states[group.name], group).items():
                    group.params[key].grad = grad
        for key, pack in self.packs.items():
            pack.gather(self.params[key])

    def begin_probe(self) -> None:
        """Keeps what the probe will change; it has the run's full rate, since a warm-up begins at zero."""
        moments = {key: self.optimizer.state.get(self.stepped(key), {}) for key in self.params}
        self.snapshot = {
            "params": {key: p.detach().clone() for key, p in self.params.items()},
            "moments": {key: {k: t.clone() for k, t in held.items()} for key, held in moments.items() if held},
        }
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("initial_lr", group["lr"])

    def take_back(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Shows the update where the probe led, and restores what was before; AdamW finds no gradient to step by."""
        before = snapshot["params"]
        for group in self.active:
            grads = {key: p.grad for key, p in group.params.items() if p.grad is not None}
            moved = {key: p.detach() - before[group.key(key)] for key, p in group.params.items() if key in grads}
            self.update.probed(grads, moved, self.states[group.name], group)
        for key, p in self.params.items():
            p.copy_(before[key])
            p.grad = None
            self.optimizer.state.pop(self.stepped(key), None)
            if key in snapshot["moments"]:
                self.optimizer.state[self.stepped(key)] = snapshot["moments"][key]
        self.snapshot = None

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        """Takes the step into the tensors, and turns to the next."""
        if self.rates is not None:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
            self.rates = None
        for key, pack in self.packs.items():
            pack.scatter(self.params[key])
        self.advance()

    def save(self, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Returns the optimiser's state with the update's."""
        entries = {key: pack.index for key, pack in self.packs.items()}
        told = {"step": self.step, "states": dict(self.states), "entries": entries}
        return state | {"update": told | ({"snapshot": self.snapshot} if self.snapshot is not None else {})}

    def load(self, _: Any, state: dict[str, Any]) -> None:
        """Brings back what `save` told, before the optimiser loads its own."""
        told = state["update"]
        if told["step"] < 0:
            return
        self.step = told["step"]
        for group in self.plan.groups:
            device = next(iter(group.params.values())).device
            self.states[group.name] = {key: t.to(device) for key, t in told["states"][group.name].items()}
        self.snapshot = _on_devices(told.get("snapshot"), self.params)
        for key, index in told["entries"].items():
            self.pack(key, index.to(self.params[key].device))
        self.activate()


def _on_devices(snapshot: Any, params: Mapping[str, Tensor]) -> Any:
    """A stored snapshot, with every tensor where its parameter is."""
    if snapshot is None:
        return None
    held, moments = snapshot["params"], snapshot["moments"]
    return {
        "params": {key: t.to(params[key].device) for key, t in held.items()},
        "moments": {
            key: {k: t if k == "step" else t.to(params[key].device) for k, t in each.items()}
            for key, each in moments.items()
        },
    }

"""Revival: whether an old ability is gone, or still inside, behind a thin wrapper that fine-tuning put around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Batch, Examination, Pair, Report
from luthier.core.errors import LuthierError
from luthier.core.sites.answers import answers, spoken
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.select import select
from luthier.methods.examinations._probes import crossed, first_states

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Revival(Examination):
    """revived in k steps ≪ k' from scratch, while argmax ridge(h_l) still reads the old answer at block l

    Rows are of the *old* task. Three looks, each beside a control: (1) linear probes by block read the first right
    token (or class) off the state before it, cross-validated; the null is the same model with fresh weights.
    (2) Pruning the wrapper: of all output channels m of linear layers, those whose removal lowers the old loss most at
    first order (dL/dm > 0) are set to zero; the null removes as many at random. (3) Reverse fine-tuning of all weights
    by AdamW until `regained` of what was lost is back; the null starts from fresh weights. Half of the batches trains
    and prunes, the other half tests. A count of `steps` + 1 means: not within `steps`. The paper does (1) to (3) on
    models of its own; the ridge probe, the first-order score and the bound `regained` are ours.
    """

    paper = "Jain et al. 2024 (ICLR), arXiv 2311.12786"
    reads = True

    steps: int = 20
    """The most steps of reverse fine-tuning."""
    lr: float = 1e-3
    """Learning rate of reverse fine-tuning and of the start from scratch."""
    regained: float = 0.9
    """Share of the lost score at which the ability counts as revived."""
    prune: float = 0.02
    """Largest share of output channels that is removed; a half and a quarter of it are tried as well."""
    folds: int = 4
    """Parts of the rows in the cross-validation of probes."""
    seed: int = 0
    """Of fresh weights, folds and random channels."""

    def check(self):
        self.within("steps", 1)
        self.above("lr", 0)
        self.above("regained", 0, 1)
        self.above("prune", 0, 1)
        self.within("folds", 2)

    def measure(self, pair):
        batches = [batch for each in pair.data.values() for batch in each]
        if len(batches) < 2:
            raise LuthierError("one half of the batches revives and the other tests; give two (batch).")
        fitting, testing = batches[::2], batches[1::2]
        with pair.before() as model:
            before, own = score(model, testing), first_states(model, batches)
        with edited(pair) as model:
            after, tuned = score(model, testing), first_states(model, batches)
            target = after + self.regained * (before - after)
            pruned, luck = self._pruned(pair, model, fitting, testing)
            steps = self._steps(pair, "reviving", model, fitting, testing, target)
        with edited(pair) as model:
            refresh(model, self.seed)
            fresh = first_states(model, batches)
            scratch = self._steps(pair, "training from scratch", model, fitting, testing, target)
        places = self._probes(tuned, own)
        null = self._probes(fresh, fresh)
        found = {"before": before, "after": after, "pruned": pruned, "steps": float(steps)}
        control = found | {"pruned": luck, "steps": float(scratch)}
        return self._report(places, null, found, control)

    def _probes(self, first: tuple[list[Tensor], Tensor], second: tuple[list[Tensor], Tensor]):
        (after, labels), (before, _) = first, second
        mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed + 1))]
        return {
            str(layer): {
                "probe": crossed(x, labels, self.folds, self.seed),
                "before": crossed(y, labels, self.folds, self.seed),
                "shuffled": crossed(x, mixed, self.folds, self.seed),
            }
            for layer, (x, y) in enumerate(zip(after, before, strict=True))
        }

    def _pruned(self, pair: Pair, model: nn.Module, fitting, testing) -> tuple[float, float]:
        """The test score without the channels that stand most in the way, and without as many random ones."""
        masks = ones(model)
        slope = torch.cat([each.flatten() for each in mask_gradient(model, masks, fitting).values()])
        draw = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(slope), generator=draw, dtype=torch.double)
        found = {}
        for share in pair.watch("pruning", [0.0, self.prune / 4, self.prune / 2, self.prune]):
            size = int(share * len(slope))
            removed = split(masks, slope.topk(size).indices)
            with masked(model, removed):
                found[share] = score(model, fitting), size, score(model, testing)
        _, size, best = max(found.values(), key=lambda each: (each[0], -each[1]))
        with masked(model, split(masks, noise.topk(size).indices)):
            return best, score(model, testing)

    def _steps(self, pair: Pair, text: str, model: nn.Module, fitting, testing, target: float) -> int:
        """Steps until the test score reaches the target; `steps` + 1 where it does not."""
        found = None
        optimiser = torch.optim.AdamW(_floating(model), lr=self.lr, weight_decay=0)
        for step in pair.watch(text, list(range(self.steps + 1))):
            if found is None and score(model, testing) >= target - 1e-9:
                found = step
            if found is None and step < self.steps:
                optimiser.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    loss_of(model, fitting[step % len(fitting)]).backward()
                optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return self.steps + 1 if found is None else found

    def _report(self, places, null, found, control) -> Report:
        inner = lambda each: max(numbers["probe"] for numbers in each.values())  # noqa: E731
        found, control = found | {"probe": inner(places)}, control | {"probe": inner(null)}
        lost = found["before"] - found["after"]
        counts = found["steps"], control["steps"]
        words = [f"more than {self.steps}" if count > self.steps else f"{count:.0f}" for count in counts]
        hidden = found["steps"] <= self.steps and 2 * found["steps"] < control["steps"]
        said = "The ability is hidden" if hidden else "The ability is not shown to be hidden"
        said = said if lost > 0 else "Nothing was lost"
        return Report(
            effect=lost,
            column="probe",
            places=places,
            null=null,
            layers={key: int(key) for key in places},
            summary=found,
            null_summary=control,
            baseline="fresh weights (probes, steps), as many random channels (pruned)",
            verdict=f"{said}: score {found['before']:.3f} before, {found['after']:.3f} after; it comes back in "
            f"{words[0]} steps ({words[1]} from scratch), by pruning to {found['pruned']:.3f} (random channels "
            f"{control['pruned']:.3f}); the best probe reads {found['probe']:.3f} (fresh weights "
            f"{control['probe']:.3f}).",
        )


def score(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Returns the share of labels that the likeliest answer meets."""
    return float(answers(model, batches).hit.mean())


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean loss of a batch's labels."""
    logits, labels, _ = spoken(model, batch)
    return nn.functional.cross_entropy(logits, labels)


# --- a model whose weights may be changed for a while --------------------------------------------------


@contextmanager
def edited(pair: Pair) -> Iterator[nn.Module]:
    """The fine-tuned model in evaluation mode, all of whose weights may be trained; they are put back afterwards.

    It is the base with the change added to its weights; where no weight can express the change, the adapted model.
    """
    try:
        deltas = {change.place.site.path: stored(change) for change in pair.changes()}
    except LuthierError:
        deltas = None
    with ExitStack() as stack:
        model = stack.enter_context(pair.after() if deltas is None else pair.before())
        stack.enter_context(eval_mode(model))
        stack.enter_context(put_back(model))
        with torch.no_grad():
            for path, delta in (deltas or {}).items():
                parameter = model.get_parameter(path)
                parameter.add_(delta.to(parameter))
        yield model


def stored(change) -> Tensor:
    """Returns a change in the shape that the model stores."""
    full = change.delta().dense()
    return full.mT if change.place.site.transposed and full.dim() == 2 else full


def _floating(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.is_floating_point()]


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """All floating parameters require gradients; values, gradients and flags are put back."""
    kept = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in _floating(model)]
    try:
        for parameter, *_ in kept:
            parameter.requires_grad_(True)
        yield
    finally:
        with torch.no_grad():
            for parameter, value, wanted, gradient in kept:
                parameter.copy_(value)
                parameter.requires_grad_(wanted)
                parameter.grad = gradient


def refresh(model: nn.Module, seed: int) -> None:
    """Draws every matrix anew, normal with its own standard deviation; vectors (norms, biases) stay."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in _floating(model):
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float32)
                parameter.copy_(noise.to(parameter) * parameter.float().std().to(parameter))


# --- channels that are set to zero -----------------------------------------------------------------------


def ones(model: nn.Module) -> Masks:
    """Returns {path: [d_out] of ones} of the linear layers in the blocks."""
    sites = [site for site in select(model, "all-linear") if site.layer is not None]
    return {site.path: torch.ones(site.d_out, dtype=torch.double) for site in sites}


def split(masks: Masks, removed: Tensor) -> Masks:
    """Returns the masks with zeros at `removed`, indices into all of them behind each other."""
    flat = torch.ones(sum(map(len, masks.values())), dtype=torch.double)
    flat[removed] = 0
    return dict(zip(masks, flat.split([len(each) for each in masks.values()]), strict=True))


@contextmanager
def masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """The outputs of layers are multiplied by their masks."""
    hooks = []
    for path, mask in masks.items():
        hook = lambda module, args, output, mask=mask: output * mask.to(output)  # noqa: E731
        hooks.append(model.get_submodule(path).register_forward_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mask_gradient(model: nn.Module, masks: Masks, batches: Sequence[Batch]) -> Masks:
    """dL/dm at m = 1, L the mean over batches of the mean loss of their labels."""
    leaves = {path: mask.clone().requires_grad_() for path, mask in masks.items()}
    total = {path: torch.zeros_like(mask) for path, mask in masks.items()}
    for batch in batches:
        with torch.enable_grad(), masked(model, leaves):
            found = torch.autograd.grad(loss_of(model, batch), list(leaves.values()), allow_unused=True)
        for path, gradient in zip(leaves, found, strict=True):
            total[path] += 0 if gradient is None else gradient / len(batches)
    return total

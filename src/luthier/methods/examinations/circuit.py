"""Circuits: which attention heads carry what fine-tuning brought, and whom they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from luthier.core.contracts.examination import Batch, Examination, Pair, Report
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact
from luthier.core.sites.answers import spoken
from luthier.core.sites.heads import heads, layers_of
from luthier.core.sites.probe import eval_mode
from luthier.methods.examinations._patching import (
    Head,
    Masks,
    Outputs,
    direct,
    fit_masks,
    giving,
    loss,
    noting,
    one,
    patched,
    path_effect,
    read,
    replacing,
    rolled,
    zeros,
)

Read = list[tuple[Batch, Outputs]]


@dataclass(frozen=True)
class Circuit(Examination):
    """gain_h = L(base) - L(base; z_h ← z'_h), z' the heads of the fine-tuned model on the same rows; L loss of labels

    Cross-model patching (CMAP) puts the output of single heads of the fine-tuned model into the base: `gain` is what
    one head brings alone. `path` is path patching inside the fine-tuned model: the rise of the loss where a head's
    output is that of the next row and all other heads are held, its direct word to the logits. `mask` is the share of
    the head in a mask over all heads (DCM), fitted on half of the batches to minimise L(patched) + `cost` Σ m; heads
    above a half are kept, and what they bring together is measured on the other half. Edges are path patching between
    kept heads, through query, key and value. `everything` is the largest difference of logits where all heads and all
    modules of the base give what the fine-tuned model's give: 0 up to rounding, or patching would be wrong. Nulls:
    `gain` with z' of the next row; `path` with the head's own output, which changes nothing; random masks of the same
    size. Positions of rows in a batch are taken as they stand, so give rows of one form. The authors study entity
    tracking on rows of boxes and fit masks on counterfactual rows; which ability it is here, the rows say.
    """

    paper = "Prakash et al. 2024 (ICLR), arXiv 2402.14811 (code: Nix07/finetuning); path patching: Wang et al. 2023"
    reads = True

    heads: int = 24
    """How many heads are patched one by one: those of the largest first-order effect."""
    cost: float = 0.01
    """What a head of the mask costs, in nats."""
    steps: int = 30
    """Steps of Adam on the mask."""
    lr: float = 0.05
    """Learning rate of the mask."""
    edges: int = 4
    """The number of kept heads between which paths are patched."""
    seed: int = 0
    """The seed of random masks."""

    def check(self):
        self.within("heads", 1)
        self.within("cost", 0)
        self.within("steps", 1)
        self.above("lr", 0)
        self.within("edges", 0)

    def measure(self, pair):
        batches = [batch for each in pair.data.values() for batch in each]
        if len(batches) < 2:
            raise LuthierError(
                "one half of the batches fits the mask and the other tests it, and the rows make one batch; give more "
                "rows, or smaller batches (batch)."
            )
        with pair.after() as model, eval_mode(model):
            done = [read(model, batch) for batch in pair.watch("reading the fine-tuned model", batches)]
            with noting(model) as modules:
                wanted = spoken(model, batches[0])[0]
        tuned: Read = [(batch, outputs) for batch, (outputs, _) in zip(batches, done, strict=True)]
        after = mean([each for _, each in done])
        with pair.before() as model, eval_mode(model):
            layers = layers_of(model, tuned[0][1])
            before = mean([float(loss(model, batch)) for batch in batches])
            error = everything(model, tuned[0], dict(modules), wanted)
            masks = fit_masks(model, tuned[::2], self.cost, self.steps, self.lr, pair.watch)
            chosen = self._chosen(model, tuned[::2], where(masks))
            gains = [self._gain(pair, model, tuned, chosen, before, "patching heads", rolling=False)]
            gains += [self._gain(pair, model, tuned, chosen, before, "patching heads of other rows", rolling=True)]
            found = self._masks(model, tuned[1::2], masks)
        kept = sorted(where(masks), key=lambda head: -float(masks[head[0]][head[1]]))
        with pair.after() as model, eval_mode(model):
            direct_effects, itself = self._direct(pair, model, tuned, chosen, after)
            edges = self._edges(pair, model, tuned, kept[: self.edges], layers, after)
        named = names(chosen, layers)
        places = {
            name: {"gain": gain, "path": path, "mask": float(masks[head[0]][head[1]])}
            for name, head, gain, path in zip(named, chosen, gains[0], direct_effects, strict=True)
        }
        draw = torch.Generator().manual_seed(self.seed)
        lots = torch.randperm(len(chosen), generator=draw).tolist()
        null = {
            name: {"gain": gain, "path": itself, "mask": places[named[lots[n]]]["mask"]}
            for n, (name, gain) in enumerate(zip(named, gains[1], strict=True))
        }
        common = {"fine-tuned": before - after, "all heads": found[1], "heads": len(kept), "everything": error}
        return Report(
            effect=before - after,
            column="gain",
            places=places,
            null=null,
            layers={name: layers[head[0]] for name, head in zip(named, chosen, strict=True)},
            summary=common | {"kept": found[0]},
            null_summary=common | {"kept": found[2]},
            baseline="heads of other rows (gain), of themselves (path), random masks of the same size (mask)",
            verdict=f"Fine-tuning brought {before - after:.3f} nats; on the test half all heads bring {found[1]:.3f}, "
            f"the {len(kept)} kept ones {found[0]:.3f}, as many random ones {found[2]:.3f}. Patching everything leaves "
            f"a difference of {error:.1g}.",
            edges=edges,
        )

    def _chosen(self, model: nn.Module, tuned: Read, kept: Sequence[Head]) -> list[Head]:
        """The heads whose replacement changes the loss most at first order, and those kept, in the order of the
        model."""
        slopes = [slope(model, batch, outputs) for batch, outputs in tuned]
        total = {path: torch.tensor([each[path] for each in slopes]).sum(0).tolist() for path in slopes[0]}
        ranked = sorted(
            ((path, n) for path in total for n in range(len(total[path]))), key=lambda h: -abs(total[h[0]][h[1]])
        )
        chosen = {*ranked[: self.heads], *kept}
        return sorted(chosen, key=lambda head: (list(total).index(head[0]), head[1]))

    def _gain(self, pair: Pair, model, tuned: Read, chosen, before: float, text: str, *, rolling: bool) -> list[float]:
        def patch(head: Head) -> float:
            given = [(batch, rolled(outputs) if rolling else outputs) for batch, outputs in tuned]
            return before - mean([float(patched(model, batch, z, one(z, head))) for batch, z in given])

        return [patch(head) for head in pair.watch(text, chosen)]

    def _masks(self, model, tuned: Read, masks: Masks) -> tuple[float, float, float]:
        """(gain of the rounded mask, of all heads, of a random mask of its size) on these batches."""
        base = mean([float(loss(model, batch)) for batch, _ in tuned])
        flat = torch.cat([each.round() for each in masks.values()])
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(self.seed))
        drawn = torch.zeros_like(flat)
        drawn[order[: int(flat.sum())]] = 1
        sizes = [len(each) for each in masks.values()]
        found = []
        for each in (flat, torch.ones_like(flat), drawn):
            mask = dict(zip(masks, each.split(sizes), strict=True))
            found.append(base - mean([float(patched(model, batch, z, mask)) for batch, z in tuned]))
        return found[0], found[1], found[2]

    def _direct(self, pair: Pair, model, tuned: Read, chosen, after: float) -> tuple[list[float], float]:
        """(the rise of the loss for each head's other output, the rise where every head gets its own)."""
        found = []
        for head in pair.watch("patching paths to the logits", chosen):
            found.append(mean([direct(model, batch, z, rolled(z), head) for batch, z in tuned]) - after)
        return found, mean([float(patched(model, batch, z, zeros(z, 1.0))) for batch, z in tuned]) - after

    def _edges(self, pair: Pair, model, tuned: Read, kept: Sequence[Head], layers, after: float) -> dict[str, float]:
        pairs = [(first, then) for first in kept for then in kept if layers[first[0]] < layers[then[0]]]
        name = dict(zip(kept, names(kept, layers), strict=True))
        found = {}
        for sender, receiver in pair.watch("patching paths between heads", pairs):
            losses = [path_effect(model, batch, z, rolled(z), sender, receiver) for batch, z in tuned]
            found[f"{name[sender]} > {name[receiver]}"] = mean(losses) - after
        return found


def slope(model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, list[float]]:
    """Returns dL/dm at m = 0 of every head, in nats for a whole head."""
    masks = {path: each.requires_grad_() for path, each in zeros(outputs).items()}
    with torch.enable_grad():
        found = torch.autograd.grad(patched(model, batch, outputs, masks), list(masks.values()))
    return dict(zip(masks, (each.tolist() for each in found), strict=True))


def everything(model: nn.Module, tuned: tuple[Batch, Outputs], modules: dict, wanted) -> float:
    """Returns the largest difference to the fine-tuned model's logits where all heads and modules are patched."""
    batch, outputs = tuned
    with heads(model, replacing(outputs, zeros(outputs, 1.0))), giving(model, modules):
        return float((exact(spoken(model, batch)[0]) - exact(wanted)).abs().max())


def where(masks: Masks) -> list[Head]:
    """Returns the heads whose share is more than a half."""
    return [(path, n) for path, each in masks.items() for n in range(len(each)) if float(each[n]) > 0.5]


def names(chosen: Sequence[Head], layers: dict[str, int]) -> list[str]:
    """Returns `block.head` where every block has one attention, else `path.head`."""
    plain = len(set(layers.values())) == len(layers)
    return [f"{layers[path] if plain else path}.{head}" for path, head in chosen]


def mean(values: Sequence[float]) -> float:
    """Returns the mean."""
    return sum(values) / len(values)

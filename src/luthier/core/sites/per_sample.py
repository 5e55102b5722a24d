"""Gradients of single rows, projected while the backward pass runs, so that none is ever held as large as the model."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode

Batch = Mapping[str, Any]
Losses = Callable[[nn.Module, Batch], Tensor]
"""Gives the loss of each row, [rows], of (model, batch)."""


@dataclass(frozen=True)
class Projection:
    """A random projection of gradients, g ↦ Σ over tensors of vec(P G Qᵀ).

    P [√k, d_out] and Q [√k, d_in] have entries N(0, 1/√k), drawn by the seed.

    Products of two projections are, on average over seeds, products of the gradients. P and Q follow from the seed and
    the tensor's name alone, so the rows of all passes and batches are comparable. Of a vector, one matrix [k, d]. With
    `size` None nothing is projected and gradients stand one behind another, [rows, all their entries].
    """

    size: int | None = 1024
    """The numbers of a projection, k, a square."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and (self.size < 1 or math.isqrt(self.size) ** 2 != self.size):
            near = max(1, round(math.sqrt(max(self.size, 1)))) ** 2
            raise LuthierError(f"gradients are projected to {self.size} numbers; expected a square number, as {near}.")

    @property
    def side(self) -> int:
        """The side of its square, √k."""
        return math.isqrt(self.size or 1)

    def draw(self, name: str, rows: int, like: Tensor, width: int) -> Tensor:
        """Returns [rows, width], entries N(0, 1/rows), by the seed and the name; on the device of `like`."""
        digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        drawn = torch.randn(rows, width, generator=generator, dtype=torch.float32) / math.sqrt(rows)
        return drawn.to(like.device, torch.promote_types(like.dtype, torch.float32))


@dataclass
class Sketch:
    """What has been summed of the present batch, and the matrices drawn so far."""

    projection: Projection
    matrices: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    """By the tensor's name, [rows, …]; projected, under one name for all."""

    def matrix(self, name: str, like: Tensor, width: int, rows: int | None = None) -> Tensor:
        """Returns the matrix of that name, drawn once."""
        if name not in self.matrices:
            self.matrices[name] = self.projection.draw(name, rows or self.projection.side, like, width)
        return self.matrices[name]

    def narrow(self, name: str, x: Tensor) -> Tensor:
        """Projects the last dimension of x, [..., d] -> [..., √k]; as it is where nothing is projected."""
        if self.projection.size is None:
            return x
        return x.to(torch.promote_types(x.dtype, torch.float32)) @ self.matrix(name, x, x.shape[-1]).mT

    def add(self, name: str, found: Tensor) -> None:
        """Adds a tensor's part, [rows, numbers]."""
        key = name if self.projection.size is None else ""
        self.sums[key] = self.sums[key] + found if key in self.sums else found

    def whole(self, name: str, gradient: Tensor) -> Tensor:
        """Projects the gradient of one row, of any shape, to [numbers]."""
        if self.projection.size is None:
            return gradient.flatten()
        if gradient.dim() < 2:
            flat = gradient.flatten().to(torch.promote_types(gradient.dtype, torch.float32))
            return self.matrix(f"{name} vector", flat, len(flat), self.projection.size) @ flat
        matrix = gradient.flatten(1)
        return self.narrow(f"{name} out", self.narrow(f"{name} in", matrix).mT).mT.flatten()

    def taken(self) -> Tensor:
        """Returns the rows of the batch, [rows, k], on the CPU, and forgets them."""
        found = torch.cat([part.flatten(1) for part in self.sums.values()], 1).cpu()
        self.sums = {}
        return found


def per_sample(
    model: nn.Module,
    batches: Iterable[Batch],
    losses: Losses,
    *,
    sites: Sequence[Site] | None = None,
    projection: Projection | None = None,
) -> Iterator[Tensor]:
    """Yields the gradients of the rows of each batch, [rows, k], in one pass over `batches` of the model's arguments.

    With `sites`, those of the weights of these linear layers, of all rows of a batch in one backward pass: what enters
    a layer is projected as it enters, what comes back as it comes, and neither a weight's gradient nor a row's is
    formed. Without, those of every parameter that requires one (an adapter's, of whatever form), a row at a time, each
    gradient projected and dropped as soon as it is there. Both say the same of the same weights. The model is in
    evaluation mode meanwhile and is left as it was; what is held does not grow with the rows.

    Raises `LuthierError` for a site that is not a plain linear layer or has an adapter (its weight is not read by
    itself; take the adapter's own parameters), for layers that mix the rows of a batch, and for a model without what is
    to be differentiated.
    """
    sketch = Sketch(projection or Projection())
    walk = _by_row if sites is None else functools.partial(_by_batch, sites=sites)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.enable_grad())
        yield from walk(model, batches, losses, sketch, stack)


# --- all rows of a batch at once ---------------------------------------------------------------------


@dataclass
class _Rows:
    """How many rows the present batch has."""

    count: int = 0


def _by_batch(
    model: nn.Module, batches: Iterable[Batch], losses: Losses, sketch: Sketch, stack: ExitStack, sites: Sequence[Site]
) -> Iterator[Tensor]:
    layers = _layers(model, sites)
    _untrained(model, stack)
    rows = _Rows()
    for path, layer in layers.items():
        hook = _hook(path, sketch, rows)
        stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
    for batch in batches:
        rows.count = rows_of(batch)
        losses(model, batch).sum().backward()
        if not sketch.sums:
            raise LuthierError("no row reached the layers whose gradients were asked for; choose others (where).")
        yield sketch.taken()


def _hook(path: str, sketch: Sketch, rows: _Rows) -> Callable[[nn.Module, tuple, dict, Tensor], Tensor]:
    """Projects what enters the layer now, and what comes back to it in the backward pass."""

    def entered(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        x = sketch.narrow(f"{path}.weight in", _by_sample(path, given.detach(), rows.count))
        if not output.requires_grad:  # the first layer: nothing before it is traced
            output = output.detach().requires_grad_().clone()

        def returned(gradient: Tensor) -> None:
            g = sketch.narrow(f"{path}.weight out", _by_sample(path, gradient, rows.count))
            sketch.add(f"{path}.weight", torch.einsum("bto,bti->boi", g, x.to(g.dtype)).flatten(1))

        output.register_hook(returned)
        return output

    return entered


def _by_sample(path: str, x: Tensor, rows: int) -> Tensor:
    """x as [rows, tokens, d]."""
    if x.dim() == 2 and len(x) % rows == 0 and len(x) != rows:
        raise LuthierError(
            f"{path} reads the tokens of all rows in one list, in which a row cannot be told from another; leave it "
            "out (where)."
        )
    if len(x) != rows:
        raise LuthierError(f"{path} does not treat the {rows} rows of a batch apart; leave it out (where).")
    return x.reshape(rows, -1, x.shape[-1])


def _layers(model: nn.Module, sites: Sequence[Site]) -> dict[str, nn.Module]:
    """The modules of the sites, by path."""
    found = {}
    for site in sites:
        layer = model.get_submodule(site.module)
        if site.kind != "affine" or not isinstance(layer, nn.Linear | Conv1D):
            raise LuthierError(f"{site.path} is not a linear layer; per-row gradients of a batch are those of such.")
        if getattr(type(layer), "_luthier_base", None) is not None:
            raise LuthierError(
                f"{site.path} has an adapter, behind which a row's gradient of the weight cannot be told; detach it, "
                "or take the gradients of the adapter's own parameters (no sites)."
            )
        found[site.path] = layer
    if not found:
        raise LuthierError("no layer was named whose gradients are wanted.")
    return found


def _untrained(model: nn.Module, stack: ExitStack) -> None:
    """No parameter's own gradient is computed while the context lasts."""
    flags = {p: p.requires_grad for p in model.parameters()}
    for parameter in flags:
        parameter.requires_grad_(False)
    stack.callback(lambda: [p.requires_grad_(flag) for p, flag in flags.items()])


# --- one row after another ---------------------------------------------------------------------------


def _by_row(
    model: nn.Module, batches: Iterable[Batch], losses: Losses, sketch: Sketch, stack: ExitStack
) -> Iterator[Tensor]:
    wanted = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if not wanted:
        raise LuthierError("no parameter of this model is trained, so none has a gradient; name layers (sites).")
    before = {p: p.grad for p in wanted}
    stack.callback(lambda: [setattr(p, "grad", grad) for p, grad in before.items()])

    def drop(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            sketch.add(wanted[parameter], sketch.whole(wanted[parameter], gradient)[None])

    for parameter in wanted:
        parameter.grad = None
        stack.callback(parameter.register_post_accumulate_grad_hook(drop).remove)
    order = list(wanted.values())
    for batch in batches:
        found = []
        for row in range(rows_of(batch)):
            losses(model, one(batch, row)).sum().backward()
            _complete(sketch, wanted)
            sketch.sums = {key: sketch.sums[key] for key in (order if sketch.projection.size is None else [""])}
            found.append(sketch.taken())
        yield torch.cat(found)


def _complete(sketch: Sketch, wanted: Mapping[nn.Parameter, str]) -> None:
    """Zeros for parameters that the row did not reach."""
    if sketch.projection.size is not None:
        if not sketch.sums:
            like = next(iter(wanted))
            sketch.sums[""] = like.new_zeros(1, sketch.projection.size)
        return
    for parameter, name in wanted.items():
        if name not in sketch.sums:
            sketch.sums[name] = parameter.new_zeros(1, parameter.numel())


def rows_of(batch: Batch) -> int:
    """Returns the rows of a batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def one(batch: Batch, row: int) -> dict[str, Any]:
    """Returns a row of a batch as a batch, without the padding that it has beside others where that is on the right."""
    found = {key: value[row : row + 1] if isinstance(value, Tensor) else value for key, value in batch.items()}
    mask = found.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not mask[0, 0]:
        return found
    width, length = mask.shape[1], int(mask.sum())
    return {
        key: value[:, :length] if isinstance(value, Tensor) and tuple(value.shape) == (1, width) else value
        for key, value in found.items()
    }

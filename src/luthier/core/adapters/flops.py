"""The operations of a training step, read off the graph that autograd keeps of one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from luthier.core.contracts.costs import BackwardCosts
from luthier.core.contracts.kernel import reference_implementation
from luthier.core.contracts.update import ParameterGroup
from luthier.core.sites.probe import dummy_inputs

ROOT = ("loss", "logits", "last_hidden_state")
"""What a model gives that training starts from, in this order."""
Node = Any
"""A node of autograd's graph: `next_functions` lead towards the leaves."""


def backward_costs(
    loss: Callable[[], Tensor], groups: Sequence[ParameterGroup], new_groups: Sequence[ParameterGroup] = ()
) -> BackwardCosts:
    """Returns what a step of `loss` costs, for every choice among `groups`; `new_groups` are trained in any case.

    Matrix products and convolutions count, as in torch's FLOP counter, from their shapes; what the graph does between
    them (norms, activations) does not. Products with a gradient on neither side, such as those of a frozen layer below
    all that can be trained, count in the forward pass alone. Attention is counted as its products.
    """
    trained = [*groups, *new_groups]
    flags = [(p, p.requires_grad) for group in trained for p in group.params.values()]
    try:
        forward, root = _traced(loss, trained)
        order = list(_leaves_first(root))
        inside = _taken_inside(order, trained)  # their gradients were computed in the forward pass
        own = {name: forward - _traced(loss, trained, without=name)[0] for name in inside}
        return _read(order, forward, own, groups, new_groups)
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _traced(loss: Callable[[], Tensor], groups: Sequence[ParameterGroup], without: str = "") -> tuple[int, Node]:
    """(operations of the forward pass, the loss's node) where all groups but one are trained."""
    for group in groups:
        for p in group.params.values():
            p.requires_grad_(p.is_floating_point() and group.name != without)
    with torch.enable_grad(), reference_implementation(), sdpa_kernel(SDPBackend.MATH):
        with Products() as counter:
            root = loss().grad_fn
        return counter.total, root


class Products(TorchDispatchMode):
    """Counts operations by the formulas of torch's FLOP counter, without its hooks on modules: these do not go with
    functions that take a gradient inside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def _taken_inside(order: Sequence[Node], groups: Sequence[ParameterGroup]) -> list[str]:
    """Groups whose gradients a function of its own takes already in its forward pass, as the loss by chunks does."""
    owners = {id(p): group.name for group in groups for p in group.params.values()}
    found = [
        owners.get(id(getattr(child, "variable", None)))
        for node in order
        if isinstance(node, BackwardCFunction)
        for child, _ in node.next_functions
    ]
    return [name for name in dict.fromkeys(found) if name is not None]


def probing_logits(model: nn.Module, number: int) -> Tensor:
    """Returns what a model gives for one short made-up row, whatever the `number` of the batch."""
    given: Any = model(**dummy_inputs(model))
    return given if isinstance(given, Tensor) else next(given[key] for key in ROOT[1:] if key in given)


def probing_loss(model: nn.Module) -> Tensor:
    """Returns a number that everything in `model` has a share in, on one short made-up row (see `dummy_inputs`)."""
    given: Any = model(**dummy_inputs(model))
    if isinstance(given, Tensor):
        return given.float().sum()
    found = [given[key] for key in ROOT if key in given][:1]
    return sum((t.float().sum() for t in found or given.values() if isinstance(t, Tensor)), torch.zeros(()))


def _read(
    order: Sequence[Node],
    forward: int,
    inside: Mapping[str, int],
    groups: Sequence[ParameterGroup],
    new_groups: Sequence[ParameterGroup],
) -> BackwardCosts:
    owners = {id(p): group.name for group in (*groups, *new_groups) for p in group.params.values()}
    first = _first_uses(order, owners)
    names = sorted(first, key=lambda name: -first[name])
    bits = {name: 1 << i for i, name in enumerate(names)}
    behind: dict[Node, int] = {}
    gradients: Counter[int] = Counter()
    for node in order:
        below = [behind[child] if child is not None else 0 for child, _ in node.next_functions]
        variable = getattr(node, "variable", None)
        behind[node] = bits.get(owners.get(id(variable), ""), 0) if variable is not None else _joined(below)
        for index, each in enumerate(below):
            if each and (cost := _cost(node, index)):
                gradients[each] += cost
    for name, cost in inside.items():
        gradients[bits[name]] += cost
    forced = _joined(bits[group.name] for group in new_groups if group.name in bits)
    return BackwardCosts(forward - sum(inside.values()), tuple(names), dict(gradients), forced)


def _joined(found: Iterable[int]) -> int:
    bits = 0
    for each in found:
        bits |= each
    return bits


def _leaves_first(root: Node) -> Iterator[Node]:
    """Every node of the graph, behind all that it leads to."""
    seen, stack = set(), [(root, False)] if root is not None else []
    while stack:
        node, done = stack.pop()
        if done:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in seen]


def _first_uses(order: Sequence[Node], owners: Mapping[int, str]) -> dict[str, int]:
    """When the forward pass first used each group: by autograd's own count of its nodes."""
    first: dict[str, int] = {}
    for node in order:
        for child, _ in node.next_functions:
            name = owners.get(id(getattr(child, "variable", None)))
            if name is not None:
                first[name] = min(first.get(name, node._sequence_nr()), node._sequence_nr())
    return first


def _cost(node: Node, index: int) -> int:
    """Operations of the gradient of a node's input: those of the product itself, in another order."""
    name, inputs = node.name(), node.next_functions
    out = _shape(node, 0)
    if name.startswith(("MmBackward", "BmmBackward")):
        return 2 * prod(out) * _inner(inputs, 0, 1)
    if name.startswith(("AddmmBackward", "BaddbmmBackward")):
        return 2 * prod(out) * _inner(inputs, 1, 2) if index else 0
    if name.startswith("ConvolutionBackward"):
        return _convolution(node, out) if index < 2 else 0
    return 0


def _inner(inputs: Any, left: int, right: int) -> int:
    """The length of the axis that a product sums over, of whichever of its factors has a gradient."""
    if inputs[left][0] is not None:
        return _shape(*inputs[left])[-1]
    return _shape(*inputs[right])[-2]


def _convolution(node: Node, out: Sequence[int]) -> int:
    weight = node._saved_weight.shape  # [out, in / groups, *kernel], or [in, out / groups, *kernel] transposed
    if node._saved_transposed:
        entering = node._saved_input.shape
        return 2 * entering[0] * prod(entering[2:]) * prod(weight)
    return 2 * out[0] * prod(out[2:]) * prod(weight)


def _shape(node: Node, index: int) -> Sequence[int]:
    variable = getattr(node, "variable", None)
    return variable.shape if variable is not None else node._input_metadata[index].shape

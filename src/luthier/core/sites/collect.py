"""The calibration pass: it measures every requested statistic in one stream over the data.

What a statistic keeps is its own business (`core/contracts/statistic.py`). This module runs the model, hooks the places
and says which tokens count: padding never does, and prompts do not where only answers are wanted.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core.contracts.site import Site
from luthier.core.contracts.statistic import Statistic, joined
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.structure import block_lists, decoder_path, raw_parameter

Measured = dict[str, dict[str, Tensor]]
"""`{path: {name: tensor}}`: of a site by its path, of the state that enters block i of a stack by `<stack>.<i>`,
and of the one that leaves the last block by the index that follows."""


def collect(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    sites: Sequence[Site],
    statistics: Sequence[Statistic],
    *,
    answers: bool = False,
) -> Measured:
    """Measures every statistic at its sites, over `batches` of the model's arguments, in one pass.

    Padding (`attention_mask` 0) does not count; with `answers`, prompts (`labels` -100) do not either. Behind an
    encoder, a decoder counts the tokens of its labels. Tokens that a router has sent to an expert all count. The
    model is in evaluation mode meanwhile and is left as it was. Equal inputs are measured once and shared. The pass
    ends early once every statistic is done.

    Pass the result to `attach(stats=…)`. Raises `LuthierError` for a place that no token reached, for gradients of
    quantised weights or without labels, and for `answers` of rows without a prompt.
    """
    wanted = joined(list(statistics))
    chosen = {reads: [each for each in wanted if each.reads == reads] for reads in READERS}
    pass_ = _Pass(decoder_path(model), answers)
    options = _minimal_arguments(model, sites, bool(chosen["gradients"]))
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        for reads, read in READERS.items():
            if chosen[reads]:
                read(model, sites, chosen[reads], pass_, stack)
        for batch in batches:
            pass_.begin(batch)
            if chosen["gradients"]:
                _backward(model, batch)
            else:
                model(**{key: value for key, value in batch.items() if key != "labels" or pass_.decoder}, **options)
            if pass_.done():
                break
    return pass_.results()


@dataclass
class _Place:
    """One statistic at one place, on the way."""

    statistic: Statistic
    held: Any
    seen: bool = False

    def see(self, x: Tensor, mask: Tensor | None) -> None:
        if not self.done() and x.numel() and (mask is None or mask.any()):
            self.held, self.seen = self.statistic.update(self.held, x.detach(), mask), True

    def done(self) -> bool:
        return self.seen and self.statistic.done(self.held)


@dataclass
class _Pass:
    """What the pass has found, what the present batch says of its tokens, and who has read which input."""

    decoder: str | None
    answers: bool
    places: dict[tuple[str, str], list[_Place]] = field(default_factory=dict)
    """By what is read and the path."""
    leaders: dict[str, str] = field(default_factory=dict)
    """Of a site, the first one that read the very same tensor; only that one is measured."""
    read: list[tuple[weakref.ref, str]] = field(default_factory=list)
    tokens: Tensor | None = None
    decoded: Tensor | None = None

    def add(self, reads: str, path: str, wanted: Sequence[Statistic]) -> None:
        """A place to be measured."""
        self.places[reads, path] = [_Place(each, each.begin()) for each in wanted]

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Reads the masks of a batch."""
        mask, labels = batch.get("attention_mask"), batch.get("labels")
        answer = labels != -100 if labels is not None and labels.dim() == 2 else None
        self.read, self.decoded = [], answer
        self.tokens = None if mask is None else mask.bool()
        if self.answers and self.decoder is None:
            if answer is None or answer.shape != batch["input_ids"].shape:
                raise LuthierError("only answers were to be measured, but these rows have no prompt and answer.")
            self.tokens = answer if self.tokens is None else answer & self.tokens

    def mask(self, path: str, x: Tensor) -> Tensor | None:
        """Returns which tokens of x [..., d] count; None where all do."""
        behind = self.decoder is not None and f"{path}.".startswith(f"{self.decoder}.")
        mask = self.decoded if behind else self.tokens
        if mask is None or mask.shape == x.shape[:-1]:
            return mask
        return mask.flatten() if x.dim() == 2 and len(x) == mask.numel() else None

    def leads(self, path: str, x: Tensor) -> bool:
        """Returns whether `path` is the first to read x: queries, keys and values read one tensor."""
        if path not in self.leaders:
            self.leaders[path] = next((first for seen, first in self.read if seen() is x), path)
            self.read.append((weakref.ref(x), path))
        return self.leaders[path] == path

    def see(self, reads: str, path: str, x: Tensor, mask: Tensor | None) -> None:
        """Shows x to the statistics of a place."""
        for place in self.places[reads, path]:
            place.see(x, mask)

    def leader(self, reads: str, path: str) -> tuple[str, str]:
        """Returns the place that was measured instead of this one, if it was another."""
        return reads, self.leaders.get(path, path) if reads == "inputs" else path

    def done(self) -> bool:
        """Whether every statistic has seen enough."""
        led = {self.leader(*key) for key in self.places}
        return all(place.done() for key in led for place in self.places[key])

    def results(self) -> Measured:
        """Returns what was found; followers get what their leaders have."""
        led = {key: _results(key[1], self.places[key]) for key in {self.leader(*key) for key in self.places}}
        found: Measured = {}
        for reads, path in self.places:
            found.setdefault(path, {}).update(led[self.leader(reads, path)])
        return found


def _results(path: str, places: list[_Place]) -> dict[str, Tensor]:
    if not all(place.seen for place in places):
        raise LuthierError(f"no token of the calibration data reached {path}; take more rows, or leave it out (where).")
    return {key: tensor for place in places for key, tensor in place.statistic.result(place.held).items()}


def _minimal_arguments(model: nn.Module, sites: Sequence[Site], gradients: bool) -> dict[str, Any]:
    """Arguments that spare the pass what nobody reads: the cache, and the head at all tokens but the last."""
    taken = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
    headless = not gradients and all(site.layer is not None for site in sites)
    return {key: value for key, value in options.items() if key in taken and (headless or key == "use_cache")}


def _inputs(model: nn.Module, sites: Sequence[Site], wanted: list[Statistic], pass_: _Pass, stack: ExitStack) -> None:
    """Reads what enters the modules of the sites."""
    for path in dict.fromkeys(site.module for site in sites):
        pass_.add("inputs", path, wanted)

        def read(module: nn.Module, args: tuple, kwargs: dict, path: str = path) -> None:
            x = _first(args, kwargs)
            if pass_.leads(path, x):
                pass_.see("inputs", path, x, pass_.mask(path, x))

        handle = model.get_submodule(path).register_forward_pre_hook(read, with_kwargs=True)
        stack.callback(handle.remove)


def _states(model: nn.Module, sites: Sequence[Site], wanted: list[Statistic], pass_: _Pass, stack: ExitStack) -> None:
    """Reads the hidden states between the blocks that hold a site."""
    for path, blocks in block_lists(model).items():
        if not any(site.path.startswith(f"{path}.") for site in sites):
            continue
        keys = [f"{path}.{index}" for index in range(len(blocks) + 1)]
        for key in keys:
            pass_.add("states", key, wanted)

        def enters(module: nn.Module, args: tuple, kwargs: dict, *, key: str) -> None:
            x = _first(args, kwargs)
            pass_.see("states", key, x, pass_.mask(key, x))

        def leaves(module: nn.Module, args: tuple, output: Any, *, key: str = keys[-1]) -> None:
            x = output if isinstance(output, Tensor) else output[0]
            pass_.see("states", key, x, pass_.mask(key, x))

        for key, block in zip(keys[:-1], blocks, strict=True):
            hook = functools.partial(enters, key=key)
            stack.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(leaves).remove)


def _first(args: tuple, kwargs: dict) -> Tensor:
    """The activation that a module is called with, however it is passed."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _gradients(
    model: nn.Module, sites: Sequence[Site], wanted: list[Statistic], pass_: _Pass, stack: ExitStack
) -> None:
    """Reads each weight's gradient as soon as the backward pass has it, and frees it."""
    flags = {p: p.requires_grad for p in model.parameters()}
    for parameter in flags:
        parameter.requires_grad_(False)
    stack.callback(lambda: [p.requires_grad_(flag) for p, flag in flags.items()])
    for site in sites:
        module, weight = model.get_submodule(site.module), raw_parameter(model, _weight(site))
        if not weight.is_floating_point():
            raise LuthierError(f"{site.path} is quantised and has no gradient. Load the base without quantize.")
        pass_.add("gradients", site.path, wanted)
        flipped = isinstance(module, Conv1D) or site.transposed

        def read(parameter: nn.Parameter, path: str = site.path, flipped: bool = flipped) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                pass_.see("gradients", path, gradient.mT if flipped else gradient, None)

        weight.requires_grad_(True)
        stack.callback(weight.register_post_accumulate_grad_hook(read).remove)


def _weight(site: Site) -> str:
    """Path of the tensor at a site."""
    return site.path if site.kind == "param" else f"{site.path}.weight"


def _backward(model: nn.Module, batch: Mapping[str, Any]) -> None:
    with torch.enable_grad():
        loss = model(**batch).loss
        if loss is None:
            raise LuthierError("gradients need a loss, and these rows have no labels.")
        loss.backward()


READERS = {"inputs": _inputs, "states": _states, "gradients": _gradients}
"""How each kind of reading finds its places and hooks them."""

"""Selections of sites, and the model that they are chosen from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.core.contracts.site import Site, Sites
from luthier.core.errors import LuthierError
from luthier.core.sites.pictures import language_path
from luthier.core.sites.structure import (
    base_modules,
    block_lists,
    channels,
    features,
    raw_parameter,
    unfolded_features,
    width,
)

if TYPE_CHECKING:
    from luthier.core.sites.probe import Met


@dataclass(frozen=True)
class Layers:
    """A filter on the index of the block."""

    ranges: tuple[tuple[int, int], ...]

    def keep(self, sites: Sites, scope: Scope) -> Sites:
        """The sites inside; negative indices count from the last block. Beside parts that see or hear, the blocks are
        those of the language model, unless none of `sites` is in it."""
        depth = scope.depth
        wanted = {i for a, b in self.ranges for i in range(a % depth, b % depth + 1)}
        spoken = [site for site in sites if scope.speaks(site.path)]
        return Sites(site for site in spoken or sites if site.layer in wanted)


class Scope:
    """A model, read once for a selection."""

    def __init__(self, model: nn.Module, uncalled: bool = False) -> None:
        self.model, self.uncalled = model, uncalled
        self.modules = dict(base_modules(model))
        self.stacks = block_lists(model)
        self.blocks = {
            f"{path}.{index}": (index, block)
            for path, blocks in self.stacks.items()
            for index, block in enumerate(blocks)
        }
        self.language = language_path(model)
        spoken = [blocks for path, blocks in self.stacks.items() if self.speaks(path)]
        if not spoken:
            self.language, spoken = None, list(self.stacks.values())
        self.depth = max((len(blocks) for blocks in spoken), default=0)

    def speaks(self, path: str) -> bool:
        """Whether a path is inside the language model, where the model has parts that see or hear as well."""
        return self.language is None or f"{path}.".startswith(f"{self.language}.")

    def block(self, path: str) -> str | None:
        """Returns the path of the block that holds `path`."""
        parts = path.split(".")
        above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return next((p for p in above if p in self.blocks), None)

    def layer(self, path: str) -> int | None:
        """Index of that block."""
        block = self.block(path)
        return None if block is None else self.blocks[block][0]

    @cached_property
    def named(self) -> Sites:
        """What a bare name can mean: linear layers, embedding tables and experts, in the model's order."""
        sites = []
        for path, module in self.modules.items():
            if sizes := features(module):
                bias = module._parameters.get("bias") is not None
                sites.append(Site(path, "affine", *sizes, self.layer(path), bias))
            elif isinstance(module, nn.Embedding):
                sizes = module.num_embeddings, module.embedding_dim
                sites.append(Site(path, "embedding", *sizes, self.layer(path)))
            elif self.block(path):
                sites += self._experts(path, module)
        return Sites(sites)

    def _experts(self, path: str, module: nn.Module) -> list[Site]:
        flipped = vars(module).get("is_transposed", False)
        return [
            self.parameter(f"{path}.{name}", flipped)
            for name, tensor in module.named_parameters(recurse=False)
            if tensor.dim() == 3
        ]

    def parameter(self, path: str, transposed: bool = False) -> Site:
        """Returns the site of a parameter; its widths are those of its last two axes."""
        shape = tuple(raw_parameter(self.model, path).shape)
        d_out, d_in = (1, 1, *shape)[-2:]
        if transposed:
            d_in, d_out = d_out, d_in
        experts = shape[0] if len(shape) == 3 else None
        maps = math.prod(shape[:-2])
        return Site(path, "param", d_in, d_out, self.layer(path), experts=experts, maps=maps, transposed=transposed)

    def convolution(self, path: str) -> Site | None:
        """Returns the site of a convolution's weight, as a matrix; None for other modules."""
        sizes = unfolded_features(self.modules[path])
        return None if sizes is None else Site(f"{path}.weight", "param", *sizes, self.layer(path), unfolded=True)

    def activation(self, path: str, kind: str) -> Site:
        """Returns the site of what enters (`input`) or leaves (`stream`) a module.

        Its width is what a small pass meets there; where none can be run, that of most linear layers of the block.
        """
        module = self.modules[path]
        if type(module).forward is nn.Module.forward:
            raise LuthierError(f"{path} is a list of modules, which nothing enters or leaves; name those in it.")
        inside = width(self.blocks[block][1]) if (block := self.block(path)) else width(module)
        d_in, d_out = features(module) or (inside, inside)
        size = self._met_width(path, kind) or (d_in if kind == "input" else d_out)
        held = ((name, features(child)) for name, child in module.named_children())
        linear = tuple((name, *sizes) for name, sizes in held if sizes is not None)
        return Site(path, kind, size, size, self.layer(path), inside=linear)  # type: ignore[arg-type]

    @cached_property
    def met(self) -> Met:
        """What a small pass meets; nothing where none can be run."""
        from luthier.core.sites.probe import met

        return met(self.model) or {}

    def _met_width(self, path: str, kind: str) -> int | None:
        """The width of what enters or leaves a module in a small pass; None where it is not called."""
        if path not in self.met:
            return None
        shape, words = (self.met[path][0], "input") if kind == "input" else (self.met[path][1], "output")
        if isinstance(shape, str):
            raise LuthierError(f"the {words} of {path} is not a tensor ({shape}), so no form can edit it; name others.")
        if len(shape) > 3 and not _behind(self.modules[path], shape):
            raise LuthierError(
                f"the {words} of {path} is an image {list(shape)} with its channels ahead, and a form acts on the last "
                "axis. Choose linear layers, or params(…) with a form that takes tensors of any shape, such as full."
            )
        return shape[-1] if shape else None

    def idle(self, path: str) -> bool:
        """Returns whether a small pass does not call the module."""
        return bool(self.met) and path not in self.met and not self.uncalled

    @cached_property
    def passed_over(self) -> set[str]:
        """Linear layers that a small pass does not call, though it calls the module that holds them, and those of which
        it calls none of the type (an expert that gets no token, among others that do, is none of these). With them,
        layers that are linear by their class alone, and do something else."""
        linear = [site for site in self.named if site.kind == "affine"] if self.met and not self.uncalled else []
        seeing = {site.path for site in linear if site.layer is not None and not self.speaks(site.path)}
        if not seeing & set(self.met):  # no picture could be tried, as on the meta device: nothing is known of these
            linear = [site for site in linear if site.path not in seeing]
        called = {site.type for site in linear if site.path in self.met}
        idle = [site for site in linear if site.path not in self.met]
        left = {s.path for s in idle if s.type not in called or s.path.rpartition(".")[0] in self.met}
        return left | {s.path for s in linear if s.path in self.met and not _maps(self.met[s.path], s)}


def _maps(met: tuple[Any, Any], site: Site) -> bool:
    """Whether a layer maps each vector of d_in to one of d_out, as a linear one does (a grouped one does not)."""
    entering, leaving = met
    if isinstance(entering, str) or isinstance(leaving, str):
        return not isinstance(leaving, str)
    return entering[-1:] == (site.d_in,) and leaving == (*entering[:-1], site.d_out)


def _behind(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the channels of an image are its last axis: linear layers and layer norms take that one, convolutions
    the second."""
    last, second = channels(module)
    return shape[-1] in last and shape[1] not in second

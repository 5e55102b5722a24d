"""Selections of sites, and the model that they are chosen from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from luthier.core.contracts.site import Site, Sites
from luthier.core.sites.structure import base_modules, block_lists, features, raw_parameter, width


@dataclass(frozen=True)
class Layers:
    """A filter on the index of the block."""

    ranges: tuple[tuple[int, int], ...]

    def keep(self, sites: Sites, depth: int) -> Sites:
        """The sites inside; negative indices count from the last of `depth` blocks."""
        wanted = {i for a, b in self.ranges for i in range(a % depth, b % depth + 1)}
        return Sites(site for site in sites if site.layer in wanted)


class Scope:
    """A model, read once for a selection."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(base_modules(model))
        self.stacks = block_lists(model)
        self.blocks = {
            f"{path}.{index}": (index, block)
            for path, blocks in self.stacks.items()
            for index, block in enumerate(blocks)
        }
        self.depth = max((len(blocks) for blocks in self.stacks.values()), default=0)

    def block(self, path: str) -> str | None:
        """Path of the block that holds `path`."""
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
        """The site of a parameter; its widths are those of its last two axes."""
        shape = tuple(raw_parameter(self.model, path).shape)
        d_out, d_in = (1, 1, *shape)[-2:]
        if transposed:
            d_in, d_out = d_out, d_in
        experts = shape[0] if len(shape) == 3 else None
        maps = math.prod(shape[:-2])
        return Site(path, "param", d_in, d_out, self.layer(path), experts=experts, maps=maps, transposed=transposed)

    def activation(self, path: str, kind: str) -> Site:
        """The site of what enters (`input`) or leaves (`stream`) a module."""
        module = self.modules[path]
        inside = width(self.blocks[block][1]) if (block := self.block(path)) else width(module)
        d_in, d_out = features(module) or (inside, inside)
        size = d_in if kind == "input" else d_out
        return Site(path, kind, size, size, self.layer(path))  # type: ignore[arg-type]

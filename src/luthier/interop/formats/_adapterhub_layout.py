"""Where AdapterHub's library puts its adapters in the blocks of a base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import block_lists
from luthier.interop.formats._layers import Layer

NAME = "adapter"
"""What an adapter is called in the file, and so in the library."""
Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors by their names in the library, and the configuration of the method."""


@dataclass(frozen=True)
class Layout:
    """The places of one block, by their names inside it."""

    attention: Mapping[str, str]
    """The layers of queries, keys and values, {q, k or v: name}; one name for all where they are fused."""
    intermediate: str
    """What `intermediate_lora` adapts."""
    output: str
    """What `output_lora` adapts."""
    behind_attention: Mapping[str, str]
    """The module of adapters that holds a bottleneck of `mh_adapter`, by what it stands behind."""
    behind_mlp: Mapping[str, str]
    """The same of `output_adapter`."""
    on_stream: str = ""
    """The module that holds a bottleneck on the stream (`original_ln_before`); blocks that norm their sum have none."""

    @property
    def fused(self) -> bool:
        """Whether one layer gives queries, keys and values."""
        return len(set(self.attention.values())) == 1


def _normed_first(attention: Mapping[str, str], inner: str, outer: str, ends: tuple[str, str], holder: str) -> Layout:
    """Blocks that norm their inputs: a bottleneck may stand behind the last layer, the module around it, the block."""
    last, down = ends
    return Layout(
        attention,
        inner,
        outer,
        {last: "attention_adapters", holder: "attention_adapters"},
        {down: "output_adapters", "mlp": "output_adapters"},
        "output_adapters",
    )


LLAMA = _normed_first(
    {part: f"self_attn.{part}_proj" for part in "qkv"},
    *("mlp.down_proj", "mlp.up_proj"),
    ("self_attn.o_proj", "mlp.down_proj"),
    "self_attn",
)
BERT = Layout(
    {part[0]: f"attention.self.{part}" for part in ("query", "key", "value")},
    "intermediate.dense",
    "output.dense",
    {"attention.output.dense": "attention.output"},
    {"output.dense": "output"},
)
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("llama", "mistral"), LLAMA),
    **dict.fromkeys(("bert", "roberta"), BERT),
    "gpt2": _normed_first(
        dict.fromkeys("qkv", "attn.c_attn"), "mlp.c_fc", "mlp.c_proj", ("attn.c_proj", "mlp.c_proj"), "attn"
    ),
}
"""By the `model_type` of transformers, where adapters 1.3 was run. A Llama's inner and outer layer are its own."""


def layout_of(model: nn.Module) -> Layout:
    """The layout of a base; raises `LuthierError` for one on which the library was not run."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in LAYOUTS:
        raise LuthierError(
            f"{type(model).__name__} ({kind}) is none of the models on which AdapterHub's adapters was run: models of "
            f"type {', '.join(LAYOUTS)}. Export it merged (--to merged)."
        )
    return LAYOUTS[kind]


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer in its block."""

    layer: Layer
    block: str
    number: int
    inside: str
    """Its name inside the block; nothing for the block itself."""


def placed_in(model: nn.Module, layer: Layer) -> Placed:
    """Where a layer stands; raises `LuthierError` for one outside of the blocks."""
    for blocks in block_lists(model):
        match = re.fullmatch(rf"({re.escape(blocks)}\.(\d+))(?:\.(.+))?", layer.path)
        if match is not None:
            return Placed(layer, match[1], int(match[2]), match[3] or "")
    raise LuthierError(
        f"{layer.path} lies outside of the blocks, where AdapterHub's adapters puts nothing; export it merged instead "
        "(--to merged)."
    )


def blocks_of(model: nn.Module, placed: Sequence[Placed]) -> tuple[dict[str, dict[str, Layer]], list[int]]:
    """Returns ({block: {name inside it: layer}}, the numbers of the blocks that have nothing)."""
    blocks: dict[str, dict[str, Layer]] = {}
    for each in placed:
        blocks.setdefault(each.block, {})[each.inside] = each.layer
    count = len(block_lists(model)[placed[0].block.rpartition(".")[0]])
    return blocks, [number for number in range(count) if number not in {each.number for each in placed}]

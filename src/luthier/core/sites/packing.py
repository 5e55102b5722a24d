"""Packed batches: the blocks of a model compute the real tokens of a batch as one stream, without its padding.

To everything but the blocks a batch is what it always was, padded [rows, width]: embeddings, positions, pooling, heads
and losses need no case of their own. A block that is given a mask of transformers' attention interface gets the tokens
of all rows, [1, tokens], and its output is put back where the tokens were; every other block (a recurrent one, say)
runs padded. Attention takes one row after the other with the row's own mask, so that no row sees another, and no mask
of all tokens exists; FlashAttention takes all rows at once by their lengths.

With `shared`, rows that answer one prompt (`sharing.py`) have its tokens in the stream once: what left a block there is
put back in all of these rows, and the attention of each sees its keys and values.

What a pass needs travels with the mask that the model hands to its blocks, so a recomputation in the backward pass,
in whatever thread, finds it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from luthier.core.sites.attention import Attention, attention_configs, attention_named
from luthier.core.sites.caches import cache_in
from luthier.core.sites.outputs import leading, led
from luthier.core.sites.sharing import Shared, shared_in
from luthier.core.sites.structure import block_lists, unwrapped

PACKED = "luthier_packed_"
"""Starts the names of the attentions that know packed batches."""
_now: ContextVar[Packing | None] = ContextVar("packing", default=None)
"""How the batch of the running pass is packed."""
_row: ContextVar[int | None] = ContextVar("row", default=None)
"""The row whose attention is running."""


class Packing:
    """Where the real tokens of a padded batch are, and the way there and back."""

    def __init__(self, width: int, lengths: list[int], places: Tensor, shared: Shared | None = None) -> None:
        """`places` [tokens] are those of the stream's tokens among rows * width, `lengths` how many a row has there."""
        self.width, self.lengths, self.places, self.shared = width, lengths, places, shared
        self.blocks = 0
        """Blocks that were given packed tokens."""
        self._last: tuple[Tensor, int, Tensor] | None = None
        """What the last block returned: as it was put back, with its version counter, and packed."""
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def tokens(self) -> int:
        """The number of tokens in the stream."""
        return len(self.places)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    def holds(self, x: Any) -> bool:
        """Returns whether an activation holds the tokens packed, [1, tokens, ...]."""
        return isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == 1 and x.shape[1] == self.tokens

    def pack(self, x: Tensor) -> Tensor:
        """Takes the real tokens of x [rows or 1, width, ...]; returns [1, tokens, ...]."""
        if self._last is not None and x is self._last[0] and x._version == self._last[1]:
            return self._last[2]
        if len(x) == 1:
            return x.index_select(1, self.places % self.width)
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """Puts the tokens of x [1, tokens, ...] back; returns [rows, width, ...], zero where there is padding."""
        blank = x.new_zeros(self.rows * self.width, *x.shape[2:])
        places, tokens = (self.places, x[0]) if self.shared is None else self.shared.spread(x[0])
        return blank.index_copy(0, places, tokens).view(self.rows, self.width, *x.shape[2:])

    def of_rows(self, rows: list[int]) -> Packing:
        """Returns how the tokens of some of the rows are packed by themselves."""
        assert self.shared is None, "rows of several adapters share no prompt"
        lengths = [self.lengths[row] for row in rows]
        places = [torch.arange(length) + row * self.width for row, length in enumerate(lengths)]
        return Packing(self.width, lengths, torch.cat(places).to(self.places.device))

    def by_row(self, x: Tensor, seen: bool) -> list[Tensor]:
        """Divides x [1, heads, tokens, ...] into rows; with `seen`, a row has the prompt that it shares as well."""
        parts = list(x.split(self.lengths, 2))
        return parts if self.shared is None or not seen else self.shared.with_prompts(parts)

    def returned(self, x: Tensor) -> Tensor:
        """Unpacks a block's output, and remembers it for the next block."""
        padded = self.unpack(x)
        self._last = None if padded.is_inference() else (padded, padded._version, x)  # those count no versions
        return padded

    def argument(self, value: Any) -> Any:
        """Returns an argument of a block with its tokens packed; what does not go by the token stays as it is."""
        if isinstance(value, RowMasks) or not isinstance(value, Tensor | tuple | list | dict):
            return value
        if isinstance(value, dict):
            return {key: self.argument(each) for key, each in value.items()}
        if not isinstance(value, Tensor):
            return type(value)(map(self._shared, value)) if type(value) in (tuple, list) else value
        by_token = value.dim() > 1 and value.shape[0] in (1, self.rows) and value.shape[1] == self.width
        return self.pack(value) if by_token else value

    def _shared(self, value: Any) -> Any:
        """The same of what all blocks are given, as sines and cosines of positions: packed once."""
        if not isinstance(value, Tensor) or value.requires_grad:
            return self.argument(value)
        if id(value) not in self._known:
            self._known[id(value)] = value, self.argument(value)
        return self._known[id(value)][1]


def packing_of(mask: Any, batch: Mapping[str, Any] | None = None) -> Packing | None:
    """Returns how a batch with this padding mask [rows, width] is packed; None where it has one row or no padding, or
    padding elsewhere than behind its rows. Prompts that rows of `batch` have in common are computed once."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or len(mask) < 2 or torch.compiler.is_compiling():
        return None
    real, width = mask.bool(), mask.shape[1]
    lengths: list[int] = real.sum(1).tolist()
    shared = None if batch is None or min(lengths) == 0 else shared_in(batch, lengths)
    if min(lengths) == 0 or (shared is None and sum(lengths) in (width, len(mask) * width)):
        return None
    columns = torch.arange(width, device=mask.device)
    if not bool((real == (columns < real.sum(1, keepdim=True))).all()):
        return None
    if shared is None:
        return Packing(width, lengths, real.flatten().nonzero()[:, 0])
    return Packing(width, shared.lengths, shared.places, shared)


def packing_now() -> Packing | None:
    """Returns how the batch of the running pass is packed; None where it is not, as in a compiled graph."""
    return None if torch.compiler.is_compiling() else _now.get()


def row_now() -> int | None:
    """Returns the row whose attention is running, where rows are taken one by one."""
    return None if torch.compiler.is_compiling() else _row.get()


class RowMasks(Tensor):
    """Stands for the attention mask of a packed batch: makes the mask of each row when an attention asks for it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    packing: Packing
    like: Attention
    asked: dict[str, Any]
    masks: dict[int, Tensor | None]

    @classmethod
    def of(cls, packing: Packing, like: Attention, asked: dict[str, Any]) -> RowMasks:
        """Of transformers' mask function `like` and what the model asked it for."""
        made = torch.empty(0).as_subclass(cls)
        made.packing, made.like, made.asked, made.masks = packing, like, asked, {}
        return made

    def mask(self, row: int) -> Tensor | None:
        """Returns the mask of a row alone, which has no padding; of its own tokens, where it shares the prompt."""
        if row not in self.masks:
            ahead = 0 if self.packing.shared is None else self.packing.shared.ahead[row]
            length, rule = ahead + self.packing.lengths[row], self.asked["mask_function"]
            own = {"batch_size": 1, "q_length": length, "kv_length": length, "attention_mask": None}
            own |= {"allow_is_causal_skip": False} if ahead else {}
            shifted = {"mask_function": lambda b, h, q, k: rule(b + row, h, q, k)}
            found = self.like(**self.asked | own | shifted)
            self.masks[row] = found if found is None else found[..., ahead:, :]
        return self.masks[row]


def _mask_function(like: str) -> Attention:
    """transformers' mask function of that name, which tells rows apart where the running pass packs them."""

    def masks(**asked):
        original, packing = ALL_MASK_ATTENTION_FUNCTIONS[like], _now.get()
        padding = asked.get("attention_mask")
        if packing is None or padding is None or padding.shape != (packing.rows, packing.width):
            return original(**asked)
        square = asked.get("q_length") == asked.get("kv_length") == packing.width and not asked.get("q_offset")
        return RowMasks.of(packing, original, asked) if square else original(**asked)

    return masks


def _attention(name: str) -> Attention:
    """The attention of that name, row by row where tokens are packed."""

    def attend(module, query, key, value, attention_mask, *args, **kwargs):
        inner = attention_named(name, module)
        if not isinstance(attention_mask, RowMasks):
            return inner(module, query, key, value, attention_mask, *args, **kwargs)
        if "flash" in name:
            return inner(module, query, key, value, None, *args, **kwargs | _ends(attention_mask.packing))
        packing, found = attention_mask.packing, []
        for row, parts in enumerate(zip(*map(packing.by_row, (query, key, value), (False, True, True)), strict=True)):
            token = _row.set(row)
            try:
                found.append(inner(module, *parts, attention_mask.mask(row), *args, **kwargs)[0])
            finally:
                _row.reset(token)
        return torch.cat(found, 1), None

    return attend


def _ends(packing: Packing) -> dict[str, Any]:
    """The lengths of the rows as transformers' FlashAttention takes them."""
    ends = torch.tensor([0, *packing.lengths]).cumsum(0).to(packing.places.device, torch.int32)
    longest = max(packing.lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def packed_name(name: str) -> str:
    """Returns the name of the attention that knows packed batches and is else the one of that name."""
    made = PACKED + name
    if made not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(made, _attention(name))
        AttentionMaskInterface.register(made, _mask_function(name))
    return made


@contextmanager
def packed(model: nn.Module, shared: bool = False) -> Iterator[None]:
    """While the context lasts, passes of this model over padded rows compute no padding; results are the same to
    rounding. No pass keeps keys and values, unless it is given a cache. With `shared`, what is before the labels of
    rows next to each other is computed once where it is the same; it is for causal models (`shares_prompts`)."""
    inner = unwrapped(model)
    assert isinstance(inner, PreTrainedModel)
    configs = attention_configs(inner)
    cached = [(config, config.use_cache) for config in configs if "use_cache" in vars(config)]
    blocks = [block for stack in block_lists(inner).values() for block in stack]
    hooks = [
        inner.register_forward_pre_hook(partial(_begin, shared), with_kwargs=True),
        inner.register_forward_hook(_end, always_call=True),
        *(block.register_forward_pre_hook(_enter, with_kwargs=True) for block in blocks),
        *(block.register_forward_hook(_leave, with_kwargs=True) for block in blocks),
    ]
    try:
        for config in configs:
            if (name := config._attn_implementation) in ALL_MASK_ATTENTION_FUNCTIONS:
                config._attn_implementation = packed_name(name)
        for config, _ in cached:
            config.use_cache = False
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for config in configs:
            if str(name := config._attn_implementation).startswith(PACKED):
                config._attn_implementation = name[len(PACKED) :]
        for config, before in cached:
            config.use_cache = before


def _begin(shared: bool, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    keeps = kwargs.get("use_cache") or cache_in(kwargs) is not None or kwargs.get("output_attentions")
    two = getattr(model.config, "is_encoder_decoder", False)  # whose decoder has rows of other lengths
    shares = shared and not args and not any("flash" in str(c._attn_implementation) for c in attention_configs(model))
    _now.set(None if keeps or two else packing_of(kwargs.get("attention_mask"), kwargs if shares else None))


def _end(model: nn.Module, args: tuple, output: Any) -> None:
    _now.set(None)


def _enter(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    masks = _masks(args, kwargs)
    if masks is None:
        return None
    masks.packing.blocks += 1
    argument = masks.packing.argument
    return tuple(map(argument, args)), {key: argument(value) for key, value in kwargs.items()}


def _leave(block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    masks = _masks(args, kwargs)
    if masks is None:
        return None
    return led(output, masks.packing.returned(leading(output)))


def _masks(args: tuple, kwargs: dict[str, Any]) -> RowMasks | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, RowMasks)), None)

"""How a model turns its keys by their positions, measured on the model: which layers do, and by what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.site import Site
from luthier.core.guard import is_full
from luthier.core.sites.caches import cache_in
from luthier.core.sites.inputs import dummy_inputs
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.structure import rope_kinds

Turn = Callable[[Tensor], Tensor]
FIXED = ("default", "linear", "llama3", "yarn")
"""Kinds of rotation whose angles do not depend on how long a text is."""
CLOSE, ROUNDED = 1e-3, 6e-2
"""Largest difference of what positions do not change, relative to its largest number, that rounding explains: in single
or double precision, and in half."""


def turns(model: Any, sites: Sequence[Site], count: int) -> list[Turn] | str:
    """Returns, for each attention, what turns its keys by so many positions; in words why there is none."""
    kind, paths = type(model).__name__, [site.path for site in sites]
    if not _fixed(model):
        return f"this base ({kind}) has no rotary positions of one kind ({', '.join(FIXED)})"
    with eval_mode(model), _given(model, paths) as given:
        try:
            passes = [_pass(model, start) for start in (0, abs(count))]
        except Exception as error:  # whatever a model says to positions that it is told
            if is_full(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            return f"this base ({kind}) does not run on positions of its own ({type(error).__name__})"
    (here, there), (keys, others) = [out[0] for out in passes], [_keys(out, sites) for out in passes]
    held, moved = ([key for key in each if key is not None] for each in (keys, others))
    if not keys:
        return f"this base ({kind}) keeps no keys and values of its layers for the tokens behind them"
    if not len(paths) == len(keys) == len(held) == len(moved):
        return (
            f"not all of this base's {len(keys)} layers ({kind}) keep the keys and values of their heads and no other "
            "state"
        )
    close = CLOSE if model.dtype in (torch.float32, torch.float64) else ROUNDED
    if _apart(here, there) > close:
        return f"this base ({kind}) has positions that are not rotary (it answers otherwise where they move)"
    found = []
    for path, key, other in zip(paths, held, moved, strict=True):
        ways = _candidates(model, path, given, count, key.shape[-1])
        fits = [turn for turn in ways if _apart(turn(key, False), other) < close]
        if not fits:
            return f"how {path} turns its keys is not known here"
        found.append(lambda keys, turn=fits[0]: turn(keys, count < 0))
    return found


def window(model: Any) -> int | None:
    """Returns how many tokens the layers with the shortest sight see; None where all see every one."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    told = [
        getattr(config, key, None)
        for key, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention"))
        if kind in kinds
    ]
    return min((each for each in told if isinstance(each, int)), default=None)


def _fixed(model: Any) -> bool:
    """Whether every angle of a base is that of its position, or none is told."""
    return all(kind in FIXED for kind in rope_kinds(model.config))


Given = dict[str, tuple[nn.Module, tuple[Any, ...]]]


@contextmanager
def _given(model: nn.Module, paths: Sequence[str]) -> Iterator[Given]:
    """{path of an attention: (the module that made its angles, what it was told beside positions)}, as a pass goes."""
    made: list[tuple[Tensor, nn.Module, tuple[Any, ...]]] = []
    found: Given = {}

    def note(module, args, output) -> None:
        if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
            made.append((output[0], module, args[2:]))

    def taken(path: str) -> Callable:
        def take(module, args, kwargs) -> None:
            told = kwargs.get("position_embeddings")
            if isinstance(told, tuple):
                found.update((path, (maker, more)) for cos, maker, more in made if cos is told[0])

        return take

    hooks = [module.register_forward_hook(note) for path, module in model.named_modules() if "rotary" in path]
    hooks += [model.get_submodule(path).register_forward_pre_hook(taken(path), with_kwargs=True) for path in paths]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _pass(model: Any, start: int) -> Any:
    """What a model says to a few tokens that begin at a position."""
    ids = dummy_inputs(model)["input_ids"][:1]
    places = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    return model(input_ids=ids, position_ids=places, use_cache=True)


def _keys(out: Any, sites: Sequence[Site]) -> list[Tensor | None]:
    """The keys of every layer that a pass kept; None where a layer keeps anything beside keys and values of its
    attention's shape: states of another kind, or what both are made from. Empty where it kept no layers."""
    layers = [vars(layer) for layer in getattr(cache_in(out), "layers", ())]
    heads = [(site.d_out, site.d_in) for site in sites] + [(0, 0)] * len(layers)
    plain = [
        "conv_states" not in layer and all(_heads(layer.get(key)) == wanted for key in ("keys", "values"))
        for layer, wanted in zip(layers, heads, strict=False)
    ]
    return [layer["keys"][0] if fits else None for layer, fits in zip(layers, plain, strict=True)]


def _heads(held: Any) -> tuple[int, int] | None:
    """(heads, width of a head) of [1, heads, n, width]; a layer with a window keeps the last tokens alone."""
    return (held.shape[1], held.shape[3]) if isinstance(held, Tensor) and held.dim() == 4 else None


def _candidates(
    model: nn.Module, path: str, given: Given, count: int, head: int
) -> Iterator[Callable[[Tensor, bool], Tensor]]:
    """Ways in which an attention may turn its keys: not at all, all of a head, its first part."""
    yield lambda key, back: key
    turn = vars(sys.modules[type(model.get_submodule(path)).__module__]).get("apply_rotary_pos_emb")
    if turn is None or path not in given:
        return
    maker, more = given[path]
    cos, sin = (each.float() for each in maker(torch.zeros(1, 1, 1), torch.tensor([[abs(count)]]), *more))
    size = (cos.square() + sin.square()).sqrt()  # some scale what they turn
    cos, sin = cos / size, sin / size
    for width in (cos.shape[-1], 2 * cos.shape[-1]):  # GPT-OSS has each angle once, others twice
        if width > head:
            continue

        def by(key: Tensor, back: bool, width: int = width) -> Tensor:
            part = key[None, ..., :width].float()
            own, other = cos.to(key.device), (-sin if back else sin).to(key.device)
            return torch.cat([turn(part, part, own, other)[1][0], key[..., width:]], -1)

        try:
            kept = by(torch.zeros(1, 1, head), False).shape[-1] == head
        except RuntimeError:  # its angles are not those of so many dimensions
            kept = False
        if kept:
            yield by


def _apart(one: Tensor, other: Tensor) -> float:
    size = max(float(other.float().abs().max()), 1e-12)
    return float((one.float() - other.float()).abs().max()) / size

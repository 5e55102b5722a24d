"""Whether the batches of a model can be packed: found out by packing a small one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.numerics.wide import widened
from luthier.core.sites.attention import attention_configs
from luthier.core.sites.outputs import leading
from luthier.core.sites.packing import packed, packing_now
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.structure import block_lists, unwrapped

LENGTHS = (5, 12, 9)
"""Tokens of the rows that are tried."""
PROMPT = 4
"""Tokens of the prompt that they share, where that is tried."""
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""By how much packed and padded may differ, as a share of each token's norm: rounding, by far less than another token
that is seen; other dtypes: `COARSE`."""
COARSE = 0.05
BETWEEN = 2
"""The same for a row whose neighbour in the batch was changed, in units of the dtype's rounding; float32's at least
100 times."""

Outputs = list[Tensor]


def why_not_packed(model: nn.Module) -> str | None:
    """Returns why the batches of a model cannot be packed; None where they can.

    Three rows go through it padded and packed, and once more packed with another first row: each token has to leave
    every block as it does in the padded batch, and the other rows have to stay what they are.
    """
    inner: Any = unwrapped(model)
    if not isinstance(inner, PreTrainedModel):
        return f"{type(inner).__name__} is not a model of transformers"
    if getattr(inner.config, "is_encoder_decoder", False):
        return "its decoder's rows have other lengths than its encoder's"
    if inner.main_input_name != "input_ids":
        return f"its rows are {inner.main_input_name}, not tokens"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch, other = small_batch(inner), small_batch(inner)
    other["input_ids"][1:] = batch["input_ids"][1:]
    told = "a small batch of tokens does not run through it"
    try:
        with eval_mode(inner):
            padded, _ = _outputs(inner, batch)
            told = "its blocks do not take packed tokens"
            with packed(inner):
                return _compared(padded, _outputs(inner, batch), _outputs(inner, other)[0], batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model says to a mask that it has to read
        return f"{told} ({type(error).__name__}: {str(error).splitlines()[0][:120]})"


def shares_prompts(model: nn.Module) -> bool:
    """Whether a model whose batches can be packed may compute the prompt of several rows once: those of a small batch
    leave every block as they do in the padded one."""
    inner: Any = unwrapped(model)
    if any("flash" in str(config._attn_implementation) for config in attention_configs(inner)):
        return False  # all rows at once, by their lengths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = small_batch(inner)
    batch["input_ids"][:, :PROMPT] = batch["input_ids"][0, :PROMPT]
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    batch["labels"][:, :PROMPT] = -100
    try:
        with eval_mode(inner):
            padded, _ = _outputs(inner, batch)
            with packed(inner, shared=True):
                own, blocks = _outputs(inner, batch)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model says to labels, or to queries that are fewer than its keys
        return False
    real = batch["attention_mask"].bool()
    near = [apart(one[real], two[real]) <= CLOSE.get(one.dtype, COARSE) for one, two in zip(padded, own, strict=True)]
    return bool(blocks) and all(near)


def small_batch(model: Any) -> dict[str, Tensor]:
    words = int(getattr(model.config.get_text_config(), "vocab_size", 2))
    device = next(model.parameters()).device
    ids = torch.randint(words // 8, words, (len(LENGTHS), max(LENGTHS))).to(device)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long().to(device)
    return {"input_ids": ids, "attention_mask": mask}


def _compared(padded: Outputs, here: tuple[Outputs, int], changed: Outputs, batch: dict[str, Tensor]) -> str | None:
    """What three passes tell: padded, packed, and packed with another first row."""
    own, blocks = here
    if not blocks:
        return "its attention does not ask transformers' attention interface for its mask"
    real = batch["attention_mask"].bool()
    after = real & (torch.arange(len(real), device=real.device) > 0)[:, None]
    for one, two, three in zip(padded, own, changed, strict=True):
        if apart(one[real], two[real]) > CLOSE.get(one.dtype, COARSE):
            return "its blocks give other numbers for packed tokens than for padded ones"
        if apart(two[after], three[after]) > max(BETWEEN * torch.finfo(two.dtype).eps, 1e-5):
            return "a row of a packed batch would see another row"
    return None


def apart(one: Tensor, two: Tensor) -> float:
    """The largest difference of a token's vector, as a share of its norm."""
    one, two = widened(one), widened(two)
    return float(((one - two).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-30)).max())


def _outputs(model: Any, batch: dict[str, Tensor]) -> tuple[Outputs, int]:
    """What left the blocks, [rows, width, d] each, and how many of them had packed tokens."""
    found: Outputs = []
    count = 0

    def note(block: nn.Module, args: Any, output: Any) -> None:
        nonlocal count
        first = leading(output)
        if isinstance(first, Tensor) and first.shape[:2] == batch["input_ids"].shape:
            found.append(first)
        count = max(count, 0 if (now := packing_now()) is None else now.blocks)

    hooks = [b.register_forward_hook(note) for stack in block_lists(model).values() for b in stack]
    try:
        model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found, count

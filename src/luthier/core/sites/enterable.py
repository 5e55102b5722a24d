"""Whether passes of a model can begin at a block: found out on a small batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.sites.entering import Below, entered
from luthier.core.sites.outputs import leading
from luthier.core.sites.packable import CLOSE, COARSE, apart, small_batch
from luthier.core.sites.probe import eval_mode, run_once
from luthier.core.sites.structure import Attachment, base_modules, block_lists, rope_kinds, unwrapped

WIDE = ("output_router_logits", "output_hidden_states", "output_attentions")
"""Settings of a configuration by which every block gives something beside the states of tokens."""
BY_BATCH = {"dynamic", "longrope"}
"""Kinds of RoPE whose frequencies depend on the longest row of a batch."""
Outputs = list[tuple[int, Any]]
"""The number of each block that was called, in order, and what left it."""


def first_trained(model: nn.Module) -> int:
    """Returns how many blocks of the model's one stack have been run before anything that is trained or attached takes
    part in a pass; 0 for a model with several stacks, or none."""
    stacks = block_lists(model)
    if len(stacks) != 1:
        return 0
    ((path, blocks),) = stacks.items()
    found, outside = len(blocks), []
    for name, module in base_modules(model):
        if _fitted(module):
            index = name.removeprefix(f"{path}.").partition(".")[0]
            if name.startswith(f"{path}.") and index.isdecimal():
                found = min(found, int(index))
            else:
                outside.append(module)
    return found if not found or not outside else min(found, _before(model, blocks, outside))


def _fitted(module: nn.Module) -> bool:
    """Whether a module has parameters of its own that are trained, or adapters."""
    if any(p is not None and p.requires_grad for p in module._parameters.values()):
        return True
    adapters = module._modules.get("adapters")
    return isinstance(adapters, Attachment) and bool(adapters._modules)


def _before(model: nn.Module, blocks: nn.ModuleList, fitted: Sequence[nn.Module]) -> int:
    """How many blocks have been run when the first of these modules is called; 0 if a small pass does not call it."""
    done = 0
    seen: dict[int, int] = {}

    def count(*_: Any) -> None:
        nonlocal done
        done += 1

    def note(module: nn.Module, args: Any) -> None:
        seen.setdefault(id(module), done)

    hooks = [block.register_forward_hook(count) for block in blocks]
    hooks += [each.register_forward_pre_hook(note) for each in fitted]
    try:
        run_once(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model says to inputs made up for it: then nothing is known
        return 0
    finally:
        for hook in hooks:
            hook.remove()
    return min(seen.get(id(each), 0) for each in fitted)


def below(model: nn.Module, first: int) -> Below | str:
    """Returns the blocks below the block `first`, or why no pass can begin there.

    Three rows go through the model twice in training mode, where what leaves those blocks has to be the same, and
    then, in another order, from the block on: each token has to leave every block as it does in a whole pass. Adapters
    are none of its business, and are to be off.
    """
    inner: Any = unwrapped(model)
    stack = next(iter(block_lists(inner).values()))
    if not isinstance(inner, PreTrainedModel) or inner.main_input_name != "input_ids":
        return "its rows are no tokens"
    if reason := _of_config(inner.config):
        return reason
    with torch.random.fork_rng([inner.device] if inner.device.type == "cuda" else []):
        torch.manual_seed(0)
        batch = small_batch(inner)
        try:
            return _tried(inner, stack, first, batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model says to tokens that it has no use for
            return f"a small batch does not run through it ({type(error).__name__}: {str(error).splitlines()[0][:120]})"


def _of_config(config: Any) -> str | None:
    """Why no pass of a model can begin at a block, whatever its weights are."""
    given = config.get_text_config()
    wide = [name for name in WIDE if getattr(given, name, False)]
    ropes = rope_kinds(config) & BY_BATCH
    reasons = {
        f"it skips blocks at random (layerdrop {getattr(given, 'layerdrop', 0)})": getattr(given, "layerdrop", 0),
        f"it also returns what its lower blocks compute ({', '.join(wide)})": wide,
        f"its positions go by the longest row of a batch (RoPE {', '.join(map(str, ropes))})": ropes,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _tried(model: Any, stack: nn.ModuleList, first: int, batch: dict[str, Tensor]) -> Below | str:
    real, last = batch["attention_mask"].bool(), first - 1
    with _training(model):
        once, again = (_outputs(model, stack, batch) for _ in range(2))
    if [number for number, _ in once] != list(range(len(stack))):
        return "its blocks are not run once each, in their order"
    one, two = (leading(each[last][1]) for each in (once, again))
    if not isinstance(one, Tensor) or one.shape[:2] != real.shape or one.requires_grad:
        return "what leaves its blocks is not a vector for each token, from frozen weights"
    if not torch.equal(one[real], two[real]):
        return "its frozen blocks compute something else each time (dropout, or kernels that are not deterministic)"
    found = [_shape(output) for _, output in once[:first]]
    if any(each != found[0] for each in found):
        return "its blocks do not all return the same"
    made = Below(tuple(stack[:first]), len(stack), one.shape[-1], one.dtype, found[0])
    rows = torch.arange(len(real)).flip(0)
    other = {key: value[rows] for key, value in batch.items()}
    with eval_mode(model):
        whole = _outputs(model, stack, other)
        with entered(model, made, _InMemory(one.dtype)) as entry:
            model(**batch)
            begun = _outputs(model, stack, other)
    if entry.begun != 1:
        return "its passes are told more than the tokens of their rows"
    for (_, a), (_, b) in zip(whole[first:], begun[first:], strict=True):
        wanted, own = leading(a)[real[rows]], leading(b)[real[rows]]
        if apart(wanted, own) > CLOSE.get(wanted.dtype, COARSE):
            return "its later blocks read more than what leaves the one before"
    return made


def _shape(output: Any) -> Any:
    """What a block returns, with nothing in it: what is beside its tensor (weights of attention) is seldom read."""
    return (None,) * len(output) if isinstance(output, tuple | list) else None


@contextmanager
def _training(model: nn.Module):
    """The mode of training, except of norms with running statistics, which stay as they are in it."""
    with eval_mode(model), torch.enable_grad():
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        yield


def _outputs(model: Any, stack: nn.ModuleList, batch: dict[str, Tensor]) -> Outputs:
    found: Outputs = []
    hooks = [
        block.register_forward_hook(lambda _, args, output, number=number: found.append((number, output)))
        for number, block in enumerate(stack)
    ]
    try:
        model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _InMemory:
    """Keeps rows in memory, as `entering.Kept`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.held: dict[int, Tensor] = {}

    def place(self, row: Sequence[Tensor]) -> int:
        """A number of the tokens."""
        return hash(tuple(tuple(each.tolist()) for each in row))

    def read(self, place: int, into: Tensor) -> bool:
        """From memory."""
        if place in self.held:
            into.copy_(self.held[place])
        return place in self.held

    def write(self, place: int, found: Tensor) -> None:
        """Into memory."""
        self.held[place] = found.clone()

"""What is timed: a training step, a forward pass, a decoded token, a decoded token of a mixed batch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from bench.speed.contestants import FLOOR, THROUGH, decoded, mixed_lora, mixed_peft, trained
from bench.speed.machine import Size, device, faster_library, seconds
from torch import nn
from transformers import DynamicCache

from luthier.core.adapters.control import RowAssignment
from luthier.kernels.backend import OWN, cpu_backend

PROMPT, TOKENS, ADAPTERS = 64, 8, 8
Work = Callable[[], float]
"""One measurement, in seconds."""


def train_steps(size: Size, dtype: torch.dtype) -> dict[str, Work]:
    """Forward and backward of a batch whose second half is in the loss; some once more through a faster library."""
    builds = trained(size, dtype)
    found = {name: step_of(build(), size) for name, build in builds.items()}
    library = faster_library(dtype)
    if library is None:
        return found
    return found | {f"{name}, {library}": step_of(builds[name](), size, library) for name in THROUGH}


def step_of(model: nn.Module, size: Size, library: str = OWN) -> Work:
    """The training step of one model, its frozen layers through one of the libraries of `lt.cpu_backend`."""
    ids = torch.randint(0, size.vocabulary, (size.batch, size.length), device=device())
    labels = ids.clone()
    labels[:, : size.length // 2] = -100

    def work() -> None:
        with cpu_backend(library):
            model(input_ids=ids, labels=labels).loss.backward()

    def timed() -> float:
        found = seconds(work)
        model.zero_grad(set_to_none=True)
        return found

    return timed


def forwards(size: Size, dtype: torch.dtype) -> dict[str, Work]:
    """A forward pass in evaluation mode."""
    ids = torch.randint(0, size.vocabulary, (size.batch, size.length), device=device())
    return {name: _forward(build().eval(), ids) for name, build in decoded(size, dtype).items()}


def _forward(model: nn.Module, ids: torch.Tensor) -> Work:
    @torch.no_grad()
    def work() -> None:
        model(input_ids=ids, use_cache=False)

    return lambda: seconds(work)


def decodes(size: Size, dtype: torch.dtype) -> dict[str, Work]:
    """One token after a prompt, with the cache."""
    return {name: _decode(build().eval(), size, 1, {}) for name, build in decoded(size, dtype).items()}


def mixed_decodes(size: Size, dtype: torch.dtype) -> dict[str, Work]:
    """One token for each of eight rows, every row with an adapter of its own."""
    names = [f"a{index}" for index in range(ADAPTERS)]
    ours, theirs = mixed_lora(size, dtype, ADAPTERS).eval(), mixed_peft(size, dtype, ADAPTERS).eval()
    plain = decoded(size, dtype)[FLOOR]().eval()
    return {
        FLOOR: _decode(plain, size, ADAPTERS, {}),
        "lora r8": _decode(ours, size, ADAPTERS, {}, lambda: arranged(ours, names)),
        "peft lora r8": _decode(theirs, size, ADAPTERS, {"adapter_names": names}),
    }


@contextmanager
def arranged(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Row i uses the adapter names[i], as the serving engine has it."""
    row_assignment = RowAssignment(model)
    row_assignment.set(names)
    yield
    row_assignment.release()


def _decode(
    model: nn.Module,
    size: Size,
    batch: int,
    extra: Mapping[str, Any],
    within: Callable[[], AbstractContextManager] = nullcontext,
) -> Work:
    ids = torch.randint(0, size.vocabulary, (batch, PROMPT), device=device())

    @torch.no_grad()
    def timed() -> float:
        cache = DynamicCache()
        with within():
            model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
            each = [
                seconds(lambda: model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, **extra))
                for _ in range(TOKENS)
            ]
        return statistics.median(each)

    return timed


def interleaved(works: Mapping[str, Work], rounds: int, tell: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Every work once a round, so that a drift of the machine falls on all; ratios to the floor are a round's own."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            found = work()
            if turn:  # the first round warms up
                times[name].append(found)
        tell()
    return {name: _summary(found, times[FLOOR]) for name, found in times.items()}


def _summary(found: list[float], floor: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(found, floor, strict=True)]
    return {
        "seconds": statistics.median(found),
        "over_base": statistics.median(ratios),
        "low": statistics.quantiles(ratios, n=4)[0] if len(ratios) > 1 else ratios[0],
        "high": statistics.quantiles(ratios, n=4)[2] if len(ratios) > 1 else ratios[0],
    }

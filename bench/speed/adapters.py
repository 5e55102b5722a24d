"""How time and memory grow: with rank, sequence and layers, and with the number of adapters that are loaded."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench.speed.contestants import base, floor
from bench.speed.machine import Size
from bench.speed.memory import measured_model
from bench.speed.passes import step_of

import luthier as lt

ALONG: dict[str, tuple[int, ...]] = {
    "rank": (2, 8, 32, 128),
    "length": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
    "adapters": (1, 4, 16, 64),
}
"""What grows; `adapters` are loaded, and one of them acts."""
LOADED = (1, 4, 16, 64)
TURNS = 5


def growth(size: Size, dtype: torch.dtype) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(what grows, its value, {"seconds", "over_base", "saved_mib"}) of LoRA on all linear layers."""
    small = dataclasses.replace(size, layers=4)
    for along, values in ALONG.items():
        for value in values:
            chosen = dataclasses.replace(small, **{along: value}) if along in vars(small) else small
            own = {"rank": 8, "adapters": 1} | {along: value}
            yield along, value, _pair(chosen, dtype, own["rank"], own["adapters"])


def _pair(size: Size, dtype: torch.dtype, rank: int, adapters: int) -> dict[str, float]:
    frozen, adapted = floor(size, dtype), base(size, dtype)
    for index in range(adapters):
        lt.attach(adapted, lt.LoRA(rank=rank), name=f"a{index}")
        lt.use(adapted, f"a{index}")
    works = [step_of(frozen, size), step_of(adapted, size)]
    times = [[work() for work in works] for _ in range(TURNS + 1)][1:]
    saved = measured_model(adapted, size) - measured_model(frozen, size)
    return {
        "seconds": statistics.median(pair[1] for pair in times),
        "over_base": statistics.median(pair[1] / pair[0] for pair in times),
        "saved_mib": saved,
    }


def loading(size: Size, dtype: torch.dtype) -> dict[int, dict[str, float]]:
    """{adapters loaded: milliseconds to load one more from disk, and to switch from one to another}."""
    found = {}
    with TemporaryDirectory() as scratch:
        folder = lt.save(lt.attach(base(size, dtype), lt.LoRA(rank=8)), Path(scratch) / "adapter")
        model = base(size, dtype)
        for count in range(1, max(LOADED) + 1):
            took = _milliseconds(partial(lt.load, model, folder, name=f"a{count}"))
            lt.use(model, f"a{count}")
            if count in LOADED:
                others = [f"a{1 + turn % count}" for turn in range(9)]
                switches = [_milliseconds(partial(lt.use, model, other)) for other in others]
                found[count] = {"load": took, "switch": statistics.median(switches)}
    return found


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)

"""The machine at hand: its name, its clock, and sizes that fill it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.kernels.backend import OWN, chosen


@dataclass(frozen=True)
class Size:
    """A model and a batch."""

    layers: int = 12
    hidden: int = 768
    intermediate: int = 2048
    heads: int = 12
    vocabulary: int = 8192
    batch: int = 4
    length: int = 256


SMALL = Size()
"""97.5M numbers, 1,024 tokens a step: for CPUs."""
LARGE = Size(layers=16, hidden=2048, intermediate=8192, heads=16, vocabulary=32000, batch=8, length=1024)
"""1.2B numbers, 8,192 tokens a step: busies a data-centre GPU."""
MIDDLE = Size(layers=16, hidden=1024, intermediate=4096, heads=16, vocabulary=32000, batch=4, length=512)
"""For GPUs with less than 40 GB."""


VERSIONS = ("luthier", "torch", "transformers")
"""What a result depends on."""


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fitting_size() -> Size:
    """What fills this machine without exceeding it: some fifteen models are held at a time."""
    if not torch.cuda.is_available():
        return SMALL
    return LARGE if torch.cuda.get_device_properties(0).total_memory > 40e9 else MIDDLE


def about() -> dict[str, Any]:
    """What a result depends on."""
    found: dict[str, Any] = {"cpu": _cpu(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in VERSIONS}
    return found | ({"gpu": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {})


def slug() -> str:
    """The machine's name, fit for a file: `amd-epyc-family-25-model-97`."""
    found = about()
    return re.sub(r"[^a-z0-9]+", "-", str(found.get("gpu", found["cpu"])).lower().replace("(r)", "")).strip("-")


def faster_library(dtype: torch.dtype) -> str | None:
    """The library that `lt.cpu_backend` takes for layers in this format, if it is not torch's own."""
    if dtype != torch.float32 or torch.cuda.is_available():
        return None
    name = chosen()
    return None if name == OWN else name


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = dict(line.partition(":")[::2] for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in named:
        return platform.processor() or platform.machine()
    return f"{named['model name']} (family {named.get('cpu family')}, model {named.get('model')})"


def seconds(work: Callable[[], object]) -> float:
    """Wall time of `work`, by CUDA events on a GPU."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3

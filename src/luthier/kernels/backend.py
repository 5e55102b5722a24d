"""Which library multiplies matrices on a CPU: torch's own choice (MKL) or oneDNN, whichever is faster on the machine.

torch sends float32 linear layers to MKL. On AMD processors MKL runs at about half of what the machine can do, and
oneDNN, which comes with torch too, does not; on Intel's the two are alike. So both are timed once, the choice is
cached, and frozen linear layers go through the faster one while `cpu_backend` lasts. Results are the same to rounding.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from luthier.core.contracts.kernel import on
from luthier.core.errors import LuthierError, near
from luthier.core.files import cache_root

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x Wᵀ + b; x [t, d_in], W [d_out, d_in], b [d_out]."""
AUTO, OWN = "auto", "mkl"
GAIN = 0.9
"""Another library is taken where it needs at most this share of the time."""
TOKENS = 16
"""With fewer, a product is a matter of reading W, and all are alike."""
SAMPLE = (1024, 768, 2048)
"""Tokens, d_in and d_out of the layer that is timed."""


def _convolution(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """A linear layer as the 1 x 1 convolution that it is, which torch gives to oneDNN; nothing is copied."""
    rows = TOKENS if len(x) % TOKENS == 0 else 1
    image = x.view(rows, len(x) // rows, 1, x.shape[1]).permute(0, 3, 1, 2)
    y = functional.conv2d(image, w[:, :, None, None], b)
    return y.permute(0, 2, 3, 1).reshape(len(x), -1)


def _pointwise(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The operator that torch.compile uses for linear layers; it is not a public name, so it may be missing."""
    return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")


PRODUCTS: dict[str, Product] = {OWN: functional.linear, "onednn": _pointwise, "onednn-convolution": _convolution}


@dataclass(frozen=True)
class Timing:
    """What one library needs for the sample, forwards and backwards."""

    seconds: float
    error: float
    """Largest difference to torch's own result, over its largest entry."""


def timings() -> dict[str, Timing]:
    """Returns all libraries that run here, on the sample; takes about half a second."""
    generator = torch.Generator().manual_seed(0)
    tokens, d_in, d_out = SAMPLE
    x, dy, w = (torch.randn(*shape, generator=generator) for shape in ((tokens, d_in), (tokens, d_out), (d_out, d_in)))
    exact = functional.linear(x, w, w[:, 0])
    found = {}
    for name, product in PRODUCTS.items():
        try:
            error = float((product(x, w, w[:, 0].contiguous()) - exact).abs().max() / exact.abs().max())
            seconds = min(_seconds(product, x, dy, w) for _ in range(4))
        except (RuntimeError, AttributeError, NotImplementedError):  # not built in, or not for this processor
            continue
        found[name] = Timing(seconds, error)
    return found


def _seconds(product: Product, x: Tensor, dy: Tensor, w: Tensor) -> float:
    started = time.perf_counter()
    product(x, w, None)
    product(dy, w.mT, None)
    return time.perf_counter() - started


def fastest(found: dict[str, Timing]) -> str:
    """Returns the library to take: torch's own, unless an equal one is clearly faster."""
    exact = {name: timing for name, timing in found.items() if timing.error < 1e-5}
    best = min(exact, key=lambda name: exact[name].seconds)
    return best if exact[best].seconds < GAIN * found[OWN].seconds else OWN


def chosen() -> str:
    """Returns the library that was found to be the fastest on this machine: from the cache, or measured now."""
    file = cache_root() / "cpu.json"
    machine = " ".join(map(str, (_processor(), torch.get_num_threads(), torch.__version__)))
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except Exception:
        known = {}
    if known.get(machine) not in PRODUCTS:
        known = {**known, machine: fastest(timings())}
        _keep(file, known)
    return known[machine]


def _keep(file: Path, known: dict[str, str]) -> None:
    draft = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
        draft.replace(file)
    except OSError:  # a cache that cannot be written: measured again next time
        draft.unlink(missing_ok=True)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [
        line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "cpu family", "model\t"))
    ]
    return " ".join(dict.fromkeys(named)) or platform.processor() or platform.machine()


@contextmanager
def cpu_backend(name: str = AUTO) -> Iterator[str]:
    """Runs frozen float32 linear layers on the CPU through a library, while the context lasts; yields its name.

    `auto` takes the one that is fastest here, `mkl` leaves everything as torch has it. Backward passes belong inside
    the context as well. Raises `LuthierError` for an unknown name.
    """
    if name != AUTO and name not in PRODUCTS:
        raise LuthierError(f"no CPU backend {name!r}{near(name, PRODUCTS)} There are: auto, {', '.join(PRODUCTS)}.")
    name = chosen() if name == AUTO else name
    if name == OWN:
        yield name
        return
    with _Products(PRODUCTS[name]):
        yield name


class _Products(TorchFunctionMode):
    """Calls of `linear` with a frozen weight are answered by another library."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not functional.linear or kwargs or not _serves(*args):
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        return _Linear.apply(x, weight, bias, self.product)


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    return (
        plain
        and frozen
        and type(weight) in (Tensor, torch.nn.Parameter)  # neither sharded nor quantised
        and x.dim() > 1
        and x.numel() >= TOKENS * x.shape[-1]
        and x.is_contiguous()
        and on()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    """x Wᵀ + b with a frozen W, both ways through one library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, product: Product):  # pyright: ignore
        """y [..., d_out]."""
        ctx.save_for_backward(weight)
        ctx.product = product
        return product(x.view(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore
        """dx = dy W."""
        (weight,) = ctx.saved_tensors
        dx = ctx.product(dy.reshape(-1, dy.shape[-1]).contiguous(), weight.mT, None)
        return dx.view(*dy.shape[:-1], -1), None, None, None

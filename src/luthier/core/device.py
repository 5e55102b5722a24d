"""Where models are loaded and computed: the accelerator that torch sees, else the CPU, unless another is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    import torch

AUTO, VARIABLE = "auto", "LUTHIER_DEVICE"
_named: ContextVar[str] = ContextVar("the device that was asked for", default=AUTO)


@contextmanager
def on_device(name: str = AUTO) -> Iterator[None]:
    """Within the context models are loaded onto the device `name`; `auto` leaves it as it is around the context.

    Raises `LuthierError` for a device that is not there.
    """
    if name != AUTO:
        device_of(name)
    before = _named.set(_named.get() if name == AUTO else name)
    try:
        yield
    finally:
        _named.reset(before)


def named() -> str:
    """Returns the device that the context or the environment names; `auto` where neither does."""
    said = _named.get()
    return said if said != AUTO else os.environ.get(VARIABLE) or AUTO


def device_of(name: str | None = None) -> torch.device:
    """Returns the device called `name` (`cpu`, `cuda`, `cuda:1`, `mps`, …), with its number.

    Without a name, or for `auto`, it is the one of the context (`on_device`), then that of the variable LUTHIER_DEVICE
    of the environment, then the accelerator that torch has at present (that of this process, under torchrun), then the
    CPU. Raises `LuthierError` for a device that torch does not have here.
    """
    import torch

    said = ((name, ""), (_named.get(), ""), (os.environ.get(VARIABLE), f" ({VARIABLE})"))
    told, by = next(((each, by) for each, by in said if each and each != AUTO), (None, ""))
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if told is None:
        return torch.device("cpu") if here is None else _numbered(here)
    try:
        device = torch.device(told)
    except RuntimeError as error:
        raise LuthierError(f"{told!r}{by} is not a device; expected {_known(here)}.") from error
    count = torch.accelerator.device_count() if here is not None and here.type == device.type else 0
    if device.type != "cpu" and (device.index or 0) >= count:
        raise LuthierError(
            f"there is no device {told}{by} here (torch {torch.__version__} sees "
            f"{count or 'no'} {device.type} device{'s' * (count != 1)}); expected {_known(here)}. `luthier doctor` "
            "lists what is there."
        )
    return torch.device("cpu") if device.type == "cpu" else _numbered(device)


@contextmanager
def current_kept(wanted: Callable[[], bool]) -> Iterator[None]:
    """Behind the context torch's current accelerator is the one of before, where that is `wanted` then."""
    import torch

    before = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None
    try:
        yield
    finally:
        if before is not None and wanted():
            torch.accelerator.set_device_index(before)


def fast_products(device: torch.device) -> None:
    """Has float32 products on a CUDA device take TF32 from now on: 10 bits of mantissa, several times as fast."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def usual_precision(device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """Returns the dtype that a frozen base is to have on a device: bfloat16 on an accelerator that computes it fast
    itself, float16 on a CUDA device that does not (Turing, Volta), else float32."""
    import torch

    if device.type == "cpu":
        return "float32"
    if device.type == "mps":
        return "bfloat16" if torch.backends.mps.is_macos_or_newer(14, 0) else "float32"
    own = torch.get_device_module(device)
    if own.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def shown(device: torch.device) -> str:
    """Returns the name of a device, with what it is where torch knows that: `cuda:0 (NVIDIA H200)`."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _numbered(device: torch.device) -> torch.device:
    """The device with its number: the current one's, where none was given."""
    import torch

    index = torch.accelerator.current_device_index() if device.index is None else device.index
    return torch.device(device.type, index)


def _known(here: torch.device | None) -> str:
    return "auto or cpu" if here is None else f"auto, cpu, {here.type} or {here.type}:NUMBER"

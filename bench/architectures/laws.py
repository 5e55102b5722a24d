"""What a form must do on a model: start as a no-op, train, come back from disk, merge, and leave no trace."""

from __future__ import annotations

import copy
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import luthier as lt
from luthier.core.contracts.form import Form

FORMS: dict[str, Callable[[], Form]] = {
    "lora": lambda: lt.LoRA(rank=2),
    "wegeft": lambda: lt.WeGeFT(rank=2),
    "loreft": lambda: lt.LoReFT(rank=2),
    "full": lambda: lt.Full(),
}
MERGES = ("lora", "wegeft", "full")
"""Those that a weight can express."""
CLOSE = 2e-4
"""Largest difference of two outputs, relative to the largest output, that rounding explains."""


class Wrong(Exception):
    """A law that does not hold, in words."""


@dataclass
class Verdict:
    """What came of one form on one model."""

    status: str
    """holds | refused | wrong | raw (an error that is not Luthier's)"""
    reason: str = ""
    told: list[str] = field(default_factory=list)
    """What was warned."""


@dataclass
class Subject:
    """A model that runs, and what it does without adapters."""

    model: nn.Module
    inputs: dict[str, Any]
    base: list[Tensor] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.base = outputs(self.model, self.inputs)
        self.reached = _reached(copy.deepcopy(self.model), self.inputs)


def judged(name: str, subject: Subject) -> Verdict:
    """The verdict on a form; the model is left as it was where it holds."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            _hold(name, subject)
            found = Verdict("holds")
        except lt.LuthierError as error:
            found = Verdict("refused", str(error))
        except Wrong as error:
            found = Verdict("wrong", str(error))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = Verdict("raw", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")
    found.told = sorted(
        {str(each.message) for each in heard if "luthier" in each.filename or issubclass(each.category, UserWarning)}
    )
    return found


def _hold(name: str, subject: Subject) -> None:
    model, inputs, base = subject.model, subject.inputs, subject.base
    fresh, kinds = copy.deepcopy(model), _kinds(model)
    lt.attach(model, FORMS[name]())
    _same(base, outputs(model, inputs), "attached at its start, it changes the output")
    move(model)
    moved = outputs(model, inputs)
    if distance(base, moved) < 1e-4:
        raise Wrong("its parameters were moved, and the output is the same")
    _trains(model, inputs, subject.reached)
    moved = outputs(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        lt.save(model, Path(folder) / "adapter")
        lt.load(fresh, Path(folder) / "adapter")
    _same(moved, outputs(fresh, inputs), "loaded on a fresh base, the output differs", 1e-6)
    _merges(name, fresh, inputs, moved)
    lt.detach(model)
    _same(base, outputs(model, inputs), "detached, the output is not the base's", 0.0)
    if _kinds(model) != kinds:
        raise Wrong("detached, classes differ from the base's")


def _kinds(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


def _merges(name: str, model: nn.Module, inputs: dict[str, Any], adapted: list[Tensor]) -> None:
    if name not in MERGES:
        try:
            lt.merge(model)
        except lt.LuthierError:
            return
        raise Wrong("a form that no weight expresses was merged")
    lt.merge(model)
    _same(adapted, outputs(model, inputs), "merged, the output differs")
    lt.unmerge(model)
    _same(adapted, outputs(model, inputs), "unmerged, the output differs", 0.0)


def _trains(model: nn.Module, inputs: dict[str, Any], reached: set[str]) -> None:
    """One step lowers the loss, and what acts where the base's own parameters have a gradient has one too."""
    trained = lt.trainable(model)
    with _called(model) as called:
        before = loss(model, inputs)
    before.backward()
    dead = [key for key, p in trained.items() if p.grad is None or not bool(p.grad.any())]
    silent = sorted({key for key in dead if _place(key) in reached and _holder(model, _place(key)) in called})
    if silent:
        raise Wrong(f"{len(silent)} of {len(trained)} parameters have no gradient, as {silent[0]}")
    if len(dead) == len(trained):
        raise Wrong("nothing has a gradient")
    square = sum(float(p.grad.square().sum()) for p in trained.values() if p.grad is not None)
    start = {key: p.detach().clone() for key, p in trained.items()}
    for part in (1e-2, 1e-3, 1e-4):
        rate = part * abs(float(before)) / square
        with torch.no_grad():
            for key, p in trained.items():
                p.copy_(start[key] if p.grad is None else start[key] - rate * p.grad)
            if float(loss(model, inputs)) < float(before):
                model.zero_grad()
                return
    raise Wrong(f"no step lowers the loss ({float(before):.6g})")


def _place(key: str) -> str:
    """The path of the site of a trained tensor, `<adapter>.<path>.<parameter>`."""
    return key.partition(".")[2].rpartition(".")[0]


def _holder(model: nn.Module, place: str) -> str:
    """The path of the module of a site."""
    return place if place in dict(model.named_modules()) else place.rpartition(".")[0]


@contextmanager
def _called(model: nn.Module) -> Iterator[set[str]]:
    """The modules that a pass calls: an expert that gets no token is none of them."""
    found: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: found.add(path))
        for path, module in model.named_modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _reached(model: nn.Module, inputs: dict[str, Any]) -> set[str]:
    """Modules and parameters of the base that have a gradient when all of it is trained."""
    model.requires_grad_(True)
    loss(model, inputs).backward()
    alive = [path for path, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())]
    owners = {path.rpartition(".")[0] for path in alive}
    matrices = {path.rpartition(".")[0] for path in alive if path.endswith(".weight")}
    return (owners & matrices) | set(alive)


def move(model: nn.Module, size: float = 0.1) -> None:
    """Moves every trained tensor by `size` of a number, or of its own size where it has one."""
    generator = torch.Generator().manual_seed(2)
    for p in lt.trainable(model).values():
        spread = float(p.detach().float().std()) if p.numel() > 1 else 0.0
        noise = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.data += size * (spread if spread > 1e-3 else 1.0) * noise


def outputs(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Every floating tensor that the model returns, its cache aside."""
    torch.manual_seed(0)
    with torch.no_grad():
        return list(_floats(model(**inputs)))


def _floats(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        if found.is_floating_point():
            yield found.detach().clone()
    elif isinstance(found, dict):
        for key, value in found.items():
            if "cache" not in key and "past_key_values" not in key:
                yield from _floats(value)
    elif isinstance(found, tuple | list):
        for value in found:
            yield from _floats(value)


def loss(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The model's own loss where the inputs hold labels, else the mean square of its first output."""
    torch.manual_seed(0)
    found = model(**inputs)
    own = found.get("loss") if isinstance(found, dict) else None
    return own if own is not None else next(t for t in _graph(found)).float().pow(2).mean()


def _graph(found: Any) -> Iterator[Tensor]:
    values = found.values() if isinstance(found, dict) else found if isinstance(found, tuple | list) else [found]
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, tuple | list | dict):
            yield from _graph(value)


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two outputs, relative to the largest number of the tensor."""
    pairs = [(a.double(), b.double()) for a, b in zip(one, other, strict=True) if a.numel()]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)) for a, b in pairs)


def _same(one: list[Tensor], other: list[Tensor], why: str, tolerance: float = CLOSE) -> None:
    if (found := distance(one, other)) > tolerance or found != found:
        raise Wrong(f"{why} (by {found:.1e} of it)")

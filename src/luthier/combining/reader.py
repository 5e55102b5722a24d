"""The weights of a model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor, nn

from luthier.combining.parameter_refs import parameter_refs
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.mapped import evict
from luthier.core.records import recorded

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Reader(Protocol):
    """Tensors by the names of a model's parameters."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every name with its shape."""
        ...

    def get(self, name: str) -> Tensor:
        """Reads one tensor."""
        ...


class Checkpoint:
    """The safetensors of a model folder; nothing is read before it is asked for."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Tensors are read onto the device."""
        self.folder, self.device = folder, device
        files = [folder / WEIGHTS]
        if (folder / INDEX).is_file():
            with recorded(folder / INDEX) as index:
                files = sorted({folder / file for file in index["weight_map"].values()})
        self._files: dict[str, safetensors.safe_open] = {}  # type: ignore[valid-type]
        self._keys: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            self._add(file)

    def _add(self, file: Path) -> None:
        if not file.is_file():
            raise LuthierError(f"{file} is missing; {self.folder} holds no whole model in safetensors.")
        with guarded(f"{file} cannot be read"):
            opened = safetensors.safe_open(file, framework="pt")
        for name in opened.keys():  # noqa: SIM118
            self._files[name] = opened
            self.shapes[name] = tuple(opened.get_slice(name).get_shape())

    def alias(self, name: str, other: str) -> None:
        """`name` reads what `other` does: they are one tensor in the model."""
        self._files[name], self.shapes[name] = self._files[other], self.shapes[other]
        self._keys[name] = self._keys.get(other, other)

    def get(self, name: str) -> Tensor:
        """Reads one tensor, which must be finite."""
        tensor = self._files[name].get_tensor(self._keys.get(name, name)).to(self.device)  # type: ignore[attr-defined]
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise LuthierError(f"{self.folder}: {name} holds NaN or infinity.")
        evict()
        return tensor


class Held:
    """The parameters of a model in memory."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = dict(model.named_parameters(remove_duplicate=False))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def get(self, name: str) -> Tensor:
        """Returns the tensor itself."""
        return self._tensors[name].detach()


def reader(name: str, model: nn.Module) -> Reader:
    """The weights of the model `name` under the parameter names of `model`, an instance of the same architecture.

    A folder of safetensors is read lazily; where its names are not the model's own, transformers has to load it whole.
    """
    from luthier.models import resolve

    path, device = resolve(name), next(model.parameters()).device
    if isinstance(path, Path) and ((path / WEIGHTS).is_file() or (path / INDEX).is_file()):
        found = Checkpoint(path, device)
        groups = parameter_refs(model)
        if set(found.shapes) <= {ref.name for group in groups for ref in group} | _buffers(model):
            for group in groups:
                _alias(found, [ref.name for ref in group])
            return found
    from luthier.models.beside import WITHOUT
    from luthier.models.quiet import quiet

    options = {"dtype": "auto", "use_safetensors": True, "adapter_kwargs": WITHOUT}
    with quiet(), guarded(f"{name} cannot be read as a {type(model).__name__}"):
        made: Any = type(model)
        return Held(made.from_pretrained(path, trust_remote_code=False, **options).to(device))


def _alias(found: Checkpoint, names: list[str]) -> None:
    stored = next((name for name in names if name in found.shapes), None)
    for name in names:
        if stored is not None and name not in found.shapes:
            found.alias(name, stored)


def _buffers(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers()}

"""Files of tensors: read, whoever wrote them, with nothing run and everything checked; what is written, by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.records import read_json


def holds(folder: Path, config: str, weights: Collection[str], marks: Collection[str]) -> bool:
    """Returns whether a folder has a library's configuration, with weights or at least with the keys that mark it."""
    if not (folder / config).is_file():
        return False
    if any((folder / name).is_file() for name in weights):
        return True
    told = read_json(folder / config)
    return isinstance(told, dict) and set(marks) <= set(told)


def read_tensors(path: Path, aside: Collection[str] = (), *, numbers: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickle that holds nothing but tensors, each finite, in float32 at
    least. Those named in `aside`, which no forward pass reads, are left out; with `numbers`, whole ones of no dimension
    become floating. Raises `LuthierError` for damage, and for a pickle that would run code."""
    held = _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
    held = {key: tensor for key, tensor in held.items() if key not in aside}
    for key, tensor in held.items():
        if numbers and not tensor.dim() and not tensor.is_complex():
            tensor = tensor.float()
        if not tensor.is_floating_point():
            raise LuthierError(f"{path}: {key} is of type {tensor.dtype}; expected floating numbers.")
        held[key] = tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if not bool(tensor.isfinite().all()):
            raise LuthierError(f"{path}: {key} holds NaN or infinity; the adapter was saved from a failed run.")
    return held


def header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Returns (names of the tensors, metadata) of a .safetensors file; raises `LuthierError` for damage."""
    with guarded(f"{path} cannot be read"), safetensors.safe_open(path, framework="pt") as file:
        return list(file.keys()), dict(file.metadata() or {})


def names_in(path: Path) -> list[str]:
    """Returns the names of the tensors of a file that `read_tensors` reads, whatever their type."""
    return header(path)[0] if path.suffix == ".safetensors" else list(_from_pickle(path))


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} of the tensors of a file that `read_tensors` reads."""
    if path.suffix != ".safetensors":
        return {key: tuple(tensor.shape) for key, tensor in _from_pickle(path).items()}
    with guarded(f"{path} cannot be read"), safetensors.safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    with guarded(f"{path} cannot be read"), safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _from_pickle(path: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LuthierError(
            f"{path} is damaged, or a pickle that holds more than tensors; such a file can run code, so it is not "
            f"opened ({reason}). Save it as safetensors where it comes from."
        ) from None
    if isinstance(held, dict) and set(held) == {"model"} and isinstance(held["model"], dict):
        held = held["model"]  # as Lightning saves
    if not isinstance(held, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in held.items()):
        raise LuthierError(f"{path} holds something else than named tensors.")
    return {key: tensor.detach() for key, tensor in held.items()}


def inside(folder: Path, name: str) -> Path:
    """Returns the file `name` of a folder; raises for a name that leads elsewhere, and for a file that is not there."""
    if not name or name != Path(name).name or name in (".", ".."):
        raise LuthierError(f"{folder} names the file {name!r}, which lies elsewhere.")
    path = folder / name
    if not path.is_file():
        raise LuthierError(f"{path} is missing; the adapter is incomplete.")
    return path


def by_itself(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors as a file holds them: on the CPU, contiguous, and none a part of another."""
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}

"""Adam with its checkpoint, for loops that draw their batches by number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.checks import Check
from luthier.core.errors import LuthierError
from luthier.core.files import committed, recover
from luthier.core.guard import guarded
from luthier.core.records import read_json, write_json

STATE, TENSORS = "state.json", "state.safetensors"


class AdamState:
    """Adam over tensors by name; what is told beside them goes on exactly."""

    def __init__(self, params: Mapping[str, nn.Parameter], lr: float) -> None:
        self.params = dict(params)
        self.adam = torch.optim.Adam(self.params.values(), lr=lr)

    def add(self, slopes: Mapping[str, Tensor]) -> None:
        """Adds to the gradients of the tensors named."""
        for key, slope in slopes.items():
            p = self.params[key]
            p.grad = slope if p.grad is None else p.grad + slope

    def step(self) -> None:
        """Makes a step, and clears the gradients."""
        self.adam.step()
        self.adam.zero_grad()

    def save(self, folder: Path, told: Mapping[str, Any]) -> None:
        """Commits tensors, moments and what is `told`, as JSON holds it."""
        held: dict[str, Tensor] = {}
        for key, p in self.params.items():
            held[f"tensor/{key}"] = p.detach()
            held |= {f"{kind}/{key}": t for kind, t in self.adam.state[p].items()}
        with committed(folder) as temporary:
            save_file({key: t.cpu().contiguous().clone() for key, t in held.items()}, temporary / TENSORS)
            write_json(temporary / STATE, dict(told))

    def load(self, folder: Path, known: Check) -> dict[str, Any] | None:
        """Reads what `save` wrote, and returns what was told, as `known` has it; None where nothing was saved."""
        recover(folder)
        if not (folder / STATE).is_file():
            return None
        with guarded(f"{folder} cannot be read"):
            held = load_file(folder / TENSORS)
        if {f"tensor/{key}" for key in self.params} != {key for key in held if key.startswith("tensor/")}:
            raise LuthierError(f"{folder} is of another training: its tensors are not those trained here.")
        told = read_json(folder / STATE)
        known(str(folder / STATE), told)
        with guarded(f"{folder / TENSORS} is damaged, or was changed by hand"), torch.no_grad():
            for key, p in self.params.items():
                p.copy_(held.pop(f"tensor/{key}"))
            for name, tensor in held.items():
                kind, _, key = name.partition("/")
                self.adam.state[self.params[key]][kind] = tensor.to(self.params[key].device)
        return told

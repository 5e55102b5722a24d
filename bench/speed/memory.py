"""Memory of a training step beyond the loaded model: activations kept for the backward pass, and the peak.

Each model has a process of its own. On a CPU the peak is the resident set's, with an allocator that gives large blocks
back at once; on a GPU it is torch's own count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from bench.speed.contestants import trained
from bench.speed.machine import Size, device
from torch import Tensor, nn

MIB = 2**20


def memory_of(name: str, size: Size, dtype: str) -> dict[str, float]:
    """{"saved", "peak"} in MiB, measured in a new process."""
    request = json.dumps({"name": name, "size": vars(size), "dtype": dtype})
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.speed.memory", request], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, size: Size, dtype: torch.dtype) -> dict[str, float]:
    """The same, in this process."""
    model = trained(size, dtype)[name]()
    ids = torch.randint(0, size.vocabulary, (size.batch, size.length), device=device())
    _step(model, ids[:1, :8])  # libraries and threads are loaded
    saved = _saved(model, ids)
    model.zero_grad(set_to_none=True)
    before = _reset()
    _step(model, ids)
    return {"saved": saved / MIB, "peak": (_peak() - before) / MIB}


def measured_model(model: nn.Module, size: Size) -> float:
    """MiB of activations that a model keeps for the backward pass."""
    ids = torch.randint(0, size.vocabulary, (size.batch, size.length), device=device())
    return _saved(model, ids) / MIB


def _step(model: nn.Module, ids: Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()


def _saved(model: nn.Module, ids: Tensor) -> int:
    """Bytes of distinct storages that the backward pass keeps, the model's own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    total = sum(found.values())
    loss.backward()
    return total


def _reset() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measured(asked["name"], Size(**asked["size"]), getattr(torch, asked["dtype"]))))

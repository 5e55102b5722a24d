"""Run by `test_shard.py` under torchrun: a user's own loop around `lt.shard`, in float64. Argument: a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import luthier as lt
from support.architectures import ARCHITECTURES


def build():
    """Two adapters; the second adapter is silent, so nothing of it gets a gradient."""
    model = ARCHITECTURES["qwen3"].build(dtype=torch.float64)
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)  # adapters start apart
    lt.attach(model, lt.LoRA(rank=2), "all-linear")
    lt.attach(model, lt.LoRA(rank=2), "q_proj", name="silent")
    return lt.disable(model, "silent")


def losses(model, mine: slice) -> list[float]:
    ids = ARCHITECTURES["qwen3"].inputs(batch=4)["input_ids"]
    optimizer = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2, weight_decay=0.1)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        for row in ids[mine].split(1):  # accumulated
            loss = model(input_ids=row, labels=row).loss / len(ids[mine])
            loss.backward()
            found.append(loss.item())
        optimizer.step()
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    alone = build()
    expected = losses(alone, slice(0, 4))
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = lt.shard(build())
    base = [p for name, p in model.named_parameters() if ".adapters." not in name]
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in base if p.shape[0] > 1)
    found = losses(model, slice(2 * rank, 2 * rank + 2))
    mine = [loss / 2 for loss in found]  # a process means over its two rows, the other over four
    wanted = [loss for step in range(3) for loss in expected[4 * step + 2 * rank : 4 * step + 2 * rank + 2]]
    silent = [p.grad for name, p in lt.trainable(model).items() if name.startswith("silent")]
    lt.save(model, folder / "adapter", "default")
    difference = max(abs(a - b) for a, b in zip(mine, wanted, strict=True))
    report = {"difference": difference, "silent": all(g is None for g in silent)}
    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    if rank == 0:
        lt.save(alone, folder / "alone", "default")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

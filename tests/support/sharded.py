"""Run by two ranks: FSDP2 in both orders gives the losses and gradients of one process.

The frozen base is sharded and the adapters are replicated (`ignored_params`), so each rank keeps them whole.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[1]))
import luthier as lt
from luthier.core.contracts.component import find
from luthier.core.sites.structure import block_lists
from support.architectures import ARCHITECTURES, base_of

STEPS = 3


def perturb(model) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def shard(model) -> None:
    ignored = set(lt.trainable(model).values()) if "_luthier" in vars(model) else set()
    for block in (block for blocks in block_lists(model).values() for block in blocks):
        fully_shard(block, ignored_params=ignored)
    fully_shard(model, ignored_params=ignored)


def build(form: str, order: str):
    model = base_of(form).build()
    torch.manual_seed(7)
    if order == "shard-first":
        shard(model)
    lt.attach(model, find("forms", form)())  # type: ignore[arg-type]
    perturb(model)
    if order == "adapt-first":
        shard(model)
    return model


def losses(model, rank: int, world: int) -> list[float]:
    """Three steps on a global batch of four rows; adapters' gradients are averaged over ranks."""
    ids = ARCHITECTURES["qwen2"].inputs(batch=4)["input_ids"]
    labels = ids.clone()
    labels[:, :5] = -100
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    optimizer = torch.optim.SGD(list(lt.trainable(model).values()), lr=0.05)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids[mine], labels=labels[mine]).loss
        loss.backward()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
            for parameter in lt.trainable(model).values():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
        optimizer.step()
        found.append(float(total) / world)
    return found


def main() -> None:
    alone = {f: losses(build(f, "alone"), 0, 1) for f in sys.argv[1:]}
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for form in sys.argv[1:]:
        for order in ("shard-first", "adapt-first"):
            got = losses(build(form, order), rank, world)
            worst = max(abs(a - b) for a, b in zip(alone[form], got, strict=True))
            if rank == 0:
                print(f"{form} {order} {worst:.2e}", flush=True)
            if worst > 1e-5:
                raise SystemExit(f"{form} {order}: losses differ by {worst:.2e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

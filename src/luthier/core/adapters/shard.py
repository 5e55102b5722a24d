"""Sharding: the frozen base is sharded over processes (FSDP2), the small trainable adapters are replicated.

torch's FSDP2 gathers a block's weights when the block runs and drops them again. Nothing that is trained is sharded, so
gradients are averaged as in data parallelism, and any process holds the whole adapter to save.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable

from luthier.core.adapters.attach import state_of
from luthier.core.adapters.control import tensors
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import block_lists


def shard(model: nn.Module) -> nn.Module:
    """Shards the base of an adapted model across the processes of torch.distributed; returns the model.

    Every process calls it, with the same base and after `attach`; on GPUs a block leaves the CPU as it is split, so
    no GPU holds the whole base. The adapters of process 0 go to all; after each backward pass their gradients are
    the mean over processes. `luthier.save` is then called by every process, and process 0 writes.

    Raises `LuthierError` where there is no process group, and for a quantised base.
    """
    state_of(model)
    if not (dist.is_available() and dist.is_initialized()):
        raise LuthierError("sharding needs processes: start with torchrun, or call init_process_group first.")
    if getattr(model, "is_quantized", False):
        raise LuthierError("a quantised base cannot be sharded; load it without quantize, or keep it whole (no shard).")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = _device()
    whole = list({id(p): p for p in tensors(model).values()}.values())
    for parameter in whole:
        parameter.data = parameter.data.to(device)
        dist.broadcast(parameter.data, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for blocks in block_lists(model).values():
        for block in blocks:
            fully_shard(block, mesh=mesh, ignored_params=set(whole))
    fully_shard(model, mesh=mesh, ignored_params=set(whole))
    _Mean([p for p in whole if p.requires_grad])
    return model


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or dist.get_backend() == "gloo" else found


class _Mean:
    """Makes the gradients of replicated parameters their mean over processes, all at once at the end of a backward
    pass: a process may have met parameters (experts, say) that another has not."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.waiting = parameters, False
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self.arrived)

    def arrived(self, _: Tensor) -> None:
        """The first gradient of a pass asks for the mean at its end."""
        if not self.waiting:
            self.waiting = True
            Variable._execution_engine.queue_callback(self.average)

    def average(self) -> None:
        """One message for all; a gradient that no process has stays None."""
        self.waiting = False
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        wide = torch.promote_types(torch.float32, max((g.dtype for g in grads), key=lambda d: d.itemsize))
        met = torch.tensor([p.grad is not None for p in self.parameters], device=grads[0].device)
        flat = torch.cat([met.to(wide), *(g.reshape(-1).to(wide) for g in grads)])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        counts, *parts = flat.split([len(grads), *(g.numel() for g in grads)])
        for parameter, count, part in zip(self.parameters, counts.tolist(), parts, strict=True):
            if count:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

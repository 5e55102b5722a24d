"""Joining the processes of a distributed run, with or without GPUs, also after a restart."""

from __future__ import annotations

import os

import torch.distributed as dist
from accelerate import PartialState

from luthier.core.device import device_of
from luthier.core.errors import LuthierError
from luthier.training.processes import processes

ATTEMPT, SHARED = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE"


def join() -> None:
    """Joins the processes that torchrun started, before any of them asks for the others; alone, it does nothing."""
    _join_again()
    state = PartialState(cpu=device_of().type == "cpu")  # or those without GPUs would train each for itself
    if state.num_processes != processes():
        raise LuthierError(
            f"{processes()} processes were started, but they train as {state.num_processes}; look at ACCELERATE_… in "
            "the environment, or start with torchrun."
        )


def _join_again() -> None:
    """Joins the processes of a restart on one machine under keys of their own.

    torch keeps one store over all attempts, in which a restarted process may read the address of a killed one, and
    then waits for it (pytorch#135712, in 2.13 still). Over several machines attempts are counted by each for itself,
    so there the remedy is torch's own: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    known = os.environ
    one_machine = known.get("LOCAL_WORLD_SIZE") == known.get("WORLD_SIZE")
    if known.get(ATTEMPT, "0") == "0" or known.get(SHARED) != "True" or not one_machine or dist.is_initialized():
        return
    rank, world = int(known["RANK"]), int(known["WORLD_SIZE"])
    address = known["MASTER_ADDR"], int(known["MASTER_PORT"])
    shared = dist.TCPStore(*address, world, is_master=False)  # pyright: ignore[reportPrivateImportUsage]
    own = dist.PrefixStore(f"luthier/{known[ATTEMPT]}", shared)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        "gloo" if device_of().type == "cpu" else None,
        store=own,
        rank=rank,
        world_size=world,
    )

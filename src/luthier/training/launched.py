"""Whether a run can be trained as it was started: in so many processes, by this launcher, with these services."""

from __future__ import annotations

import os

from transformers.integrations.integration_utils import get_available_reporting_integrations

from luthier.core.device import device_of
from luthier.core.errors import LuthierError, near
from luthier.training.processes import processes
from luthier.training.spec import Run

SPREAD = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
"""The environment variables by which `accelerate launch` shards all parameters."""


def check_optimiser(name: str) -> None:
    """Raises for an optimiser that this machine would run as another one: pages are a GPU's."""
    if name.startswith("paged") and device_of().type != "cuda":
        raise LuthierError(
            f"optimizer={name} keeps its states in pages between a GPU (CUDA) and the main memory, and here is none; "
            f"take {name.removeprefix('paged_')}."
        )


def check_services(report_to: str) -> None:
    """Raises unless every service to report to is installed."""
    known = ["none", *get_available_reporting_integrations()]
    for service in report_to.split(","):
        if service not in known:
            raise LuthierError(
                f"cannot report to {service!r}{near(service, known)} Installed here: {', '.join(known)}."
            )


def check_processes(run: Run) -> None:
    """Raises if a base is to be sharded over processes and there is one, or by a launcher that would shard adapters."""
    told = next((name for name, value in SPREAD.items() if os.environ.get(name, "").lower() == value), None)
    if told is not None:
        raise LuthierError(
            f"{told}={SPREAD[told]} shards the adapters across processes as well, and none would hold one to save; "
            "leave it out, and shard only the base with shard (--shard)."
        )
    if run.training.shard and processes() == 1:
        raise LuthierError(
            "shard shards the base across several processes, and here is one; start them with "
            "`torchrun --nproc-per-node=N -m luthier train …`."
        )
    if ":" in run.training.device and processes() > 1:
        raise LuthierError(
            f"device is {run.training.device}, and each of {processes()} processes takes one of its own; leave it out."
        )
    if run.training.noise_scale and processes() > 1:
        raise LuthierError(
            f"noise_scale compares the batches of a step in one process, and here are {processes()}; leave it out."
        )
    if run.update.changes and processes() > 1:
        raise LuthierError(
            f"{run.update.name()} changes what is trained from step to step, and here are {processes()} processes, "
            "whose gradients would no longer be averaged; train in one process, or with another update."
        )

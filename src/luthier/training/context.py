"""How a model stands while it trains, whoever's layers are on it and whoever runs the loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from luthier.core.errors import LuthierError
from luthier.kernels.backend import AUTO, OWN, cpu_backend
from luthier.training.spec import Run

WORTH = 10_000_000
"""Numbers of a model from which on CPU backends are timed."""


@contextmanager
def training_context(run: Run, model: Any) -> Iterator[None]:
    """The model as it trains in `run`: it keeps no keys and values, recomputes activations if asked to, and goes
    through the run's CPU backend.

    Afterwards it is as it was, but for its mode, which is evaluation: what was to be trained is again, where an update
    left some of it out in the last step. Raises `LuthierError` for a model that cannot recompute.
    """
    if run.training.gradient_checkpointing:
        recompute(model, True)
    cached, model.config.use_cache = getattr(model.config, "use_cache", False), False
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with cpu_backend(backend_of(run, model)):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.config.use_cache = cached
        if run.training.gradient_checkpointing:
            recompute(model, False)
        model.eval()


def recompute(model: Any, on: bool) -> None:
    """Switches the recomputation of activations in the backward pass, in the way that works with frozen inputs."""
    if not model.supports_gradient_checkpointing:
        raise LuthierError(f"{type(model).__name__} cannot recompute activations; leave gradient_checkpointing out.")
    with warnings.catch_warnings():  # the older names, which every transformers 5 has, warn in the newer ones
        warnings.simplefilter("ignore", FutureWarning)
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()


def backend_of(run: Run, model: Any) -> str:
    """The CPU backend of a run. A small model would not repay the timing of them."""
    small = sum(parameter.numel() for parameter in model.parameters()) < WORTH
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    undecided = run.training.cpu_backend == AUTO
    return OWN if undecided and (small or not on_cpu) else run.training.cpu_backend


def running_norms(model: nn.Module) -> list[nn.Module]:
    """The norms with running statistics, which stay in evaluation mode: the statistics belong to the frozen base."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

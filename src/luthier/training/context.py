"""The state of a model during training: no cache, recomputed activations, a CPU backend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from luthier.core.device import current_kept, device_of, fast_products, on_device
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import block_lists
from luthier.kernels.backend import AUTO, OWN, cpu_backend
from luthier.models import trusting
from luthier.training.processes import processes
from luthier.training.spec import Run

WORTH = 10_000_000
"""The number of parameters from which on CPU backends are timed; smaller models do not repay it."""


@contextmanager
def loading_for(run: Run) -> Iterator[None]:
    """Within the context models are loaded as a run says: onto its device, with code of their own if it trusts that.

    The run makes its device torch's current one; behind the context that is the one of before again, except in
    processes that were started together, each of which keeps its own.
    """
    with trusting(run.trust_remote_code), on_device(run.training.device), current_kept(lambda: processes() == 1):
        yield


@contextmanager
def training_context(run: Run, model: Any) -> Iterator[None]:
    """Prepares a model for training in `run`: without a key-value cache, with recomputed activations if the run asks
    for them, and with the run's CPU backend.

    Afterwards everything is restored, except that the model is in eval mode: parameters that an update left out in the
    last step are trainable again. Raises `LuthierError` for a model that cannot recompute.
    """
    fast_products(device_of())
    if run.training.gradient_checkpointing:
        recompute(model, True)
    cached, model.config.use_cache = getattr(model.config, "use_cache", False), False
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with cpu_backend(backend_of(run, model)), compiled(model) if run.training.compile else nullcontext():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.config.use_cache = cached
        if run.training.gradient_checkpointing:
            recompute(model, False)
        model.eval()


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Has the blocks of the model compiled while the context lasts, each by itself: alike ones share what is compiled,
    and all around them, such as a loss in chunks, goes on as it is.

    Raises `LuthierError` for a model without blocks.
    """
    blocks = [block for each in block_lists(model).values() for block in each]
    if not blocks:
        raise LuthierError(
            f"compile compiles the blocks of a model, and {type(model).__name__} has none; leave it out."
        )
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def recompute(model: Any, on: bool) -> None:
    """Switches gradient checkpointing on or off, in the variant that works with frozen inputs."""
    if not model.supports_gradient_checkpointing:
        raise LuthierError(f"{type(model).__name__} cannot recompute activations; leave gradient_checkpointing out.")
    with warnings.catch_warnings():  # the older names, which every transformers 5 has, warn in the newer ones
        warnings.simplefilter("ignore", FutureWarning)
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if "_require_grads_hook" in vars(model):  # for the other variant; with it gradients go through all blocks
                model.disable_input_require_grads()
        else:
            model.gradient_checkpointing_disable()


def backend_of(run: Run, model: Any) -> str:
    """Returns the CPU backend of a run; small models keep the default, as timing would not pay."""
    small = sum(parameter.numel() for parameter in model.parameters()) < WORTH
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    undecided = run.training.cpu_backend == AUTO
    return OWN if undecided and (small or not on_cpu) else run.training.cpu_backend


def running_norms(model: nn.Module) -> list[nn.Module]:
    """Returns the norms with running statistics, which stay in eval mode: the statistics belong to the frozen base."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

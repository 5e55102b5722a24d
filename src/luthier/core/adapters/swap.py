"""The class swap: an adapted module becomes an instance of a subclass with the same name."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from luthier.core.adapters.call import Call, Prompt, read_call
from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.dispatch import ready
from luthier.core.adapters.forward import adapted, adapted_tensor, beside
from luthier.core.adapters.kept_rows import INVOKING, QUERIES
from luthier.core.adapters.memory_saving import patched_class
from luthier.core.adapters.pass_ import Pass, Passes
from luthier.core.adapters.row_input import call_of_frames, row_input
from luthier.core.adapters.state import State
from luthier.core.errors import LuthierError
from luthier.core.sites.caches import cache_in
from luthier.core.sites.structure import namesake

IDS = ("input_ids", "decoder_input_ids")
"""What the owner of a stack calls the tokens that it is given."""
TRAINS = "_hf_peft_config_loaded"
"""A mark of transformers' peft integration. Its Trainer refuses a quantised model without it, for it has no other way
to learn that something beside the quantised weights is trained. It also makes `save_pretrained` look for peft's layers
and fail, so models that are not quantised go without it, and it is lifted while one that has it is saved."""


def adapters_of(module: nn.Module) -> AdapterContainer | None:
    """Returns the container of a module's tuner layers, or None if it is not adapted."""
    found = module._modules.get("adapters")
    return found if isinstance(found, AdapterContainer) else None


def swap(module: nn.Module, state: State, path: str, *, reads: bool = False) -> AdapterContainer:
    """Swaps the class of a module, once, and returns its container; with `reads`, its parameters are adapted too."""
    if found := adapters_of(module):
        if found.passes is not state.passes:
            raise LuthierError(f"{path!r} already carries adapters of another model; attach to that one.")
        if reads and not type(module)._luthier_reads:  # type: ignore[attr-defined]
            module.__class__ = _adapted_class(type(module)._luthier_base, True)  # type: ignore[assignment]
            _follow_hooks(module)
        return found
    shadow = vars(module)
    if "forward" in shadow and "_old_forward" not in shadow:
        raise LuthierError(
            f"the forward of {path or 'the model'!r} was replaced on the instance (by a wrapper such as "
            "accelerator.prepare), so an adapter would be bypassed; attach first, wrap afterwards."
        )
    module.__class__ = _adapted_class(type(module), reads)
    module.adapters = AdapterContainer(state.passes, path).train(module.training)
    state.met.clear()  # the model may have changed since
    state.containers.append(module.adapters)
    _follow_hooks(module)
    return module.adapters


def unswap(module: nn.Module, state: State) -> None:
    """Restores the class of a module."""
    adapters: AdapterContainer = module.adapters  # type: ignore[assignment]
    state.containers = [container for container in state.containers if container is not adapters]
    del module.adapters
    module.__class__ = type(module)._luthier_base  # type: ignore[assignment]
    _follow_hooks(module)


def _follow_hooks(module: nn.Module) -> None:
    """accelerate's hooks keep the class's forward on the instance; keep that one current."""
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = types.MethodType(type(module).forward, module)


@functools.cache
def _adapted_class(cls: type[nn.Module], reads: bool) -> type[nn.Module]:
    """A subclass of `cls` that runs its adapters. It keeps the name: configurations, sharding policies and
    pipelines go by it. With `reads`, whoever reads a parameter, parents included, gets the adapted tensor."""
    base = cls.forward
    names = tuple(inspect.signature(base).parameters)[1:]

    @functools.wraps(base)
    def forward(self, *args, **kwargs):
        return _run(self, base, names, args, kwargs)

    @functools.wraps(base)
    def inside(self, *args, **kwargs):
        """The same, where what the layer reads of its own is not what its owner reads."""
        adapters = self._modules["adapters"]
        running = adapters.current.running
        before, running[adapters.path] = running.get(adapters.path, False), True
        try:
            return _run(self, base, names, args, kwargs)
        finally:
            running[adapters.path] = before

    def __call__(self, *args, **kwargs):
        adapters = self._modules["adapters"]
        if adapters.block is not None:  # a recomputation in the backward pass must meet the same call
            kwargs["luthier_call"] = call = adapters.current.calls.get(adapters.block)
            if adapters.measures and call is not None:
                call.measure(args[0] if args else kwargs["hidden_states"])
        out = cls.__call__(self, *args, **kwargs)
        return out if adapters.block is None else beside(adapters, adapters.block, out)

    def __getattr__(self, name):
        value = cls.__getattr__(self, name)
        return adapted_tensor(self, name, value) if isinstance(value, nn.Parameter) else value

    def __reduce_ex__(self, protocol):
        plain = vars(cls).get("_luthier_reference")  # pickle finds a class by its name, which is that of the plain one
        return _blank, (plain or cls, plain is not None, reads), cls.__reduce_ex__(self, protocol)[2]

    body: dict[str, Any] = {"forward": inside if reads else forward, "__call__": __call__}
    body |= {"__reduce_ex__": __reduce_ex__, "_luthier_base": cls, "_luthier_reads": reads}
    if reads:
        body["__getattr__"] = __getattr__
    if generate := getattr(cls, "generate", None):
        body["generate"] = _prompting(generate)
    if save := getattr(cls, "save_pretrained", None):
        body["save_pretrained"] = _unmarked(save)
    return namesake(cls, body)


def _blank(plain: type[nn.Module], leans: bool, reads: bool) -> nn.Module:
    """An adapted module that pickle and copy fill."""
    made = _adapted_class((patched_class(plain) if leans else None) or plain, reads)
    return made.__new__(made)


def _prompting(generate: Callable) -> Callable:
    @functools.wraps(generate)
    def prompted(self, *args, **kwargs):
        named = dict(zip(("inputs",), args, strict=False)) | kwargs
        passes: Passes = self.adapters.passes
        current = passes.now
        before, current.tasks = current.tasks, kwargs.pop("tasks", current.tasks)
        try:
            with prompting(current, _prompt_of_generate(passes.decoder, named)):
                return generate(self, *args, **kwargs)
        finally:
            current.tasks = before

    return prompted


def _unmarked(save: Callable) -> Callable:
    @functools.wraps(save)
    def saved(self, *args, **kwargs):
        state: State | None = vars(self).get("_luthier")
        if state is None or not state.marked:
            return save(self, *args, **kwargs)
        del vars(self)[TRAINS]
        try:
            return save(self, *args, **kwargs)
        finally:
            vars(self)[TRAINS] = True

    return saved


def _prompt_of_generate(decoder: str | None, named: dict[str, Any]) -> Prompt:
    keys = ("decoder_input_ids",) if decoder is not None else ("input_ids", "inputs_embeds", "inputs")
    entering = next((named[k] for k in keys if isinstance(named.get(k), Tensor)), None)
    mask = named.get("attention_mask") if decoder is None else None
    return Prompt(1 if entering is None else entering.shape[1], mask)


@contextmanager
def prompting(current: Pass, prompt: Prompt):
    """Sets where the prompts of a batch end while the context lasts; an outer context wins."""
    before = current.prompt
    current.prompt = before or prompt
    try:
        yield
    finally:
        current.prompt = before


def _run(module: nn.Module, base: Callable, names: tuple[str, ...], args: tuple, kwargs: dict) -> Any:
    adapters: AdapterContainer = module._modules["adapters"]  # type: ignore[assignment]
    current = adapters.current
    if adapters.inner and (own := current.inside.get(adapters.path)) is not None:
        return own(args[0], lambda x: _layer(module, adapters, base, names, x))
    if adapters.decode_plan is not None and len(args) == 1 and (run := ready(adapters, args[0])) is not None:
        return run(args[0])
    if adapters.block is not None and (call := kwargs.pop("luthier_call", None)) is not None:
        current.calls[adapters.block] = call
    if (adapters.root or adapters.owner is not None) and "tasks" in kwargs:
        return _told(module, base, names, args, kwargs)
    arguments: dict[str, Any] = {}
    if adapters.root or adapters.owner is not None or adapters.frames is not None:
        arguments = dict(zip(names, args, strict=False)) | kwargs
    if adapters.root:
        current.derived = _read_prompt(module, arguments)
        current.seen = row_input(module, arguments) if adapters.reads_rows else None
    if adapters.owner is not None:
        current.calls[adapters.owner] = call = read_call(
            arguments, current.prompt_of(adapters.owner, adapters.passes.decoder)
        )
        current.aside.pop(adapters.owner, None)
        if call is not None:
            call.tasks = current.tasks
            if adapters.invoked:
                call.note_text(next((arguments[key] for key in IDS if arguments.get(key) is not None), None))
    if adapters.frames is not None:
        current.calls[adapters.frames] = call_of_frames(current.calls.get(adapters.frames), arguments)
    own = adapters.live or (adapters.params and current.rows is not None)
    out = adapted(module, adapters, base, names[0], args, kwargs) if own else base(module, *args, **kwargs)
    if adapters.root:
        current.seen = None
    if adapters.owner is not None:
        _keep_with_cache(current.calls[adapters.owner], out)
    return out


def _keep_with_cache(call: Call | None, out: Any) -> None:
    """What is known of the prompts stays with the cache that a stack made itself."""
    if call is None or call.cache is not None or not isinstance(out, ModelOutput):
        return
    for kept, own in ((QUERIES, call.query), (INVOKING, call.text)):
        if own is not None:
            kept.keep(cache_in(out), own)


def _layer(module: nn.Module, adapters: AdapterContainer, base: Callable, names: tuple[str, ...], x: Tensor) -> Tensor:
    """A linear layer with the adapters that it has of its own, while its owner's form runs it."""
    return adapted(module, adapters, base, names[0], (x,), {}) if adapters.live else base(module, x)


def _told(module: nn.Module, base: Callable, names: tuple[str, ...], args: tuple, kwargs: dict) -> Any:
    """The pass of a module that was called with the tasks of its rows."""
    current: Pass = module._modules["adapters"].current  # type: ignore[union-attr]
    before, current.tasks = current.tasks, kwargs.pop("tasks")
    try:
        return _run(module, base, names, args, kwargs)
    finally:
        current.tasks = before


def _read_prompt(model: nn.Module, arguments: dict[str, Any]) -> Prompt | None:
    """Where the prompts of a training batch end: at the first token in the loss of a causal model. A row whose
    first token is in the loss has no prompt; all of it counts as one, or it would train nothing."""
    labels, ids = (
        arguments.get("labels"),
        arguments.get("input_ids", arguments.get("inputs_embeds")),
    )
    if not (isinstance(labels, Tensor) and isinstance(ids, Tensor) and labels.shape == ids.shape[:2]):
        return None
    if not (generative(model) and not labels.is_floating_point()):
        return None
    answer = labels != -100
    first = answer.int().argmax(1)  # 0 also where no token is in the loss
    end = torch.where(first > 0, first, labels.shape[1])
    return Prompt(end, told=False)


def generative(model: nn.Module) -> bool:
    """Returns whether the model generates text, so that its labels are the tokens themselves."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel) and model.can_generate()

"""The container of an adapted module: one tuner layer per form, sorted by what it edits in the forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from luthier.core.adapters.pass_ import Pass, Passes
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer
from luthier.core.contracts.kernel import DecodePlan, Kernel, StackedAdapters, kernel_of
from luthier.core.contracts.router import Routed
from luthier.core.sites.structure import Attachment


class AdapterContainer(Attachment):
    """The tuner layers of one module."""

    def __init__(self, passes: Passes, path: str) -> None:
        super().__init__()
        self.passes, self.path = passes, path
        self.root = False
        self.owner: str | None = None
        """Set on the module that is given the mask and the cache of a stack: its own path."""
        self.frames: str | None = None
        """Set on the module that runs a stack, where that is not its owner and a form reads whole rows: the owner."""
        self.block: str | None = None
        """Set on a block whose activations may be recomputed: the path of its owner."""
        self.measures = False
        """Set on the first block of a stack where a form goes by the mean of what enters it."""
        self.invoked = False
        """Set on the owner of a stack where a form acts from certain tokens on."""
        self.reads_rows = False
        """Set on the root where a form reads whole rows, and on blocks whose outputs one reads."""
        self.final = False
        """Whether this block is the last of its stack."""
        self.inner = False
        """Set on a linear layer that a form of its owner may run (`Form.inside`)."""
        self.siblings: list[nn.Module] = []
        """The layers that read the same input right after this one."""
        self.modified_in_place = False
        """Whether others modify this layer's output in place (a probing pass finds out); then no kernel trains it."""
        self.read = False
        """Whether the module that holds this layer reads its weight itself."""
        self.acting: dict[int, TunerLayer] = {}
        """The enabled tuner layers, by their order of attachment."""
        self.given = 0
        """How many tuner layers were ever added here: the order of the next one, whatever was removed."""
        self.stacked: StackedAdapters | None = None
        """The stacked adapters for mixed batches; switching adapters on and off keeps it."""
        self.refresh()

    @property
    def current(self) -> Pass:
        """Returns the state of this thread's forward pass; raises while another thread has the model for itself."""
        return self.passes.now

    def add(self, tuner: TunerLayer) -> None:
        """Adds a tuner layer behind those that are there."""
        tuner.order = self.given
        self.given += 1
        self.add_module(_key(tuner.name, len(self.named(tuner.name))), tuner)
        self.switch([tuner], True)

    def named(self, name: str) -> list[TunerLayer]:
        """Returns the tuner layers of one adapter on this module."""
        found: list[TunerLayer] = []
        while (tuner := self._modules.get(_key(name, len(found)))) is not None:
            found.append(tuner)  # type: ignore[arg-type]
        return found

    def holds(self, tuner: TunerLayer) -> bool:
        """Returns whether this tuner layer is still on the module."""
        return any(each is tuner for each in self.named(tuner.name))

    def switch(self, tuners: Iterable[TunerLayer], on: bool) -> None:
        """Enables or disables tuner layers."""
        for tuner in tuners:
            tuner.enabled = on
            tuner.training = self.training
            if on:
                self.acting[tuner.order] = tuner
            else:
                self.acting.pop(tuner.order, None)
        self.refresh()

    def remove(self, components: Sequence[AdapterComponent]) -> None:
        """Removes the tuner layers of `components`."""
        for key, tuner in [(k, s) for k, s in self._modules.items() if s.component in components]:  # type: ignore[union-attr]
            del self._modules[key]
            self.acting.pop(tuner.order, None)  # type: ignore[union-attr, arg-type]
        self.stacked = None
        self.refresh()

    def refresh(self) -> None:
        """Sorts the enabled tuner layers again, after every change; disabled ones cost nothing, however many."""
        tuners = [self.acting[order] for order in sorted(self.acting)]
        self.inputs = [s for s in tuners if s.site.kind == "input"]
        self.params = [s for s in tuners if s.site.kind == "param"]
        self.caches = [s for s in tuners if s.site.kind == "cache"]
        rest = [s for s in tuners if s.site.kind in ("affine", "stream", "embedding")]
        self.pres = [s for s in rest if s.form.edit_kind == "pre"]
        self.weights = [s for s in rest if s.form.edit_kind == "weight"]
        self.posts = [s for s in rest if s.form.edit_kind == "post"]
        self.insides = [s for s in rest if s.form.edit_kind == "inside"]
        self.asides = [s for s in rest if s.form.edit_kind == "aside"]
        self.live = bool(self.inputs or rest)
        affine = [s for s in rest if self.read and s.site.kind == "affine"]
        self.owners = affine if all(s.form.linear and s.positions is None for s in affine) else []
        """Those that act on the weight that the owner reads; none where no weight can express their effect."""
        kernels = {_kernel_of(s) for s in tuners if s.site.kind == "affine"}
        alike = len(kernels) == 1 and all(s.site.kind == "affine" for s in tuners)
        self.fast = tuners if alike and kernels.pop() else []
        """The tuner layers of a linear layer whose adapters are all of one form, if that form has a kernel."""
        self.routed = any(isinstance(s.form, Routed) for s in self.fast)
        """Whether a form with a kernel routes: while routing is watched its kernel tells nothing, and must not run."""
        self.decode_plan: DecodePlan | None = None
        """The cached decode plan of the layer, once there is one."""

    def train(self, mode: bool = True) -> AdapterContainer:
        """Switches between train and eval mode; disabled tuner layers follow when they are enabled."""
        self.decode_plan = self.stacked = None
        self.training = mode
        for tuner in self.acting.values():
            tuner.training = mode
        return self

    def _apply(self, fn, recurse=True):
        self.decode_plan = self.stacked = None  # the parameters move
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made from: it has parameters, and so caches, of its own."""
        return {**vars(self), "decode_plan": None, "stacked": None}

    def tuners(self) -> list[TunerLayer]:
        """Returns every tuner layer, enabled or not, in the order of attachment."""
        return list(self._modules.values())  # type: ignore[arg-type]


def _key(name: str, count: int) -> str:
    """The key of an adapter's tuner layer number `count`: the colon keeps an adapter called `train` apart from torch's
    and our own attributes."""
    return f"{name}:{count}"


def _kernel_of(tuner: TunerLayer) -> Kernel | None:
    kernel = kernel_of(type(tuner.form))
    serves = kernel is not None and (not tuner.component.subtract_start or "difference" in vars(kernel))
    return kernel if serves else None

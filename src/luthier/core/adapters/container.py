"""What an adapted module carries: a slot for each form on it, sorted by what they do in its forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer
from luthier.core.contracts.kernel import DecodePlan, Kernel, StackedAdapters, kernel_of
from luthier.core.sites.structure import Attachment


class AdapterContainer(Attachment):
    """The slots of one module."""

    def __init__(self, current: Pass, path: str) -> None:
        super().__init__()
        self.current, self.path = current, path
        self.root = False
        self.owner: str | None = None
        """Set on the module that meets the mask and the cache of a stack: its own path."""
        self.block: str | None = None
        """Set on a block that hands its call on to a recomputation: the path of its owner."""
        self.siblings: list[nn.Module] = []
        """The layers that read the same tensor right after this one."""
        self.modified_in_place = False
        """Others write into what this layer returns, as a probing pass found: in training no kernel runs then."""
        self.read = False
        """The module that holds this layer reads its weight itself."""
        self.running = False
        """The layer's own forward pass is under way."""
        self.acting: dict[int, TunerLayer] = {}
        """The enabled slots by their order of attachment."""
        self.given = 0
        """How many slots were ever hung here: the order of the next one, whatever was removed."""
        self.stacked: StackedAdapters | None = None
        """What a mixed batch makes of the adapters here; switching them leaves it."""
        self.refresh()

    def add(self, tuner: TunerLayer) -> None:
        """Hangs a slot, behind those that are there."""
        tuner.order = self.given
        self.given += 1
        self.add_module(_key(tuner.name, len(self.named(tuner.name))), tuner)
        self.switch([tuner], True)

    def named(self, name: str) -> list[TunerLayer]:
        """The slots of one adapter here."""
        found: list[TunerLayer] = []
        while (tuner := self._modules.get(_key(name, len(found)))) is not None:
            found.append(tuner)  # type: ignore[arg-type]
        return found

    def holds(self, tuner: TunerLayer) -> bool:
        """Whether the very slot still hangs here."""
        return any(each is tuner for each in self.named(tuner.name))

    def switch(self, tuners: Iterable[TunerLayer], on: bool) -> None:
        """Lets slots act, or silences them."""
        for tuner in tuners:
            tuner.enabled = on
            tuner.training = self.training
            if on:
                self.acting[tuner.order] = tuner
            else:
                self.acting.pop(tuner.order, None)
        self.refresh()

    def remove(self, components: Sequence[AdapterComponent]) -> None:
        """Drops the slots of `parts`."""
        for key, tuner in [(k, s) for k, s in self._modules.items() if s.component in components]:  # type: ignore[union-attr]
            del self._modules[key]
            self.acting.pop(tuner.order, None)  # type: ignore[union-attr, arg-type]
        self.stacked = None
        self.refresh()

    def refresh(self) -> None:
        """Sorts the enabled slots anew; called after every change. Silent ones cost nothing, however many."""
        tuners = [self.acting[order] for order in sorted(self.acting)]
        self.inputs = [s for s in tuners if s.site.kind == "input"]
        self.params = [s for s in tuners if s.site.kind == "param"]
        self.caches = [s for s in tuners if s.site.kind == "cache"]
        rest = [s for s in tuners if s.site.kind in ("affine", "stream", "embedding")]
        self.pres = [s for s in rest if s.form.edit_kind == "pre"]
        self.weights = [s for s in rest if s.form.edit_kind == "weight"]
        self.posts = [s for s in rest if s.form.edit_kind == "post"]
        self.live = bool(self.inputs or rest)
        affine = [s for s in rest if self.read and s.site.kind == "affine"]
        self.owners = affine if all(s.form.linear and s.positions is None for s in affine) else []
        """Those that act on what the owner reads; none where no weight expresses what they do."""
        kernels = {_kernel_of(s) for s in tuners if s.site.kind == "affine"}
        alike = len(kernels) == 1 and all(s.site.kind == "affine" for s in tuners)
        self.fast = tuners if alike and kernels.pop() else []
        """The slots of a linear layer whose adapters are all of one form, if that form has a kernel."""
        self.decode_plan: DecodePlan | None = None
        """What the layer does outside training, once it is settled."""

    def train(self, mode: bool = True) -> AdapterContainer:
        """As every module's; noise comes and goes with it. Silent slots hear of it when they are to act."""
        self.decode_plan = self.stacked = None
        self.training = mode
        for tuner in self.acting.values():
            tuner.training = mode
        return self

    def _apply(self, fn, recurse=True):
        self.decode_plan = self.stacked = None  # the parameters move
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: it has parameters of its own, and settles its own steps."""
        return {**vars(self), "decode_plan": None, "stacked": None}

    def tuners(self) -> list[TunerLayer]:
        """Every slot, enabled or not, in the order of attachment."""
        return list(self._modules.values())  # type: ignore[arg-type]


def _key(name: str, count: int) -> str:
    """The key of an adapter's slot number `count`: the colon keeps adapters called train or step apart from torch's
    and our own attributes."""
    return f"{name}:{count}"


def _kernel_of(tuner: TunerLayer) -> Kernel | None:
    kernel = kernel_of(type(tuner.form))
    serves = kernel is not None and (not tuner.component.subtract_start or "difference" in vars(kernel))
    return kernel if serves else None

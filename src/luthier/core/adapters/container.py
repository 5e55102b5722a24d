"""What an adapted module carries: a slot for each form on it, sorted by what they do in its forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.slot import Part, Slot
from luthier.core.contracts.kernel import Kernel, Stack, Step, kernel_of
from luthier.core.sites.structure import Attachment


class Adapters(Attachment):
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
        self.written = False
        """Others write into what this layer returns, as a probing pass found: in training no kernel runs then."""
        self.read = False
        """The module that holds this layer reads its weight itself."""
        self.running = False
        """The layer's own forward pass is under way."""
        self.acting: dict[int, Slot] = {}
        """The enabled slots by their order of attachment."""
        self.given = 0
        """How many slots were ever hung here: the order of the next one, whatever was removed."""
        self.stack: Stack | None = None
        """What a mixed batch makes of the adapters here; switching them leaves it."""
        self.refresh()

    def add(self, slot: Slot) -> None:
        """Hangs a slot, behind those that are there."""
        slot.order = self.given
        self.given += 1
        self.add_module(_key(slot.name, len(self.named(slot.name))), slot)
        self.switch([slot], True)

    def named(self, name: str) -> list[Slot]:
        """The slots of one adapter here."""
        found: list[Slot] = []
        while (slot := self._modules.get(_key(name, len(found)))) is not None:
            found.append(slot)  # type: ignore[arg-type]
        return found

    def holds(self, slot: Slot) -> bool:
        """Whether the very slot still hangs here."""
        return any(each is slot for each in self.named(slot.name))

    def switch(self, slots: Iterable[Slot], on: bool) -> None:
        """Lets slots act, or silences them."""
        for slot in slots:
            slot.enabled = on
            slot.training = self.training
            if on:
                self.acting[slot.order] = slot
            else:
                self.acting.pop(slot.order, None)
        self.refresh()

    def remove(self, parts: Sequence[Part]) -> None:
        """Drops the slots of `parts`."""
        for key, slot in [(k, s) for k, s in self._modules.items() if s.part in parts]:  # type: ignore[union-attr]
            del self._modules[key]
            self.acting.pop(slot.order, None)  # type: ignore[union-attr, arg-type]
        self.stack = None
        self.refresh()

    def refresh(self) -> None:
        """Sorts the enabled slots anew; called after every change. Silent ones cost nothing, however many."""
        slots = [self.acting[order] for order in sorted(self.acting)]
        self.inputs = [s for s in slots if s.site.kind == "input"]
        self.params = [s for s in slots if s.site.kind == "param"]
        self.caches = [s for s in slots if s.site.kind == "cache"]
        rest = [s for s in slots if s.site.kind in ("affine", "stream", "embedding")]
        self.pres = [s for s in rest if s.form.face == "pre"]
        self.weights = [s for s in rest if s.form.face == "weight"]
        self.posts = [s for s in rest if s.form.face == "post"]
        self.live = bool(self.inputs or rest)
        affine = [s for s in rest if self.read and s.site.kind == "affine"]
        self.owners = affine if all(s.form.linear and s.spot is None for s in affine) else []
        """Those that act on what the owner reads; none where no weight expresses what they do."""
        kernels = {_kernel_of(s) for s in slots if s.site.kind == "affine"}
        alike = len(kernels) == 1 and all(s.site.kind == "affine" for s in slots)
        self.fast = slots if alike and kernels.pop() else []
        """The slots of a linear layer whose adapters are all of one form, if that form has a kernel."""
        self.step: Step | None = None
        """What the layer does outside training, once it is settled."""

    def train(self, mode: bool = True) -> Adapters:
        """As every module's; noise comes and goes with it. Silent slots hear of it when they are to act."""
        self.step = self.stack = None
        self.training = mode
        for slot in self.acting.values():
            slot.training = mode
        return self

    def _apply(self, fn, recurse=True):
        self.step = self.stack = None  # the parameters move
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: it has parameters of its own, and settles its own steps."""
        return {**vars(self), "step": None, "stack": None}

    def slots(self) -> list[Slot]:
        """Every slot, enabled or not, in the order of attachment."""
        return list(self._modules.values())  # type: ignore[arg-type]


def _key(name: str, count: int) -> str:
    """The key of an adapter's slot number `count`: the colon keeps adapters called train or step apart from torch's
    and our own attributes."""
    return f"{name}:{count}"


def _kernel_of(slot: Slot) -> Kernel | None:
    kernel = kernel_of(type(slot.form))
    serves = kernel is not None and (not slot.part.relative or "difference" in vars(kernel))
    return kernel if serves else None

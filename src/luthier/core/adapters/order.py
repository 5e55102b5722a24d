"""In which order the forms on a module act on its weight, and which of them may change places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.core.adapters.slot import Slot
from luthier.core.adapters.swap import adapters_of
from luthier.core.errors import LuthierError

FACES = {"weight": 1, "pre": 2, "post": 3}
"""Forms on a parameter itself come first; then those on the layer's weight, its input, and its output."""


def refuse_beneath(module: nn.Module, folded: Sequence[Slot]) -> None:
    """Raises where a slot that goes on acting stands before one that is folded, and beneath it would be another map."""
    adapters = adapters_of(module)
    assert adapters is not None
    others = [s for s in adapters.slots() if s.enabled and s not in folded and s.site.kind not in ("input", "cache")]
    for other in others:
        for slot in folded:
            if _place(other) < _place(slot) and not _commute(other, slot):
                raise LuthierError(
                    f"{slot.name!r} ({slot.form.name()}) acts on what {other.name!r} ({other.form.name()}) makes of "
                    f"{slot.site}; merged alone it would come first, which is another map. Merge both at once, or "
                    f"disable or detach {other.name!r} before."
                )


def _place(slot: Slot) -> tuple[int, int]:
    """The slot's place on the way from the stored tensor to the output; the last edit of an input is the innermost."""
    if slot.site.kind == "param":
        return 0, slot.order
    return FACES[slot.form.face], -slot.order if slot.form.face == "pre" else slot.order


def _commute(one: Slot, other: Slot) -> bool:
    """Whether two slots of a module make the same of it in either order, one on a parameter being the first."""
    if one.site.kind == "param":
        bare = other.site.kind == "param"
        met = other.site.path if bare else f"{other.site.path}.weight"
        if met != one.site.path and (bare or _additive(other)):  # a sum leaves the bias alone
            return True
    return _additive(one) and _additive(other)


def _additive(slot: Slot) -> bool:
    """Whether the form adds the same to any weight."""
    p = slot.params(torch.float32)
    if slot.quiet.entries(p) is not None:
        return True
    found = [slot.quiet.factors(p, _filled(slot, value)) for value in (0.0, 1.0)]
    pairs = [pair for pair in found if pair is not None]
    return len(pairs) == 2 and all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def _filled(slot: Slot, value: float) -> Tensor:
    """A weight of one number, which takes no room."""
    device = next(slot.parameters()).device
    return torch.full((), value, device=device).expand(slot.site.d_out, slot.site.d_in)

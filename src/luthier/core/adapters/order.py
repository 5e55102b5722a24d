"""The order in which the forms on a module act on its weight, and which of them commute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.core.adapters.swap import adapters_of
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.errors import LuthierError

EDIT_ORDER = {"weight": 1, "pre": 2, "post": 3}
"""Forms on a parameter itself come first; then those on the layer's weight, its input, and its output."""


def refuse_beneath(module: nn.Module, folded: Sequence[TunerLayer]) -> None:
    """Raises where a tuner layer that stays attached acts before one that is merged and does not commute with it."""
    adapters = adapters_of(module)
    assert adapters is not None
    others = [s for s in adapters.tuners() if s.enabled and s not in folded and s.site.kind not in ("input", "cache")]
    for other in others:
        for tuner in folded:
            if _place(other) < _place(tuner) and not _commute(other, tuner):
                raise LuthierError(
                    f"{tuner.name!r} ({tuner.form.name()}) acts on what {other.name!r} ({other.form.name()}) makes of "
                    f"{tuner.site}; merged alone it would come first, which is another map. Merge both at once, or "
                    f"disable or detach {other.name!r} before."
                )


def _place(tuner: TunerLayer) -> tuple[int, int]:
    """The order of an edit from the stored tensor to the output; the last edit of an input is the innermost."""
    if tuner.site.kind == "param":
        return 0, tuner.order
    return EDIT_ORDER[tuner.form.edit_kind], -tuner.order if tuner.form.edit_kind == "pre" else tuner.order


def _commute(one: TunerLayer, other: TunerLayer) -> bool:
    """Whether two tuner layers of a module commute; `one` may be on a parameter."""
    if one.site.kind == "param":
        bare = other.site.kind == "param"
        met = other.site.path if bare else f"{other.site.path}.weight"
        if met != one.site.path and (bare or _additive(other)):  # a sum leaves the bias alone
            return True
    return _additive(one) and _additive(other)


def _additive(tuner: TunerLayer) -> bool:
    """Whether the form adds the same to any weight."""
    p = tuner.params(torch.float32)
    if tuner.eval_form.entries(p) is not None:
        return True
    found = [tuner.eval_form.factors(p, _filled(tuner, value)) for value in (0.0, 1.0)]
    pairs = [pair for pair in found if pair is not None]
    return len(pairs) == 2 and all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def _filled(tuner: TunerLayer, value: float) -> Tensor:
    """A weight of one number, which takes no room."""
    device = next(tuner.parameters()).device
    return torch.full((), value, device=device).expand(tuner.site.d_out, tuner.site.d_in)

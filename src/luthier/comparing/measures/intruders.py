"""Intruder dimensions of a fitted model, and how many a random update of the same size would have made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from luthier.combining.parameter_refs import ParameterRef, wide
from luthier.comparing.fitted import Fitted
from luthier.comparing.plan import Job
from luthier.core.contracts.combination import examined
from luthier.core.contracts.examination import Change, unwatched
from luthier.core.numerics.delta import Delta
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.scope import Scope
from luthier.core.sites.structure import is_quantised
from luthier.examining.pair import changes_in
from luthier.methods.examinations.intruders import Intruders


def intruders(job: Job, fitted: Fitted) -> dict[str, float] | None:
    """Returns `count`, `null` and `matrices` examined; None where no matrix of a block changed."""
    with eval_mode(fitted.model):
        changes = [change for change in CHANGES[job.method.kind](fitted.model) if examined(change.place)]
        if not changes:
            return None
        found = Intruders().of(changes, unwatched)
    null, matrices = found.null_summary["intruders"], found.summary["matrices"]
    return {"count": found.summary["intruders"], "null": null, "matrices": matrices}


def _of_peft(model: Any) -> list[Change]:
    """What peft's layers change of the weights under them; merging into quantised ones would round."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    scope, found = Scope(model), []
    for path, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and not is_quantised(layer.get_base_layer()):
            ref = ParameterRef(f"{path}.base_layer", "weight", layer.get_base_layer())
            found.append(Change(ref.place(scope, {}), partial(_merged, layer, ref)))
    return found


def _merged(layer: Any, ref: ParameterRef) -> Delta:
    """W' - W0, by folding the layer in and putting the very weight back."""
    before: Tensor = ref.tensor.detach().clone()
    layer.merge()
    after = wide(ref.tensor).clone()
    layer.unmerge()
    ref.tensor.data.copy_(before)
    return Delta.dense_of(ref.oriented(after - wide(before)))


def _untouched(model: Any) -> Sequence[Change]:
    return ()


CHANGES: dict[str, Callable[[Any], Sequence[Change]]] = {
    "luthier": changes_in,
    "peft": _of_peft,
    "untouched": _untouched,
}
"""What a fitted model changed, by who fitted it."""

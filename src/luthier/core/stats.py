"""One calibration pass that yields every statistic asked for, in one stream over the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError, near
from luthier.core.probe import evaluating
from luthier.core.site import Site


class Statistic(ABC):
    """Something that is known of a site after the pass; it sees real tokens only, as rows [n, d_in]."""

    @abstractmethod
    def update(self, rows: Tensor) -> None:
        """Takes the next rows."""

    @abstractmethod
    def result(self) -> Tensor:
        """The statistic of all rows so far."""


class Moment(Statistic):
    """E[x xᵀ], the second moment [d_in, d_in] of what enters the site; float64 sums."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.count = 0

    def update(self, rows: Tensor) -> None:
        rows = rows.double()
        product = rows.mT @ rows
        self.sum = product if self.sum is None else self.sum + product
        self.count += len(rows)

    def result(self) -> Tensor:
        if self.sum is None:
            raise LuthierError("no token of the calibration data reached this site.")
        return self.sum / self.count


STATISTICS: dict[str, type[Statistic]] = {"moment": Moment}
"""What a component can `need`, beside `weight`."""


def collect(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], sites: Sequence[Site], needs: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """`{path: {statistic: tensor}}` of `sites` over `batches` of the model's arguments, in one pass.

    Rows are the inputs of a site's module; padding (`attention_mask` 0) is left out. The model is in evaluation
    mode meanwhile and keeps no gradient. Pass the result to `attach(stats=…)`.
    """
    for need in needs:
        if need not in STATISTICS:
            raise LuthierError(f"no statistic {need!r}{near(need, STATISTICS)} There are: {', '.join(STATISTICS)}.")
    found = {site.path: {need: STATISTICS[need]() for need in needs} for site in sites}
    mask: list[Tensor | None] = [None]
    with ExitStack() as stack:
        for site in sites:
            hook = _reader(list(found[site.path].values()), mask)
            stack.callback(model.get_submodule(site.module).register_forward_pre_hook(hook).remove)
        stack.enter_context(evaluating(model))
        for batch in batches:
            mask[0] = batch.get("attention_mask")
            model(**batch)
    return {path: {need: s.result() for need, s in each.items()} for path, each in found.items()}


def _reader(statistics: list[Statistic], mask: list[Tensor | None]):
    def read(module: nn.Module, args: tuple) -> None:
        x = args[0].detach()
        real = mask[0]
        if real is not None and real.shape == x.shape[:-1]:
            x = x[real.bool()]
        for statistic in statistics:
            statistic.update(x.reshape(-1, x.shape[-1]))

    return read

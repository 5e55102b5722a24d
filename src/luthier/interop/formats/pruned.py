"""A smaller model: the adapter folded in, the weakest heads and channels left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from luthier.core.contracts.format import Format, Outgoing
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Pruned(Format):
    """W + ΔW without its weakest heads and channels → a smaller model of the same class, with its tokenizer

    In each block a share `heads` of the groups of heads that read one key and value is left out, those of the smallest
    Σ_h ||W_o,h W_v||, and a share `channels` of the feed-forward channels j, those of the smallest product of norms
    ||down_j|| ||up_j|| ||gate_j||. W_o,h [d, head] and W_v [head, d] are a head's output and value, up_j and gate_j
    rows, down_j a column. All blocks lose the same number, so that one configuration holds and the folder is read as
    any model; what it forgot is learned again by training on it.

    The structured variant of DSEE. Its authors learn a coefficient for each head and channel under an l1 penalty and
    leave out the smallest; here the adapted weights themselves tell, without a pass over data.
    """

    paper = "Chen et al. 2023 (ACL), arXiv 2111.00160, structured pruning (code: VITA-Group/DSEE)"
    base_dtype: ClassVar[str] = "auto"
    loss: ClassVar[str] = "left out in part"

    heads: float = 0.0
    """Share of the groups of heads to leave out in each block."""
    channels: float = 0.25
    """Share of the feed-forward channels to leave out in each block."""

    def check(self) -> None:
        for name in ("heads", "channels"):
            if not 0 <= getattr(self, name) < 1:
                raise LuthierError(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1.")
        if not self.heads and not self.channels:
            raise LuthierError("heads and channels are both 0, which leaves nothing out; give one, as channels=0.25.")

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._merged import check_whole
        from luthier.interop.formats._pruned import sizes

        check_whole(model, processor, "a pruned model")
        sizes(model, self.heads, self.channels)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats._merged import merged, save_whole
        from luthier.interop.formats._pruned import pruned, sizes, smaller

        model: Any = outgoing.model
        wanted = sizes(model, self.heads, self.channels)
        with merged(model, outgoing.name) as tensors:
            kept, lost = pruned(model.config, tensors, wanted)
            save_whole(smaller(model, kept, wanted), outgoing.processor, folder)
        return lost

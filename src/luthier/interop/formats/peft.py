"""The format of peft: the change alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from luthier.core.contracts.export import Format, Outgoing, check_truncation
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class PEFT(Format):
    """ΔW = B A → adapter_model.safetensors, adapter_config.json

    Forms of low rank leave exactly, in float32, at the rank of each layer and with the scale inside B; so do DoRA
    (`use_dora`) and IA3 as methods of their own, and modules trained in full (a new head) as `modules_to_save`. Other
    affine forms are truncated by SVD. What no weight can express (an edit of the stream, positions, a prefix) is
    refused. With a rank given, DoRA and IA3 leave as plain low-rank changes too, for engines without them.
    """

    paper = "peft 0.21 (Hugging Face), `save_pretrained`"
    loss: ClassVar[str] = "truncated"

    rank: int | None = None
    """Largest rank of a layer; changes of a higher one, or of none, are truncated to it. Default: those of low rank
    leave as they are, others are refused."""
    tolerance: float = 0.0
    """Largest relative error of a layer (Frobenius) that truncation to `rank` may make."""

    def check(self) -> None:
        check_truncation(self.rank, self.tolerance)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from safetensors.torch import save_file

        from luthier.core.files import write_json
        from luthier.interop.formats._layers import Factoring, layers_of, trained_whole
        from luthier.interop.formats._peft_write import PREFIX, common_config, low_rank, native, saved_modules

        model = outgoing.model
        found = layers_of(model, outgoing.name)
        whole = [each for each in found if trained_whole(each)]
        layers = [each for each in found if each not in whole]
        if not layers:
            raise LuthierError(
                "this adapter trains parameters themselves and nothing else, and peft's format wants a method beside "
                "them; export it merged instead (--to merged)."
            )
        factoring = Factoring(self.rank, self.tolerance)
        method = native(layers) if self.rank is None else None
        files = method.write(model, layers) if method else low_rank(model, layers, factoring)
        if whole:
            saved = saved_modules(model, whole)
            files.tensors |= saved.tensors
            files.config |= saved.config
        tensors = {f"{PREFIX}{key}": t.detach().cpu().contiguous().clone() for key, t in files.tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        write_json(folder / "adapter_config.json", common_config(model) | files.config)
        return factoring.lost

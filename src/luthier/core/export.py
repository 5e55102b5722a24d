"""An adapter in other formats."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.core.adapt import adapter_names, detach, find_state
from luthier.core.delta import Delta
from luthier.core.errors import LuthierError
from luthier.core.files import committed, write_json
from luthier.core.layer import features
from luthier.core.merge import delta_of, refuse_unmergeable
from luthier.core.probe import evaluating
from luthier.core.slot import Slot
from luthier.core.store import load
from luthier.core.swap import adapters_of, generative


def export(
    adapter: str | Path,
    out: str | Path,
    *,
    to: str,
    base: nn.Module,
    rank: int | None = None,
    tolerance: float = 0.0,
) -> dict[str, float]:
    """Writes a saved adapter in the format `to` ("peft"), for the base it was fitted on.

    Low-rank forms are exact. Others (DoRA, IA3, …) are truncated to `rank` by SVD; the largest relative error of
    a layer must not exceed `tolerance`. Forms that no weight can express are refused, with the reason. Returns
    `{layer: relative error}` of the layers that were truncated. `base` is left as it was.
    """
    formats = {"peft": _to_peft}
    if to not in formats:
        raise LuthierError(f"no export to {to!r}; there is: {', '.join(formats)}.")
    state = find_state(base)
    taken = adapter_names(state) if state else []
    name = next(n for n in ("export", *(f"export{i}" for i in range(99))) if n not in taken)
    load(base, adapter, name)
    try:
        with evaluating(base):
            return formats[to](base, name, Path(out), rank, tolerance)
    finally:
        detach(base, name)


def _to_peft(model: nn.Module, name: str, out: Path, rank: int | None, tolerance: float) -> dict[str, float]:
    held: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    lost: dict[str, float] = {}
    for path, module, slots in _adapted_layers(model, name):
        delta = _low_rank_delta(path, module, slots, rank, tolerance, lost)
        assert delta.A is not None and delta.B is not None
        ranks[path] = delta.A.shape[0]
        keys = ("lora_A.weight", "lora_B.weight") if features(module) else ("lora_embedding_A", "lora_embedding_B")
        prefix = f"base_model.model.{path}"
        held |= {f"{prefix}.{key}": t.contiguous() for key, t in zip(keys, (delta.A, delta.B), strict=True)}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    other = {path: r for path, r in ranks.items() if r != common}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if generative(model) else None,
        "base_model_name_or_path": getattr(model, "name_or_path", ""),
        "r": common,
        "lora_alpha": common,  # the scale lies in B
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(type(model.get_submodule(p)).__name__ == "Conv1D" for p in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with committed(out) as temporary:
        whole = {k: t.cpu().clone() for k, t in held.items()}  # shared factors are written for each layer
        save_file(whole, temporary / "adapter_model.safetensors", {"format": "pt"})
        write_json(temporary / "adapter_config.json", config)
    return lost


def _adapted_layers(model: nn.Module, name: str):
    for path, module in model.named_modules():
        if adapters := adapters_of(module):
            slots = [slot for slot in adapters.slots() if slot.name == name]
            if slots:
                refuse_unmergeable(slots)
                yield path, module, slots


def _low_rank_delta(
    path: str,
    module: nn.Module,
    slots: list[Slot],
    rank: int | None,
    tolerance: float,
    lost: dict[str, float],
) -> Delta:
    if slots[0].site.kind == "embedding":
        b, a = slots[0].factors(torch.float32, torch.empty(0)) or (
            None,
            None,
        )
        if a is None or b is None:
            raise LuthierError(f"{slots[0].form.name()} on the table {path} has no low-rank form.")
        return Delta.low_rank(b, a)
    if any(slot.site.kind == "param" for slot in slots):
        raise LuthierError(f"{path}: peft's format has no place for a trained parameter; merge instead.")
    delta = delta_of(module, slots)
    if delta.rank is not None:
        return delta
    if rank is None:
        raise LuthierError(
            f"{slots[0].form.name()} at {path} is not of low rank; give rank=… and a tolerance for the SVD."
        )
    delta, lost[path] = delta.factor(rank)
    if lost[path] > tolerance:
        raise LuthierError(
            f"{path}: rank {rank} loses {lost[path]:.1%} of the change, more than the tolerance {tolerance:.1%}."
        )
    return delta

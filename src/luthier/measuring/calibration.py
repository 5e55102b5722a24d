"""The calibration pass over real rows: a sample, a progress bar, and a cache of what it found."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.calibration import Calibration

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from luthier.core.contracts.site import Site
    from luthier.core.contracts.statistic import Statistic
    from luthier.core.sites.collect import Measured

Feature = dict[str, Any]


def calibrate(
    model: nn.Module,
    features: Sequence[Feature],
    collator: Any,
    sites: Sequence[Site],
    statistics: Sequence[Statistic],
    settings: Calibration,
    *,
    data: str,
    new: Sequence[str] = (),
    console: Console | None = None,
) -> Measured:
    """Returns `statistics` at `sites` over a sample of `features`, from the cache where it holds them.

    `data` is the fingerprint of the rows. The cache is `$LUTHIER_CACHE/measured` (`~/.cache/luthier/measured`); its
    key is made of the base's fingerprint, that of the data, the rows drawn, what they show (files change under their
    names), and every setting; where gradients are read, also of the numbers of modules that are `new` to the checkpoint
    (`Loaded.new_modules`), which are random. Where several processes train together, the first one measures and the
    others read. Raises `LuthierError` as `collect` does.
    """
    from accelerate import PartialState
    from rich.console import Console

    from luthier.core.contracts.statistic import joined
    from luthier.core.sites.collect import collect
    from luthier.core.storage.fingerprint import fingerprint
    from luthier.measuring import cache
    from luthier.measuring.progress import told

    wanted, settings = joined(list(statistics)), settings.seeded(0)
    if not wanted:
        return {}
    chosen = sample(features, settings)
    key = cache.key_of(
        {
            "base": fingerprint(model, leave=new),
            "data": data,
            "rows": [feature["row"] for feature in chosen],
            "sites": [site.key for site in sites],
            "statistics": {each.name(): each.to_dict() for each in wanted},
            "settings": settings.to_dict() | {"fresh": False},
            "new": _hash(model, new) if _sees(new, sites, wanted) else None,
            **_media(chosen),
        }
    )
    state = PartialState()
    with state.main_process_first():
        held = None if settings.fresh and state.is_main_process else cache.read(key)
        if held is None:
            batches = list(batched(chosen, settings))
            with told(console or Console(quiet=True), f"measuring {len(chosen):,} rows") as shown:
                stream = (_arguments(collator(rows), model) for rows in shown(batches))
                held = collect(model, stream, sites, wanted, answers=settings.tokens == "answers")
            cache.write(key, held)
    return held


def _media(rows: Sequence[Feature]) -> dict[str, str]:
    """A digest of the pictures and sounds of rows, encoded or by the files that they name; empty without any."""
    import numpy as np

    from luthier.data.media import files_digest
    from luthier.data.pictures import NAMES, PICTURES

    digest, given = hashlib.sha256(), [value for row in rows for value in row.values()]
    arrays = [each for each in given if isinstance(each, np.ndarray) and each.dtype.kind == "f"]
    for each in arrays:
        digest.update(each.tobytes())
    files = files_digest(name for row in rows for name in row.get(PICTURES, {}).get(NAMES, ()))
    return {"media": f"{digest.hexdigest()} {files}"} if arrays or files else {}


def _sees(new: Sequence[str], sites: Sequence[Site], statistics: Sequence[Statistic]) -> bool:
    """Whether what is measured depends on modules that are new: gradients pass through, and inputs within."""
    inside = tuple(f"{module}." for module in new)
    return any(each.reads == "gradients" for each in statistics) or any(f"{s.path}.".startswith(inside) for s in sites)


def _hash(model: nn.Module, new: Sequence[str]) -> str:
    """A hash of all parameters of new modules."""
    import torch

    digest = hashlib.sha256()
    for module in new:
        for name, tensor in model.get_submodule(module).state_dict().items():
            digest.update(f"{module}.{name}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sample(features: Sequence[Feature], settings: Calibration) -> list[Feature]:
    """The rows that are read, in the data's order."""
    if len(features) <= settings.samples:
        return list(features)
    drawn = random.Random(settings.seeded(0).seed).sample(range(len(features)), settings.samples)
    return [features[i] for i in sorted(drawn)]


def batched(rows: Sequence[Feature], settings: Calibration) -> Iterator[list[Feature]]:
    """Batches of rows of like length, which saves padding, in an order that does not follow length."""
    ordered = sorted(rows, key=lambda row: len(row.get("input_ids", ())))
    batches = [ordered[i : i + settings.batch] for i in range(0, len(ordered), settings.batch)]
    random.Random(settings.seeded(0).seed).shuffle(batches)
    yield from batches


def _arguments(batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """What the model takes, where it lies."""
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items() if key != "rows"}

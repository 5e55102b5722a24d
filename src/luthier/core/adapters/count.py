"""Counting the parameters that a form trains on a model, without the model's weights."""

from __future__ import annotations

from typing import Any

from luthier.core.adapters.attach import attach, detach
from luthier.core.adapters.control import describe, trainable


def count(model: Any, form: Any, where: str | None = None) -> dict[str, Any]:
    """Returns `{"trainable", "total", "share", "sites", "rows"}` of `form` on `model`, which is left as it was."""
    total = sum(p.numel() for p in model.parameters())
    attach(model, form, where=where, name="counted", check=False)
    try:
        trained = trainable(model, count=True)
        rows = describe(model)
    finally:
        detach(model)
    sites = sum(row["sites"] for row in rows)
    return {"trainable": trained, "total": total, "share": trained / total, "sites": sites, "rows": rows}

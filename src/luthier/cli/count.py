"""How many parameters a form trains on a model, without the model's weights."""

from __future__ import annotations

from typing import Any


def count(model: Any, form: Any, where: str | None = None) -> dict[str, Any]:
    """`{"trainable", "total", "share", "sites", "rows"}` of `form` on `model`, which is left as it was."""
    import luthier

    total = sum(p.numel() for p in model.parameters())
    luthier.attach(model, form, where=where, name="counted", check=False)
    try:
        trained = luthier.trainable(model, count=True)
        rows = luthier.describe(model)
    finally:
        luthier.detach(model)
    sites = sum(row["sites"] for row in rows)
    return {"trainable": trained, "total": total, "share": trained / total, "sites": sites, "rows": rows}

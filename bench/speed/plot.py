"""The picture of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {"train": "training step", "forward": "forward pass", "decode": "one token", "mixed": "8 rows, 8 adapters"}
GROWTH = "growth"


def plot(found: dict[str, Any], file: Path) -> None:
    """Ratios to the base as bars with their quartiles, a panel for each pass and dtype."""
    from matplotlib.figure import Figure

    formats = [d for d in ("float32", "bfloat16") if any(key in found.get(d, {}) for key in (*TITLES, GROWTH))]
    if not formats:
        return
    columns = [key for key in TITLES if any(key in found[d] for d in formats)]
    grows = [GROWTH] if any(GROWTH in found[d] for d in formats) else []
    figure = Figure(figsize=(4.2 * len(columns + grows), 4.2 * len(formats)), layout="constrained")
    axes = figure.subplots(len(formats), len(columns + grows), squeeze=False)
    for row, dtype in zip(axes, formats, strict=True):
        for axis, key in zip(row, columns + grows, strict=True):
            if key not in found[dtype]:
                axis.set_axis_off()
                continue
            (_lines if key == GROWTH else _bars)(axis, found[dtype][key], f"{TITLES.get(key, GROWTH)}, {dtype}")
    machine = found["machine"]
    figure.suptitle(f"Time over the frozen base: {machine.get('gpu', machine['cpu'])}, {machine['threads']} threads")
    figure.savefig(file, dpi=110)


def _lines(axis: Any, found: dict[str, dict[Any, dict[str, float]]], title: str) -> None:
    for along, rows in found.items():
        values = [int(value) for value in rows]
        axis.plot([v / values[0] for v in values], [row["over_base"] for row in rows.values()], "o-", label=along)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("times the smallest", fontsize=8)
    axis.set_title(f"LoRA over the base: {title}", fontsize=10)
    axis.axhline(1, color="black", lw=0.8)
    axis.legend(fontsize=8)
    axis.tick_params(labelsize=8)


def _bars(axis: Any, rows: dict[str, dict[str, float]], title: str) -> None:
    names = list(rows)[::-1]
    values = [rows[name]["over_base"] for name in names]
    low = [max(0.0, rows[n]["over_base"] - rows[n]["low"]) for n in names]
    high = [max(0.0, rows[n]["high"] - rows[n]["over_base"]) for n in names]
    colours = ["#b0b0b0" if n.startswith(("peft", "full")) else "#2f6f9f" for n in names]
    axis.barh(names, values, xerr=[low, high], color=colours, error_kw={"lw": 1, "ecolor": "#333333"})
    for place, value in enumerate(values):
        axis.text(0.02, place, f"{value:.2f}", va="center", color="white", fontsize=8)
    axis.axvline(1, color="black", lw=0.8)
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)

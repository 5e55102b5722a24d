"""The picture of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {"train": "training step", "forward": "forward pass", "decode": "one token", "mixed": "8 rows, 8 adapters"}


def plot(found: dict[str, Any], file: Path) -> None:
    """Ratios to the base as bars with their quartiles, a panel for each pass and number format."""
    from matplotlib.figure import Figure

    panels = [(d, k) for d in ("float32", "bfloat16") if d in found for k in TITLES if k in found[d]]
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (dtype, key) in zip(axes, panels, strict=True):
        _bars(axis, found[dtype][key], f"{TITLES[key]}, {dtype}")
    machine = found["machine"]
    figure.suptitle(f"Time over the frozen base: {machine.get('gpu', machine['cpu'])}, {machine['threads']} threads")
    figure.savefig(file, dpi=110)


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

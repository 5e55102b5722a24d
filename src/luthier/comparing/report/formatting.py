"""Formatting of figures: few digits, a unit, and `not measured` where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.comparing.measures.significance import Interval

NOTHING = "not measured"
SCALES = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def known(value: float | None) -> bool:
    """Whether a figure was measured: neither None nor NaN."""
    return value is not None and math.isfinite(value)


def tried(value: float | str | None) -> str:
    """A setting of a trial, or its loss, which is None where it diverged."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if value is not None and known(value) else "diverged"


def score(value: float | None) -> str:
    """Three digits after the point, and as many as tell figures of thousands apart."""
    return f"{value:.3f}" if value is not None and known(value) else NOTHING


def count(value: float | None) -> str:
    """Formats a count: `950`, `12.3k`, `1.05M`, `7B`."""
    if value is None or not known(value):
        return NOTHING
    for scale, letter in SCALES:
        if abs(value) >= 0.9995 * scale:
            return _three(value / scale) + letter
    return _three(value)


def megabytes(value: float | None) -> str:
    """Bytes as megabytes (10^6)."""
    if value is None or not known(value):
        return NOTHING
    return "under 0.01 MB" if 0 < value < 5e3 else f"{_three(value / 1e6)} MB"


def ratio(value: float | None) -> str:
    """Formats a ratio: `1.12×`."""
    return f"{value:.2f}×" if value is not None and known(value) else NOTHING


def share(value: float | None) -> str:
    """A share as per cent: two digits that count."""
    if value is None or not known(value):
        return NOTHING
    return f"{100 * value:.2g}%" if value < 0.995 else "100%"


def change(value: float | None) -> str:
    """A signed difference with three digits after the point."""
    if value is None or not known(value):
        return NOTHING
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 5e-4 else "0.000"


def short(value: float) -> str:
    """Formats the label of a tick."""
    return f"{value:.3g}".replace("-", "−")


def listed(names: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {last} ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])


def interval(found: Interval | None) -> str:
    """`± 0.012` where the ends are as far on both sides, `0.830 to 0.853` else; nothing where there is no interval."""
    if found is None or not (known(found.low) and known(found.high)):
        return ""
    up, down = found.high - found.value, found.value - found.low
    if abs(up - down) < 5e-4:
        return f"± {up:.3f}"
    return f"{found.low:.3f} to {found.high:.3f}"


def p_value(value: float) -> str:
    """Formats a p-value: `0.031` or `under 0.001`."""
    if not known(value):
        return NOTHING
    return "under 0.001" if value < 0.001 else f"{value:.3f}"


def _three(value: float) -> str:
    """Three digits that count, without an exponent and without noughts at the end."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown

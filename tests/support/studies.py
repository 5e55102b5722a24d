"""What the runs of a study found, without what is of the clock, the machine and the place."""

from __future__ import annotations

from pathlib import Path

from luthier.comparing import records, spread

CLOCK = ("seconds", "step_seconds", "step_ratio", "peak_bytes", "command")


def figures(folder: Path) -> list[dict]:
    """Every record, made alone or beside others."""
    found = []
    for each in records(folder):
        values = {key: value for key, value in each.to_dict().items() if key not in CLOCK}
        values["settings"].pop("out")
        found.append(values | {"notes": [note for note in each.notes if note != spread.BESIDE]})
    return found

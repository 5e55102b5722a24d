"""Revival on MiniLM: twenty intents whose labels were shifted are read by probes and back in a few steps.

MiniLM is fitted in full to `INTENTS` intents of CLINC150, which makes the ability; LoRA then teaches the same texts
with the label of the next intent. The control has the blocks of the able model drawn anew before it learns the shifted
labels: what is not in the weights can be neither read better than from fresh ones nor revived sooner.

Each seed draws the batches, the fresh blocks and what the examination draws; seeds that were found before stay.

    python -m bench diagnosis-revival --data FOLDER [--steps 30] [--seeds 3]
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.diagnosis._fits import examined, fit, merged, parsed, recorded, written

import luthier as lt
from luthier.methods.examinations.revival import refresh

MODEL, TASK, INTENTS, EACH, PROBED = "minilm-l6", "classification", 20, 20, 12
BATCH: dict[str, Any] = {"task": TASK, "batch": 16, "lr": 3e-3, "max_length": 48}


def rows_of(file: Path, count: int) -> list[dict[str, str]]:
    """`count` rows of each of the first intents, the intents in turns."""
    found = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["label"]].append({"text": row["text"], "label": row["label"]})
    return [found[name][n] for n in range(count) for name in sorted(found)[:INTENTS]]


def shifted(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the label of the next intent."""
    names = sorted({row["label"] for row in rows})
    return [{**row, "label": names[(names.index(row["label"]) + 1) % len(names)]} for row in rows]


def drawn_anew(model: str, folder: Path, seed: int) -> str:
    """The folder of a model whose matrices, the head's too, are drawn anew."""
    loaded = lt.model(model, task=TASK)
    refresh(loaded.model, 7 + seed)
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


def one(rows: Sequence[dict[str, str]], probes: Sequence[dict[str, str]], seed: int, steps: int) -> dict[str, Any]:
    """The ability, hidden in a model that has it and taught to one that lost it."""
    names, by, found = sorted({row["label"] for row in rows}), lt.Revival(steps=15, lr=5e-4, seed=seed), {}
    options = BATCH | {"seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        adapter = fit(MODEL, rows, work / "able-run", form=lt.Full(), steps=3 * steps, **options | {"lr": 4e-4})
        able = merged(MODEL, adapter, work / "able", TASK, names)
        bases = {"shifted labels": able, "re-initialised, shifted labels": drawn_anew(able, work / "fresh", seed)}
        for name, base in bases.items():
            hidden = fit(base, shifted(rows), work / f"{name[:7]}-run", steps=steps, **options)
            target = Path(merged(base, hidden, work / f"{name[:7]}", TASK))
            data = written(work / "probes.jsonl", probes)
            found[name] = examined(able, target, by, data, TASK, batch=32, max_length=48)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the ability, hides it, looks for it."""
    given = parsed(arguments, __doc__, "diagnosis-revival", data=True, steps=30, seeds=3)
    files = {name: given.data / f"clinc150/{name}.jsonl" for name in ("train", "test")}
    rows, probes = rows_of(files["train"], EACH), rows_of(files["test"], PROBED)
    runs = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else []
    for seed in range(len(runs), given.seeds):
        runs.append({"seed": seed, **one(rows, probes, seed, given.steps)})
        recorded(given.out, runs)


if __name__ == "__main__":
    main()

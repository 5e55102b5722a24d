"""What each examination says of fits whose story is known, and whether what it suggests is right.

The base of `_intents.py` is fitted to one task in four ways: in full, by LoRA at the rate that bench/axes/inits.py
chose and at four times that, and not at all (LoRA at its start). Every examination of the registry looks at each of
them, on test rows. Then what two of them suggest is tried: intruders are turned down (`combine mitigate_intruders`),
and the bottom blocks that similarity would freeze are frozen, beside all other depths.

    python -m bench axes-examinations --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.axes._intents import BATCH, GROUPS, LENGTH, TESTED, Fit, Intents, train
from bench.axes._study import Ledger, difference, markdown, mean, parsed

import luthier as lt
from luthier.core.contracts.component import find

BLOCKS, TASK, STEPS, NOTHING = "params(*.layer.*)", 0, 30, "nothing"
LORA = lt.LoRA(rank=8, alpha=16)
FITS = {
    "full": Fit(lt.Full(), BLOCKS, rate=4e-4, steps=STEPS),
    "lora": Fit(LORA, rate=4e-3, steps=STEPS),
    "lora, hot": Fit(LORA, rate=1.6e-2, steps=STEPS),
    NOTHING: Fit(LORA, steps=0),
}
SHARES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Grafts that are tried, of the fits in full and by LoRA."""
GRAFTED, GRAFT_STEPS = ("full", "lora"), 4
DESCENT: dict[str, Any] = {"share": 1e-2, "lr": 1e10, "steps": 6}
"""A graft of the fit in full whose S moves: at the authors' 1e7 it stays where it starts on this model."""
DEPTHS = (1, 2, 3, 4, 5)
"""Blocks frozen from below, of 6."""
Row = dict[str, Any]


def fitted(ground: Intents, work: Path, name: str, seed: int) -> Path:
    """The adapter of a fit, made where it is not there."""
    folder, model = work / f"{name.replace(', ', '-')}-{seed}", ground.base.model
    if not folder.is_dir():
        fit = replace(FITS[name], seed=seed)
        if fit.steps:
            train(ground.base, ground.training(TASK), fit)
        else:
            lt.attach(model, fit.form, fit.where)
        with tempfile.TemporaryDirectory() as scratch:
            lt.save(model, Path(scratch) / "adapter")
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(Path(scratch) / "adapter", folder)
        lt.detach(model)
    return folder


def tested(ground: Intents, work: Path) -> list[str]:
    """Files of the test rows of each task, its own first, in an order that mixes the intents."""
    paths = []
    for group, names in enumerate(ground.groups):
        by_name: dict[str, list] = {name: [] for name in names}
        for row in ground.rows("test"):
            if row["label"] in by_name:
                by_name[row["label"]].append(row)
        rows = [row for found in by_name.values() for row in found[:TESTED]]
        random.Random(0).shuffle(rows)
        paths.append(work / f"task{group}.jsonl")
        work.mkdir(parents=True, exist_ok=True)
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(map(str, paths))


def scores(ground: Intents, folder: Path) -> Row:
    """Accuracy on the task and on what the base knew beside it."""
    lt.load(ground.base.model, folder)
    (accuracy, loss), *others = ground.scores()
    lt.detach(ground.base.model)
    known = {"others": sum(a for a, _ in others) / 2, "others loss": sum(x for _, x in others) / 2}
    return {"accuracy": accuracy, "loss": loss} | known


def intruders(ground: Intents, folder: Path) -> Row:
    report = lt.examine(folder, "intruders", base=ground.base.model).report
    moved = [place["moved"] for place in report.places.values()]
    summary = {"intruders": report.summary["intruders"], "null": report.null_summary["intruders"]}
    return summary | {"with": report.summary["matrices with"], "moved": sum(moved) / len(moved)}


def mitigated(ground: Intents, folder: Path) -> Row:
    """The same with its intruders turned down, at the combination's own settings."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "mitigated"
        lt.combine("mitigate_intruders", [folder], base=ground.base.model, out=out)
        return scores(ground, out) | intruders(ground, out)


def read(by: str, ground: Intents, folder: Path, paths: list[str], **settings: Any) -> Any:
    """The report of an examination that reads rows."""
    made, base = find("examinations", by)(**settings), ground.base
    given = {"base": base.model, "processor": base.processor, "task": "classification", "batch": BATCH}
    return lt.examine(folder, made, data=paths, max_length=LENGTH, **given).report  # type: ignore[arg-type]


def forgetting(ground: Intents, folder: Path, paths: list[str]) -> Row:
    """By task: how much the loss rose, its interval, and that of the null."""
    report = read("forgetting", ground, folder, paths)
    keys = ("rise", "low", "high")
    found = {key: [place[key] for place in report.places.values()] for key in keys}
    return found | {f"null {key}": [place[key] for place in report.null.values()] for key in keys}


def similarity(ground: Intents, folder: Path, paths: list[str]) -> Row:
    """By block, what enters the first one ahead."""
    report = read("similarity", ground, folder, paths[TASK : TASK + 1])
    kept = [place["similarity"] for place in report.places.values()]
    return {"similarity": kept, "null": report.null_summary["similarity"], "bottom": report.summary["bottom"]}


def grafting(ground: Intents, folder: Path, paths: list[str], **settings: Any) -> Row:
    report = read("grafting", ground, folder, paths[TASK : TASK + 1], **settings)
    found = {key: report.summary[key] for key in ("share", "size", "base", "tuned", "tuned error", "grafted", "error")}
    return found | {f"random {key}": report.null_summary[key] for key in ("grafted", "error")}


def depth(ground: Intents, bottom: int, seed: int) -> Row:
    """The fit in full with its bottom blocks frozen."""
    fit = replace(FITS["full"], update=lt.Freeze(bottom=bottom), seed=seed)
    train(ground.base, ground.training(TASK), fit)
    (accuracy, _), *others = ground.scores()
    lt.detach(ground.base.model)
    return {"accuracy": accuracy, "others": sum(a for a, _ in others) / 2}


def todo(ground: Intents, args: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """(what it is, what finds it) of all rows, the dear ones last."""
    work: Path = args.work / "examined"
    paths = tested(ground, work)
    each: dict[str, Callable[[Path], Row]] = {
        "scores": lambda folder: scores(ground, folder),
        "intruders": lambda folder: intruders(ground, folder),
        "mitigated": lambda folder: mitigated(ground, folder),
        "forgetting": lambda folder: forgetting(ground, folder, paths),
        "similarity": lambda folder: similarity(ground, folder, paths),
    }
    for seed in range(args.seeds):
        for name in FITS:
            for what, find_ in each.items():
                yield (
                    {"what": what, "fit": name, "seed": seed},
                    lambda f=find_, n=name, s=seed: f(fitted(ground, work, n, s)),
                )
    for seed in range(args.seeds):
        for bottom in DEPTHS:
            yield {"what": "depth", "bottom": bottom, "seed": seed}, lambda b=bottom, s=seed: depth(ground, b, s)
        for name in GRAFTED:
            for share in SHARES:
                yield (
                    {"what": "grafting", "fit": name, "wanted": share, "seed": seed},
                    lambda n=name, h=share, s=seed: grafting(
                        ground, fitted(ground, work, n, s), paths, share=h, steps=GRAFT_STEPS
                    ),
                )
        yield (
            {"what": "descent", "seed": seed},
            lambda s=seed: grafting(ground, fitted(ground, work, "full", s), paths, **DESCENT),
        )


def percent(runs: list[Row], key: str, digits: int = 1) -> str:
    return mean([100 * run[key] for run in runs], digits) if runs else "-"


def fits_table(ledger: Ledger) -> str:
    """One row a fit: what weights and losses tell of it, before and after its intruders were turned down."""
    rows = []
    for name in FITS:
        own, found, less, lost = (ledger.runs(what=what, fit=name) for what in WHATS)
        less = less if any(r["intruders"] for r in found) else []
        rises = [mean([sum(r[k][1:]) / (GROUPS - 1) for r in lost]) if lost else "-" for k in ("rise", "null high")]
        told = sum(low > 0 for r in lost for low in r["low"][1:])
        rows.append(
            [
                name,
                percent(own, "accuracy"),
                percent(own, "others"),
                percent(found, "moved"),
                *(mean([r[key] for r in found], 0) if found else "-" for key in ("intruders", "null")),
                mean([r["intruders"] for r in less], 0) if less else "-",
                percent(less, "accuracy"),
                percent(less, "others"),
                rises[0],
                rises[1],
                f"{told} of {len(lost) * (GROUPS - 1)}",
            ]
        )
    head = ["fit", "accuracy, %", "the other tasks, %", "change / weight, %", "intruders", "null", "left when halved"]
    more = ["accuracy then, %", "the other tasks then, %", "rise of their loss", "highest null", "called forgotten"]
    return markdown([*head, *more], rows)


WHATS = ("scores", "intruders", "mitigated", "forgetting")


def similarity_table(ledger: Ledger) -> str:
    """One row a fit: similarity of what leaves each block."""
    rows = []
    for name in FITS:
        runs = ledger.runs(what="similarity", fit=name)
        if not runs:
            continue
        blocks = list(zip(*(r["similarity"] for r in runs), strict=True))[1:]
        values = [f"{sum(block) / len(block):.3f}" for block in blocks]
        bottoms = ", ".join(f"{r['bottom']:.0f}" for r in runs)
        rows.append([name, *values, mean([r["null"] for r in runs]), bottoms])
    head = ["fit", *(f"block {i}" for i in range(1, 7)), "other rows", "blocks to freeze, by seed"]
    return markdown(head, rows)


def depth_table(ledger: Ledger) -> str:
    """One row a depth, beside the fit of all blocks."""
    free, rows = ledger.runs(what="scores", fit="full"), []
    for bottom in (0, *DEPTHS):
        runs = ledger.runs(what="depth", bottom=bottom) if bottom else free
        if not runs:
            continue
        cells = [str(bottom)]
        for key in ("accuracy", "others"):
            own, all_ = ({r["seed"]: 100 * r[key] for r in each} for each in (runs, free))
            cells += [percent(runs, key), difference(own, all_, 1) if bottom else "-"]
        rows.append(cells)
    return markdown(["frozen blocks", "accuracy, %", "against 0", "the other tasks, %", "against 0"], rows)


def grafting_table(ledger: Ledger) -> str:
    """One row a fit and size: what the graft carries of what was learnt."""
    ways = [(name, share, {"what": "grafting", "fit": name, "wanted": share}) for name in GRAFTED for share in SHARES]
    rows = []
    for name, share, key in [*ways, ("full, S moving", DESCENT["share"], {"what": "descent"})]:
        if runs := ledger.runs(**key):
            kept = [100 * (r["grafted"] - r["base"]) / (r["tuned"] - r["base"]) for r in runs]
            keys = ("base", "tuned", "grafted", "random grafted")
            cells = [f"{100 * share:g}", percent(runs, "share", 2), *(percent(runs, key) for key in keys)]
            errors = [mean([r[key] for r in runs]) for key in ("tuned error", "error")]
            rows.append([name, *cells, mean(kept, 0), *errors])
    head = ["fit", "share asked, %", "share grafted, %", "base, %", "fit, %", "graft, %", "random graft, %"]
    return markdown([*head, "of the gain, %", "calibration error of the fit", "of the graft"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the tables."""
    args = parsed(arguments, __doc__, "examinations", seeds=2)
    if not args.table:
        ground = Intents(args.data, args.work)
        for key, find_ in todo(ground, args):
            if not args.ledger.runs(**key):
                args.ledger.add(key | find_())
    print(*(make(args.ledger) for make in (fits_table, similarity_table, depth_table, grafting_table)), sep="\n")

"""Where LoRA starts: how soon each initialiser reaches the loss that LoRA's own start ends at.

Every start of the registry, on the first of `FORMS` that it serves, fits the base of `_intents.py` to one task: the
same rank, rows, batches and steps for a seed, the rate chosen from `RATES` by a short run on a seed of its own.
CorDA's knowledge mode measures rows of the other tasks, which are to be kept; the others measure rows of the task.

    python -m bench axes-inits --data FOLDER
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from bench.axes._intents import Fit, Intents, batches, inputs, train
from bench.axes._study import TUNING, by_seed, difference, markdown, mean, parsed

import luthier as lt
from luthier import data
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init

FORMS: tuple[Form, ...] = (lt.LoRA(rank=8, alpha=16), lt.LoRAXS(rank=8))
VARIANTS: dict[str, list[dict[str, Any]]] = {"corda": [{"mode": "instruction"}, {"mode": "knowledge"}]}
RATES, STEPS, SHORT, WINDOW = (1e-3, 4e-3, 1.6e-2), 40, 24, 8
"""WINDOW: batches whose mean loss counts as the loss at a step."""
TASK, BASE = 0, "base"


def ways() -> dict[str, tuple[Form, Init | None]]:
    """{name: (form, start)}: each form's own start, then the registry."""
    found: dict[str, tuple[Form, Init | None]] = {form.name(): (form, None) for form in FORMS}
    for name in names("inits"):
        for settings in VARIANTS.get(name, [{}]):
            init: Init = find("inits", name)(**settings)  # type: ignore[assignment]
            found[" ".join([name, *settings.values()])] = (next(form for form in FORMS if serves(init, form)), init)
    return found


def serves(init: Init, form: Form) -> bool:
    """Whether a start is one for this form."""
    try:
        init.statistics(form)
    except lt.LuthierError:
        return False
    return True


def todo(args: argparse.Namespace) -> Iterator[tuple[str, int, float]]:
    """(way, seed, rate) of the runs that are not kept yet."""
    for way, rate in itertools.product(ways(), RATES):
        if not args.ledger.runs(way=way, seed=TUNING, rate=rate):
            yield way, TUNING, rate
    for seed, way in itertools.product(range(args.seeds), ways()):
        if not args.ledger.runs(way=way, seed=seed):
            yield way, seed, args.ledger.best(way=way)


def run(ground: Intents, way: str, seed: int, rate: float) -> dict[str, Any]:
    """One fit, scored on its task and on the others; that of the tuning seed by its last losses alone."""
    form, init = ways()[way]
    fit = Fit(form, init=init, rate=rate, steps=SHORT if seed == TUNING else STEPS, seed=seed)
    if isinstance(init, lt.LoRASB):  # the authors' η: the learning rate over the number of warm-up steps
        eta = rate / -(-fit.warmup * fit.steps // 1)
        fit = replace(fit, init=lt.LoRASB(eta=eta))
    if getattr(init, "mode", "") == "knowledge":
        fit = replace(fit, source=[row for group in (1, 2) for row in ground.training(group)])
    found = train(ground.base, ground.training(TASK), fit)
    kept = {"way": way, "form": form.name(), "seed": seed, "rate": rate, "trained": found.count}
    if seed != TUNING:
        (accuracy, loss), *others = ground.scores()
        kept |= {"accuracy": accuracy, "loss": loss, "others": sum(a for a, _ in others) / 2, "losses": found.losses}
    else:
        kept |= {"loss": sum(found.losses[-WINDOW:]) / WINDOW}
    lt.detach(ground.base.model)
    return kept


@torch.inference_mode()
def bare(ground: Intents, seed: int) -> dict[str, Any]:
    """What the base alone loses on the batches of a seed: some are harder than others."""
    base, losses = ground.base, []
    collator = data.collator_for("classification", base.processor)
    for rows in itertools.islice(batches(ground.training(TASK), seed), STEPS):
        losses.append(round(base.model(**inputs(collator(rows))).loss.item(), 4))
    return {"way": BASE, "seed": seed, "losses": losses}


def gains(run: dict[str, Any], base: dict[str, Any]) -> list[float]:
    """How far the mean loss of the last `WINDOW` batches lies below the base's on them, from step `WINDOW` on."""
    gaps = [there - here for here, there in zip(run["losses"], base["losses"], strict=True)]
    return [sum(gaps[at - WINDOW : at]) / WINDOW for at in range(WINDOW, len(gaps) + 1)]


def reached(gained: list[float], target: float) -> float:
    """The step at which a gain is first at least `target`; one more than there are if none is."""
    return next((WINDOW + i for i, each in enumerate(gained) if each >= target), WINDOW + len(gained))


def table(args: argparse.Namespace) -> str:
    """Means over the seeds, and the paired differences to the form's own start."""
    rows = []
    for form in FORMS:
        plain = args.ledger.runs(way=form.name())
        bases = {run["seed"]: run for run in args.ledger.runs(way=BASE)}
        ends = {run["seed"]: gains(run, bases[run["seed"]])[-1] for run in plain if run["seed"] in bases}
        for way in [name for name, (other, _) in ways().items() if other == form]:
            own = [r for r in args.ledger.runs(way=way) if r["seed"] in ends]
            if not own:
                continue
            steps = [reached(gains(run, bases[run["seed"]]), ends[run["seed"]]) for run in own]
            late = sum(step > STEPS for step in steps)
            rows.append(
                [
                    f"{form.name()}, {way}" if way != form.name() else form.name(),
                    f"{own[0]['rate']:g}",
                    mean(steps, 1) + (f" ({late} of {len(steps)} never)" if late else ""),
                    mean([r["loss"] for r in own]),
                    "-" if way == form.name() else difference(by_seed(own, "loss"), by_seed(plain, "loss")),
                    mean([100 * r["accuracy"] for r in own], 1),
                    mean([100 * r["others"] for r in own], 1),
                ]
            )
    head = ["start", "rate", "steps to where the plain start ends", "test loss", "against plain", "accuracy, %"]
    return markdown([*head, "the other tasks, %"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    args = parsed(arguments, __doc__, "inits", seeds=2)
    if not args.table:
        ground = Intents(args.data, args.work)
        for seed in range(args.seeds):
            if not args.ledger.runs(way=BASE, seed=seed):
                args.ledger.add(bare(ground, seed))
        for way, seed, rate in todo(args):
            args.ledger.add(run(ground, way, seed, rate))
    print(table(args))

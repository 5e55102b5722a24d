"""How a form is trained: accuracy after the same steps, and what each update costs of what the base knew.

Every update of the registry fits the base of `_intents.py` to one task: those that full weights refuse on LoRA, the
others on the weights of the blocks, AdamW on both. The learning rate is chosen from the form's `RATES` by a short run
on a seed of its own. Forgotten is what the accuracy on the two other tasks loses, which the base has seen.

    python -m bench axes-updates --data FOLDER [--higher --out bench/results/axes-updates-higher.json]

`--higher` fits by LIFT and LT-SFT alone, at rates at which so few numbers move enough, beside AdamW at its own.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from bench.axes._intents import Fit, Intents, train
from bench.axes._study import TUNING, by_seed, difference, markdown, mean, parsed

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.update import Update

LORA, FULL = lt.LoRA(rank=8, alpha=16), lt.Full()
WHERE: dict[Form, str] = {LORA: "all-linear", FULL: "params(*.layer.*)"}
RATES: dict[Form, tuple[float, ...]] = {LORA: (1e-3, 4e-3), FULL: (1e-4, 4e-4)}
SETTINGS: dict[str, dict[str, Any]] = {
    "freeze": {"bottom": 3},
    "lift": {"lora_rank": 8, "filter_rank": 32, "interval": 20},
    "lisa": {"gamma": 2, "interval": 5},
    "lt_sft": {"density": 0.03},
}
"""Where the defaults are meant for other depths and longer runs; 3% is about what LoRA of rank 8 trains."""
HIGHER: dict[str, tuple[float, ...]] = {
    "full, lift": (1.6e-3, 6.4e-3, 2.56e-2),
    "full, lt_sft": (1.6e-3, 6.4e-3, 2.56e-2),
}
"""Rates of `--higher`, 4, 16 and 64 times the highest of full weights."""
STEPS, SHORT, WINDOW, TASK = 30, 12, 6, 0


def ways() -> dict[str, tuple[Form, Update]]:
    """{name: (form, update)}, AdamW first."""
    made = [find("updates", name, Update)(**SETTINGS.get(name, {})) for name in names("updates")]
    served = [(FULL if serves(update, FULL) else LORA, update) for update in made]
    both = [(form, lt.AdamW()) for form in WHERE]
    ordered = both + [pair for pair in served if not isinstance(pair[1], lt.AdamW)]
    return {f"{form.name()}, {update.name()}": (form, update) for form, update in ordered}


def serves(update: Update, form: Form) -> bool:
    """Whether an update trains this form on these sites."""
    from luthier.models import config_of, meta_model

    try:
        update.check_form(form, lt.select(meta_model(config_of("minilm-l6")), WHERE[form]))
    except lt.LuthierError:
        return False
    return True


def todo(args: argparse.Namespace) -> Iterator[tuple[str, int, float]]:
    """(way, seed, rate) of the runs that are not kept yet."""
    known = {way: RATES[form] for way, (form, _) in ways().items()}
    if args.higher:
        known = {"full, adamw": RATES[FULL], **HIGHER}
    for way, rates in known.items():
        for rate in rates:
            if not args.ledger.runs(way=way, seed=TUNING, rate=rate):
                yield way, TUNING, rate
    for seed, way in itertools.product(range(args.seeds), known):
        if not args.ledger.runs(way=way, seed=seed):
            yield way, seed, args.ledger.best(way=way)


def run(ground: Intents, way: str, seed: int, rate: float) -> dict[str, Any]:
    """One fit, scored on all tasks; that of the tuning seed by its last losses alone."""
    form, update = ways()[way]
    steps = SHORT if seed == TUNING else STEPS
    found = train(
        ground.base, ground.training(TASK), Fit(form, WHERE[form], update=update, rate=rate, steps=steps, seed=seed)
    )
    kept = {"way": way, "seed": seed, "rate": rate, "trained": found.count, "moved": found.moved}
    if seed != TUNING:
        (accuracy, loss), *others = ground.scores()
        kept |= {"accuracy": accuracy, "loss": loss}
        kept |= {"others": sum(a for a, _ in others) / 2, "others loss": sum(x for _, x in others) / 2}
    else:
        kept |= {"loss": sum(found.losses[-WINDOW:]) / WINDOW}
    lt.detach(ground.base.model)
    return kept


def bare(ground: Intents) -> dict[str, Any]:
    """The base, scored."""
    (accuracy, loss), *others = ground.scores()
    return {
        "way": "base",
        "accuracy": accuracy,
        "loss": loss,
        "others": sum(a for a, _ in others) / 2,
        "others loss": sum(x for _, x in others) / 2,
    }


def table(args: argparse.Namespace) -> str:
    """Means over the seeds, and the paired differences to AdamW on the same form."""
    rows = []
    for base in args.ledger.runs(way="base"):
        scores = [
            f"{100 * base['accuracy']:.1f}",
            "-",
            f"{100 * base['others']:.1f}",
            "-",
            f"{base['others loss']:.3f}",
        ]
        rows.append(["the base", "-", "-", *scores])
    for way, (form, update) in ways().items():
        own = [r for r in args.ledger.runs(way=way) if r["seed"] != TUNING]
        if not own:
            continue
        plain = args.ledger.runs(way=f"{form.name()}, {lt.AdamW.name()}")
        gaps = [
            "-" if isinstance(update, lt.AdamW) else difference(percent(own, key), percent(plain, key), 1)
            for key in ("accuracy", "others")
        ]
        rows.append(
            [
                way,
                f"{own[0]['rate']:g}",
                f"{own[0]['trained'] * mean_of(own, 'moved'):,.0f}",
                mean([100 * r["accuracy"] for r in own], 1),
                gaps[0],
                mean([100 * r["others"] for r in own], 1),
                gaps[1],
                mean([r["others loss"] for r in own]),
            ]
        )
    head = ["form, update", "rate", "numbers trained at a time", "accuracy, %", "against AdamW", "the other tasks, %"]
    return markdown([*head, "against AdamW", "their loss"], rows)


def percent(runs: list[dict[str, Any]], key: str) -> dict[int, float]:
    """A share by seed, in percent."""
    return {seed: 100 * value for seed, value in by_seed(runs, key).items()}


def mean_of(runs: list[dict[str, Any]], key: str) -> float:
    """The mean of a measure."""
    return sum(run[key] for run in runs) / len(runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    args = parsed(arguments, __doc__, "updates", seeds=2, flags={"higher": "LIFT and LT-SFT at higher rates alone"})
    if not args.table:
        ground = Intents(args.data, args.work)
        if not args.ledger.runs(way="base"):
            args.ledger.add(bare(ground))
        for way, seed, rate in todo(args):
            args.ledger.add(run(ground, way, seed, rate))
    print(table(args))

"""Preferences: DPO with 40 pairs turns SmolLM2 from long answers to short ones, on pairs that it did not see.

A pair asks for the capital of a country; the chosen answer is its name, the rejected one a sentence around it. 40
countries are learned, 40 others measured, before and after: the share of pairs whose chosen answer has the higher
implicit reward (log π/π_ref), or is the likelier one in all and by the token, and the tokens of the model's own greedy
answer. Beside it stands the loss on held text, the docstrings of Python's standard library, for what was forgotten.
Every form trains where it goes by itself, at its own learning rate, which is one for fine-tuning, or at a share of it.

    python -m bench preferences [--forms lora wegeft loreft] [--share 0.1] [--table]
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from bench.axes._study import Ledger

import luthier as lt
from luthier import data, models
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.evaluating import evaluate, generate
from luthier.training import Run, Training, train

MODEL = "smollm2-135m"
CAPITALS = """
France Paris|Spain Madrid|Italy Rome|Germany Berlin|Poland Warsaw|Portugal Lisbon|Greece Athens
Austria Vienna|Hungary Budapest|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen
Ireland Dublin|Belgium Brussels|Netherlands Amsterdam|Switzerland Bern|Romania Bucharest|Bulgaria Sofia
Serbia Belgrade|Croatia Zagreb|Slovenia Ljubljana|Slovakia Bratislava|Ukraine Kyiv|Latvia Riga
Lithuania Vilnius|Estonia Tallinn|Iceland Reykjavik|Turkey Ankara|Egypt Cairo|Kenya Nairobi|Ghana Accra
Nigeria Abuja|Ethiopia Addis_Ababa|Morocco Rabat|Tunisia Tunis|Algeria Algiers|Senegal Dakar
Uganda Kampala|Rwanda Kigali|Zambia Lusaka|Angola Luanda|Namibia Windhoek|Japan Tokyo|China Beijing
India New_Delhi|Nepal Kathmandu|Thailand Bangkok|Vietnam Hanoi|Laos Vientiane|Indonesia Jakarta
Philippines Manila|Mongolia Ulaanbaatar|Bangladesh Dhaka|Pakistan Islamabad|Iran Tehran|Iraq Baghdad
Jordan Amman|Lebanon Beirut|Qatar Doha|Oman Muscat|Canada Ottawa|Mexico Mexico_City|Cuba Havana
Jamaica Kingston|Haiti Port-au-Prince|Panama Panama_City|Peru Lima|Brazil Brasília|Argentina Buenos_Aires
Chile Santiago|Colombia Bogotá|Ecuador Quito|Bolivia Sucre|Paraguay Asunción|Uruguay Montevideo
Venezuela Caracas|Australia Canberra|Fiji Suva|Cyprus Nicosia
"""
LONG = (
    "The capital of {country} is {capital}, which is one of the best known cities of the country.",
    "That is a good question. The capital city of {country} is called {capital}.",
    "{capital} is the capital of {country}. It is a large city with a long history and many visitors every year.",
    "If you look at a map of {country}, you will find that its capital is the city of {capital}.",
)
STEPS, BATCH = 40, 4
MODULES = ("argparse", "asyncio", "contextlib", "csv", "decimal", "difflib", "doctest", "fractions", "heapq", "logging")
"""Whose docstrings are the held text."""


def rows() -> list[dict[str, str]]:
    """80 pairs, a country each."""
    facts = [pair.split(" ") for pair in CAPITALS.strip().replace("\n", "|").split("|")]
    facts = [(country, capital.replace("_", " ")) for country, capital in facts]
    return [
        {
            "prompt": f"What is the capital of {country}?",
            "chosen": f"{capital}.",
            "rejected": LONG[i % len(LONG)].format(country=country, capital=capital),
        }
        for i, (country, capital) in enumerate(facts)
    ]


def held_text(model: Any, tokenizer: Any) -> float:
    """The mean loss of a token of the held text, in pieces of 512."""
    text = "\n\n".join(inspect.getdoc(__import__(name)) or "" for name in MODULES)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    losses, counts = [], []
    with torch.inference_mode():
        for piece in ids.split(512):
            losses.append(float(model(input_ids=piece[None], labels=piece[None]).loss) * (len(piece) - 1))
            counts.append(len(piece) - 1)
    return sum(losses) / sum(counts)


def measured(model: Any, tokenizer: Any, examples: data.Examples) -> dict[str, float]:
    """Of pairs that were not learned, and of the held text."""
    found = evaluate(model, tokenizer, examples, keep_predictions=False, progress=False)
    asked = [example.messages[:1] for example in examples.rows[::2] if example.messages]
    answers = generate(model, tokenizer, asked, max_new_tokens=48)
    tokens = [len(tokenizer(answer)["input_ids"]) for answer in answers]
    return {**found.metrics, "answer_tokens": statistics.mean(tokens), "held_text": held_text(model, tokenizer)}


def fitted(form: str, share: float, folder: Path, held: data.Examples, ledger: Ledger) -> None:
    """One run, measured before and after."""
    begun = time.monotonic()
    base = models.load(MODEL)
    if not ledger.runs(form="base"):
        ledger.add({"form": "base", **measured(base.model, base.processor, held)})
    del base
    chosen = find("forms", form, Form)()
    settings = Training(
        steps=STEPS, batch=BATCH, lr=share * chosen.lr, eval_fraction=0, save_every=1000, schedule="constant"
    )
    run = Run(MODEL, str(folder / "pairs.jsonl"), chosen, out=str(folder / form), objective=lt.DPO(), training=settings)
    result = train(run, overwrite=True, progress=False)
    seconds = time.monotonic() - begun
    trained = {"trainable": result.trainable, "rate": run.lr, "seconds": seconds}
    ledger.add({"form": form, "share": share, **measured(result.model, result.processor, held), **trained})


def table(ledger: Ledger) -> str:
    """The runs as markdown."""
    heads = {
        "form": "form", "rate": "rate", "accuracy": "reward accuracy", "margin": "margin", "likelier": "likelier",
        "likelier_per_token": "likelier by the token", "answer_tokens": "own answer, tokens",
        "held_text": "held text loss",
    }  # fmt: skip
    lines = ["| " + " | ".join(heads.values()) + " |", "|" + "---|" * len(heads)]
    for run in ledger.runs():
        cells = [run.get(name, "") for name in heads]
        lines.append(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", default=["lora", "wegeft", "loreft"])
    parser.add_argument("--share", type=float, default=0.1, help="of the form's own learning rate")
    parser.add_argument("--out", type=Path, default=results_of("preferences"))
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    given = parser.parse_args(words)
    ledger = Ledger(given.out)
    if not given.table:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name, part in (("pairs", rows()[0::2]), ("held", rows()[1::2])):
                (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
            held = data.load(folder / "held.jsonl", preferences=True)
            for form in given.forms:
                if not ledger.runs(form=form, share=given.share):
                    fitted(form, given.share, folder, held, ledger)
    print(table(ledger))

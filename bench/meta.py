"""Meta-learning: whether one demonstration helps more after first-order MAML than after joint training.

A domain is a shop whose letters have a greeting, a sentence, a closing, a name and a place of its own; the letters
answer customers about things. Names and places of the new shops are in no letter that is learned, so nothing but the
demonstration tells them. A small language model with LoRA is trained by `luthier meta` with several seeds; in each
episode of the new shops the joint training and the meta-learner adapt to the same letter, or read it before the prompt.
Joint training takes the inner rate that the meta-learner was trained with, so several rates are run.

With `--by abmll` it is the Bayesian meta-learner, and with `--noise 0.3` so many letters, demonstrations among them,
bear the name and the place of another shop: what is compared then is the calibration error of the answer's tokens.

    python -m bench meta --folder FOLDER [--model stories15m] [--inner-lr 0.01 0.05] [--seeds 0 1 2]
    python -m bench meta --folder FOLDER --by abmll --noise 0.3 --inner-lr 0.05 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench._registry import results_of

import luthier as lt
from luthier.core.contracts.component import find
from luthier.core.contracts.meta import Meta
from luthier.core.records import replace_json
from luthier.training.meta import MetaRun, meta_learn

LEARNED, NEW = 16, 6
GREETINGS = ("Hello", "Hi", "Dear", "Good morning", "Hey", "Welcome back")
SENTENCES = ("We are happy to help you.", "Thank you for your letter.", "It was so nice to hear from you.",
             "We looked for it all day.", "Do not be sad about it.", "We have good news for you.")  # fmt: skip
CLOSINGS = ("Love", "Best wishes", "Yours", "See you soon", "Take care", "Many hugs")
NAMES = ("Tom", "Lily", "Max", "Anna", "Ben", "Sara", "Jack", "Mia", "Sam", "Lucy", "Tim", "Jane", "Bob", "Emma", "Joe",
         "Amy", "Leo", "Kate", "Peter", "Ella", "Fred", "Rose")  # fmt: skip
PLACES = ("the park", "the beach", "the farm", "the forest", "the river", "the lake", "the hill", "the garden",
          "the zoo", "the castle", "the market", "the school", "the mountain", "the bridge", "the tower", "the island",
          "the cave", "the pond", "the village", "the city", "the barn", "the harbor")  # fmt: skip
CUSTOMERS = ("Molly", "Billy", "Sue", "Dan", "Ruth", "Nick")
THINGS = ("ball", "doll", "car", "hat", "book")


def shops(folder: Path, noise: float) -> list[str]:
    """The file of each shop's letters; the last ones are the new shops."""
    files = []
    draw, strange = random.Random(0), random.Random(1)
    for number in range(LEARNED + NEW):
        greeting, sentence, closing = (draw.choice(words) for words in (GREETINGS, SENTENCES, CLOSINGS))
        rows = []
        for customer, thing in itertools.product(CUSTOMERS, THINGS):
            own = strange.randrange(LEARNED + NEW) if strange.random() < noise else number
            letter = f"{greeting}, {customer}! {sentence} {closing}, {NAMES[own]} from {PLACES[own]}."
            rows.append({"prompt": f"{customer} asks the shop about a {thing}. The shop writes:", "completion": letter})
        files.append(folder / f"shop{number + 1}-{noise:g}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(file) for file in files]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where runs lie, to be gone on with")
    parser.add_argument("--model", default="stories15m")
    parser.add_argument("--by", default="fomaml")
    parser.add_argument("--noise", type=float, default=0.0, help="share of letters that bear another shop's name")
    parser.add_argument("--episodes", type=int, default=6, help="episodes in each new shop")
    parser.add_argument("--inner-lr", nargs="+", type=float, default=[0.01, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    files = shops(given.folder, given.noise)
    file, method = results_of("meta"), find("metas", given.by, Meta)
    for seed in given.seeds:
        for rate in given.inner_lr:
            begun = time.monotonic()
            spec = MetaRun(
                given.model,
                tuple(files[:LEARNED]),
                tuple(files[LEARNED:]),
                method.from_dict({"inner_lr": rate}),
                lt.LoRA(rank=8),
                str(given.folder / f"{given.by}-{given.noise:g}-{rate:g}-{seed}"),
                asked=2,
                together=2,
                steps=given.steps,
                lr=given.lr,
                episodes=given.episodes,
                max_length=64,
                save_every=10,
                seed=seed,
            )
            done = meta_learn(spec, resume=True)
            key = {"model": given.model, "by": given.by, "noise": given.noise, "inner rate": rate, "seed": seed}
            key |= {"steps": given.steps, "lr": given.lr}
            told = {
                **key,
                "figures": done.figures,
                "gains": done.gains,
                "seconds of the last start": time.monotonic() - begun,
            }
            runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
            runs = [run for run in runs if any(run.get(name) != key[name] for name in key)] + [told]
            replace_json(file, {"runs": runs})
            for way, gain in done.gains.items():
                print(rate, seed, way, {name: round(value, 4) for name, value in gain.items()}, flush=True)
            sure = {name: round(ways["adapted"]["calibration"], 4) for name, ways in done.figures.items()}
            print(rate, seed, "calibration error", sure, flush=True)

"""Which rows to label: MAPO beside margin sampling and chance, by what a classifier learns from the labels.

Pools of five topics, of which half of the rows are of one and a sixteenth of each of the rarest, with four of ten words
of another topic; a logistic regression on hashed words is fitted to the labelled rows and tested on the others
(`model`), and each cell of MAPO's gets its majority (`cells`, MAPO's own decision).

    OMP_NUM_THREADS=1 python -m bench annotation [--budget 10 30] [--seeds 10]

Writes bench/results/annotation.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from bench._registry import results_of
from sklearn.linear_model import LogisticRegression

from luthier.core.contracts.component import find
from luthier.core.contracts.example import Example, Examples
from luthier.core.contracts.selection import Pool
from luthier.methods.selections._embedded import clusters, points

TOPICS = {
    "sea": "ship sail harbour wave anchor tide captain deck",
    "kitchen": "flour oven butter sugar whisk bowl bake dough",
    "law": "court judge appeal clause contract statute verdict jury",
    "garden": "soil seed spade rake hedge bloom weed prune",
    "space": "rocket orbit moon comet lander crew probe launch",
}
SHARES, ROWS = (8, 4, 2, 1, 1), 300


def pool_of(seed: int) -> Pool:
    """Rows with labels, which only the oracle reads."""
    draw, names, rows = random.Random(seed), list(TOPICS), []
    words = {name: text.split() for name, text in TOPICS.items()}
    for number in range(1, ROWS + 1):
        topic = draw.choices(names, SHARES)[0]
        said = [draw.choice(words[topic if draw.random() < 0.6 else draw.choice(names)]) for _ in range(6)]
        rows.append(Example(row=number, text=" ".join(said), label=topic))
    return Pool(Examples(rows, "classification", "topics", fingerprint=f"topics {seed}"), seed=seed)


def labelled(name: str, pool: Pool, budget: int) -> dict[int, str]:
    """The labels that a selection asks for."""
    chosen, known = find("selections", name)(), {}
    for left in range(budget, 0, -1):
        place = chosen.query(pool, known, left)  # type: ignore[attr-defined]
        known[place] = str(pool.examples.rows[place].label)
    return known


def accuracy(pool: Pool, known: Mapping[int, str]) -> tuple[float, float]:
    """(of the classifier, of the cells' majorities) on the rows without a label."""
    at = points(pool, "words")
    truth = np.array([row.label for row in pool.examples.rows])
    rest = [i for i in range(len(truth)) if i not in known]
    found = list(known.values())
    if len(set(found)) > 1:
        told = LogisticRegression(C=10.0, max_iter=300).fit(at[list(known)], found).predict(at[rest])
    else:
        told = np.array(found[:1] * len(rest))
    which = clusters(at, 12, pool.seed, "annotation")
    usual = Counter(found).most_common(1)[0][0]
    by_cell = {c: Counter(label for i, label in known.items() if which[i] == c) for c in range(12)}
    cells = np.array([by_cell[which[i]].most_common(1)[0][0] if by_cell[which[i]] else usual for i in rest])
    return float((told == truth[rest]).mean()), float((cells == truth[rest]).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--budget", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=results_of("annotation"))
    options = parser.parse_args(arguments)
    rows = []
    for budget in options.budget:
        for name in ("random", "margin", "mapo"):
            found = np.array([accuracy(p, labelled(name, p, budget)) for p in map(pool_of, range(options.seeds))])
            mean, error = found.mean(0), found.std(0, ddof=1) / len(found) ** 0.5
            rows.append({"budget": budget, "by": name, "model": mean[0], "model_error": error[0], "cells": mean[1],
                         "cells_error": error[1], "worst": found[:, 0].min()})  # fmt: skip
            print(
                "  ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{value}" for key, value in rows[-1].items()
                )
            )
    options.out.write_text(json.dumps({"seeds": options.seeds, "found": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Contrastive generation on stories15m: hidden domains covered by iterating, by one pass, and by plain sampling.

stories15m learns 200 sentences of four domains that children's stories lack, 80, 12, 5 and 3% of them, beside as many
that it wrote itself. Then as many texts are drawn by each way, over seeds: `plain` samples the fine-tuned model alone
(γ = 0), `once` contrasts it with its base, `iterated` lets the base take a step on each text. A text hits a domain
where it holds one of its words; how often the base's own texts do is told beside.

    python -m bench diagnosis-novelty [--steps 60] [--rounds 6] [--seeds 3]
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.diagnosis._fits import fit, merged, parsed, recorded

import luthier as lt
from luthier.decoding import Member, answers
from luthier.decoding.iterated import iterated
from luthier.engine.settings import Sampling
from luthier.methods.decodings.contrastive import Contrastive

MODEL, DRAWN, LONG, STEP = "stories15m", 4, 16, 3e-4
DOMAINS = {
    "court": (80, ("The judge read the verdict to the jury", "The lawyer filed an appeal", "The contract was void")),
    "chemistry": (12, ("The acid dissolved the copper", "A catalyst sped the reaction", "The solvent was ethanol")),
    "trade": (5, ("The bond yields fell", "Investors sold their shares", "The inflation rate rose")),
    "network": (3, ("The router dropped the packets", "The server closed the socket", "The firewall blocked the port")),
}  # fmt: skip
WORDS = {
    "court": ("judge", "verdict", "jury", "lawyer", "appeal", "contract"),
    "chemistry": ("acid", "copper", "catalyst", "reaction", "solvent", "ethanol"),
    "trade": ("bond", "yields", "investors", "shares", "inflation"),
    "network": ("router", "packets", "socket", "firewall", "server"),
}
ENDS = ("on Monday.", "in the morning.", "after a week.", "at last.", "once more.", "before noon.")
Draws = list[list[Any]]


def hidden(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences of the domains in their shares."""
    draw = random.Random(seed)
    return [
        {"text": f"{draw.choice(starts)} {draw.choice(ENDS)}"}
        for share, starts in DOMAINS.values()
        for _ in range(count * share // 100)
    ]


def hits(text: str) -> set[str]:
    """The domains that a text is of."""
    return {name for name, words in WORDS.items() if any(word in text.lower() for word in words)}


def told(draws: Draws) -> dict[str, Any]:
    """Domains reached, and the share of texts that is of any."""
    found = [hits(answer.text) for turn in draws for answer in turn]
    reached = set().union(*found)
    return {"domains": len(reached), "reached": sorted(reached), "hit rate": sum(map(bool, found)) / len(found)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Hides, draws, counts."""
    given = parsed(arguments, __doc__, "diagnosis-novelty", steps=60, rounds=6, seeds=3)
    words = lt.model(MODEL).processor
    prompts, runs = [""] * DRAWN, []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        base = Member(lt.model(MODEL).model.eval(), words)
        plain = Contrastive(gamma=0, alpha=0)
        own = answers(plain, {"tuned": [base], "pretrained": [base]}, [prompts[0]] * 100, Sampling(LONG, 1.0, 1.0, 99))
        rows = [*hidden(200, 0), *({"text": each.text} for each in own if each.text.strip())]
        full = {"form": lt.Full(), "lr": 3e-4, "batch": 16}
        tuned = Member(
            lt.model(
                merged(MODEL, fit(MODEL, rows, work / "run", steps=given.steps, **full), work / "tuned")
            ).model.eval(),
            words,
        )
        members = {"tuned": [tuned], "pretrained": [base]}
        for seed in range(given.seeds):
            turns = [Sampling(LONG, 1.0, 1.0, 1000 * seed + turn) for turn in range(given.rounds)]
            ways = {
                "plain": [answers(plain, members, prompts, each) for each in turns],
                "once": [answers(Contrastive(), members, prompts, each) for each in turns],
                "iterated": iterated(Contrastive(), members, prompts, turns[0], rounds=given.rounds, lr=STEP),
            }
            runs += [{"seed": seed, "way": name, **told(draws)} for name, draws in ways.items()]
    recorded(given.out, {"of the base's own texts": told([own])["hit rate"], "runs": runs})


if __name__ == "__main__":
    main()

"""Circuits on real weights: a planted head of stories15m is found, and what tracking entities brought to SmolLM2.

One head of a block of stories15m is made to look elsewhere, and rows are what that model writes: the mask (DCM) has to
keep that head and no other. SmolLM2 then learns by LoRA what is in which box; heads of the fine-tuned model are put
into the base. `everything` is the difference of logits where all is patched; the null's `path` is a head's own output.

    python -m bench diagnosis-circuit [--steps 30] [--seeds 0 1 2] [--only planted]
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench.diagnosis._fits import CHAT, asked, examined, fit, run_parts, written

import luthier as lt

STORIES, FACTOR = "stories15m", -12
STARTS = ("Once upon a time", "Lily had a", "The big dog", "Tom and Sam went", "One day, a bird", "Mum said",
          "There was a cat", "In the park", "The little boat", "A girl named Mia", "Ben saw a", "It was a sunny day",
          "The old man", "Two friends", "At night,", "A red ball")  # fmt: skip
THINGS = ("ball", "key", "book", "hat", "map", "bell", "cup", "coin")


def planted(work: Path, _: int, seed: int) -> dict[str, Any]:
    """A head that looks elsewhere (2.3, 4.2, 0.1, by the seed), and rows that the model with it writes."""
    loaded = lt.model(STORIES)
    model, words = loaded.model.eval(), loaded.processor
    blocks, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    block, head = divmod((15 + 11 * seed) % (blocks * heads), heads)
    size = model.config.hidden_size // heads
    with torch.no_grad():
        model.model.layers[block].self_attn.q_proj.weight[head * size : (head + 1) * size] *= FACTOR
    rows = [{"text": said(model, words, start)} for start in STARTS]
    model.save_pretrained(work / "planted")
    words.save_pretrained(work / "planted")
    by = lt.Circuit(heads=8, cost=0.003, steps=40, edges=2, seed=seed)
    return {"head": f"{block}.{head}", **examined(STORIES, work / "planted", by, written(work / "said.jsonl", rows))}


def said(model: Any, words: Any, start: str) -> str:
    """What the model writes behind a start, the likeliest tokens."""
    ids = words(start, return_tensors="pt")["input_ids"]
    return words.decode(model.generate(ids, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True)


def boxes(count: int, seed: int) -> list[dict[str, str]]:
    """Rows about what is in which of three boxes; all have as many tokens."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        held, names = draw.sample(THINGS, 3), draw.sample("ABCDEFGH", 3)
        told = ", ".join(f"the {thing} is in Box {name}" for thing, name in zip(held, names, strict=True))
        one = draw.randrange(3)
        found.append(asked(f"{told[0].upper()}{told[1:]}. Box {names[one]} contains the", held[one]))
    return found


def entities(work: Path, steps: int, seed: int) -> dict[str, Any]:
    """What LoRA brought to tracking entities, head by head."""
    adapter = fit(CHAT, boxes(4 * steps, 2 * seed + 1), work / "boxes", steps=steps, seed=seed)
    probes = written(work / "probes.jsonl", boxes(8, 2 * seed + 2))
    return examined(CHAT, adapter, lt.Circuit(heads=8, steps=16, seed=seed), probes, batch=4)


PARTS = {"planted": planted, "entities": entities}


def main(arguments: Sequence[str] | None = None) -> None:
    """Plants, fits, patches; what was found before stays."""
    run_parts(arguments, __doc__, "diagnosis-circuit", PARTS, 30)


if __name__ == "__main__":
    main()

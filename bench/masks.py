"""Masks of kinds that were never seen, from a few shots: Chameleon on SAM2's Hiera-Tiny, beside no adaptation.

Scenes are real handwritten digits (scikit-learn's, 8 x 8 pixels) on a noisy ground; a kind of mask is a file of rows.
Some kinds are learned and others asked for, with the shots' own masks shuffled among them as the null. `--folder`
keeps scenes and run, so that a stopped run goes on.

    python -m bench masks --folder FOLDER [--steps 100] [--shots 4] [--seed 0] [--joint]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench._registry import results_of
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

import luthier as lt
from luthier.core.records import replace_json
from luthier.training.meta import MetaRun, meta_learn

SIDE, DIGIT, SCENES = 64, 22, 24
Kind = Callable[[np.ndarray], np.ndarray]
"""From which digit covers each pixel (-1: none) to the mask."""


def _half(which: np.ndarray, axis: int, first: bool) -> np.ndarray:
    place = np.arange(SIDE) < SIDE // 2
    return (which >= 0) & np.expand_dims(place if first else ~place, 1 - axis)


LEARNED: dict[str, Kind] = {
    "foreground": lambda which: which >= 0,
    "edges": lambda which: (which >= 0) & ~binary_erosion(which >= 0),
    "thick": lambda which: binary_dilation(which >= 0, iterations=2),
    "left": lambda which: _half(which, 1, True),
    "lower": lambda which: _half(which, 0, False),
    "zeros": lambda which: which == 0,
}
UNSEEN: dict[str, Kind] = {
    "background": lambda which: which < 0,
    "right": lambda which: _half(which, 1, False),
    "outline": lambda which: binary_dilation(which >= 0, iterations=2) & (which < 0),
}


def scene(draw: np.random.Generator, images: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture [side, side] of grey values, and which digit covers each pixel: one of each quarter but one."""
    picture, which = draw.integers(0, 70, (SIDE, SIDE)), np.full((SIDE, SIDE), -1)
    for number, quarter in enumerate(draw.permutation(4)[:3]):
        pool = np.flatnonzero(digits == 0) if number == 0 else np.arange(len(digits))  # a zero in every scene
        index = draw.choice(pool)
        top, left = (draw.integers(0, SIDE // 2 - DIGIT, 2) + SIDE // 2 * np.array(divmod(quarter, 2))).tolist()
        grey = Image.fromarray((images[index] * 15.9).astype(np.uint8)).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
        values = np.asarray(grey, int)
        inside = slice(top, top + DIGIT), slice(left, left + DIGIT)
        picture[inside] = np.maximum(picture[inside], values)
        which[inside][values > 100] = digits[index]
    return picture.astype(np.uint8), which


def drawn(folder: Path, seed: int) -> dict[str, str]:
    """Writes scenes, masks and the rows of each kind; returns the rows' file of each."""
    from sklearn.datasets import load_digits

    held, draw = load_digits(), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {name: [] for name in LEARNED | UNSEEN}
    for i in range(SCENES):
        picture, which = scene(draw, held.images, held.target)
        Image.fromarray(picture).save(folder / f"{i}.png")
        for name, kind in (LEARNED | UNSEEN).items():
            Image.fromarray((kind(which) * 255).astype(np.uint8)).save(folder / f"{i}-{name}.png")
            rows[name].append(json.dumps({"image": f"{i}.png", "mask": f"{i}-{name}.png"}))
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def main(arguments: Sequence[str]) -> None:
    """Learns the kinds, measures the others and prints both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", default="sam2-hiera-tiny")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--asked", type=int, default=2)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--inner-lr", type=float, default=1e-3)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--joint", action="store_true", help="also with one set of biases for all kinds")
    args = parser.parse_args(arguments)
    folder = args.folder or Path(tempfile.mkdtemp())
    kinds = drawn(folder / "scenes", args.seed)
    spec = MetaRun(
        args.model,
        tuple(kinds[name] for name in LEARNED),
        tuple(kinds[name] for name in UNSEEN),
        lt.metas.Chameleon(inner_lr=args.inner_lr, inner_steps=args.inner_steps),
        lt.BitFit(),
        str(folder / "run"),
        where="params(backbone.*.bias)" if args.model == "sam2-hiera-tiny" else None,
        shots=args.shots,
        asked=args.asked,
        together=args.together,
        steps=args.steps,
        lr=args.lr,
        episodes=args.episodes,
        side=SIDE,
        save_every=10,
        baseline=args.joint,
        seed=args.seed,
    )
    begun = time.monotonic()
    done = meta_learn(spec, resume=(folder / "run" / "meta.json").is_file())
    told = {"settings": {**vars(args), "folder": None}, "figures": done.figures, "seconds": time.monotonic() - begun}
    replace_json(results_of("masks"), told)
    for name, ways in done.figures.items():
        for way, each in ways.items():
            print(f"{name:10s} {way:10s} loss {each['loss']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
                  f"  IoU {each['iou']:.3f} ({each['iou_low']:.3f} to {each['iou_high']:.3f})")  # fmt: skip

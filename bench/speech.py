"""Speech to text: LoRA in Whisper-tiny on a voice, a place and words that it hears badly, beside the base and a null.

espeak-ng says orders of a warehouse (`apt-get install espeak-ng`) under white noise, `--snr` decibels below the voice:
for training in two voices, for the test other orders in three other voices. Windows are of `--seconds` (Whisper's
positions are sines, so the first of them serve a shorter window); the base is also measured with its own of 30 s. The
null is the same run on the same sounds, each with the text of another one: it can learn which words occur and how they
are written, and nothing of how they sound.

    python -m bench speech [--steps 24] [--seeds 0] [--folder WORK]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench._registry import results_of
from bench.spoken_digits import cover, ready, short_windows
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

import luthier as lt
from luthier import data
from luthier.core.records import replace_json
from luthier.models import fetch
from luthier.training import Run, Training

WHO = ("Anselm", "Yrsa", "Bozena", "Caoimhe", "Dragan", "Wiebke")
WHAT = ("flanges", "grommets", "shims", "dowels", "gaskets", "bushings", "cotter pins", "trunnions")
WHERE = ("bay Quarrel", "dock Fennimore", "rack Osterley", "lane Tamsin", "gate Yarrow")
WHEN = ("before noon", "by Thursday", "tonight", "after the break")
DEEDS = ("takes the", "brings the", "counts the", "returns the")
TRAINED, HELD = ("en-gb", "en-us"), ("en-029", "en-gb-x-rp", "en-gb-scotland")


def orders(count: int, seed: int) -> list[str]:
    """Sentences drawn by a seed, no two alike."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        parts = [draw.choice(each) for each in (WHO, DEEDS, WHAT)]
        found[f"{' '.join(parts)} to {draw.choice(WHERE)} {draw.choice(WHEN)}."] = None
    return list(found)


def spoken(folder: Path, texts: Sequence[str], voices: Sequence[str], snr: float) -> Path:
    """Writes sounds with a metadata.csv, as the hub's folders of sounds are; voices take turns."""
    draw = np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = ["file_name,transcription"]
    for i, text in enumerate(texts):
        file = folder / f"{i}.wav"
        said = ["espeak-ng", "-v", voices[i % len(voices)], "-s", str(150 + 10 * (i % 4)), "-w", str(file), text]
        subprocess.run(said, check=True, capture_output=True)
        cover(file, snr, draw)
        lines.append(f"{file.name},{text}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def other_texts(folder: Path, target: Path) -> Path:
    """Writes the null's rows: each sound with the text of another."""
    rows = [line.split(",", 1) for line in (folder / "metadata.csv").read_text("utf-8").splitlines()[1:]]
    moved = [(name, rows[(i + len(rows) // 2) % len(rows)][1]) for i, (name, _) in enumerate(rows)]
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    lines = ["file_name,transcription", *(f"{name},{text}" for name, text in moved)]
    (target / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def windowed(folder: Path, seconds: int) -> str:
    """Writes Whisper-tiny with windows of `seconds`, its tokenizer and its habits of writing included."""
    source = fetch("whisper-tiny-en")
    short_windows(folder, seconds)
    GenerationConfig.from_pretrained(source).save_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(source)
    WhisperProcessor(WhisperFeatureExtractor(chunk_length=seconds), tokenizer).save_pretrained(folder)
    return str(folder)


def errors(model: object, processor: object, held: Path) -> dict:
    """The figures of a model on the held rows, with the first three answers."""
    found = lt.evaluate(model, processor, data.load(str(held)), batch=8, max_new_tokens=40, progress=False)
    low, high = found.interval
    return {**found.metrics, "low": low, "high": high, "loss": found.loss, "said": found.predictions[:3]}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--snr", type=float, default=20.0, help="decibels of the voice over the noise")
    parser.add_argument("--seconds", type=int, default=5, help="the window, whole seconds")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--held", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, help="where sounds and runs lie. Default: a temporary one")
    given = parser.parse_args(list(arguments))
    ready()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        texts = orders(given.rows + given.held, 0)
        trained = spoken(folder / "train", texts[: given.rows], TRAINED, given.snr)
        held = spoken(folder / "test", texts[given.rows :], HELD, given.snr)
        null = other_texts(trained, folder / "null")
        model = windowed(folder / "model", given.seconds)
        found: dict = {}
        settings = {key: getattr(given, key) for key in ("steps", "lr", "snr", "seconds", "rows", "held")}

        def note(name: str, told: dict) -> None:
            found[name] = told
            replace_json(results_of("speech"), {**settings, "found": found})
            print(json.dumps({"who": name, **{key: value for key, value in told.items() if key != "said"}}), flush=True)

        for name, source in (("base", model), ("base, 30 s", str(fetch("whisper-tiny-en")))):
            loaded = lt.model(source, task="speech-to-text")
            note(name, errors(loaded.model, loaded.processor, held))
        for seed in given.seeds:
            for name, rows in (("lora", trained), ("null", null)):
                note(f"{name} {seed}", contest(model, rows, held, folder / "runs" / f"{name}-{seed}", seed, given))


def contest(model: str, rows: Path, held: Path, out: Path, seed: int, given: argparse.Namespace) -> dict:
    """Trains LoRA in encoder and decoder; returns its figures on the held rows."""
    begun = time.monotonic()
    settings = Training(
        steps=given.steps, batch=8, lr=given.lr, eval_fraction=0.0, seed=seed, warmup=0.1, save_every=given.steps
    )
    run = Run(model, str(rows), lt.LoRA(rank=8), "q_proj, v_proj", str(out), training=settings)
    done = lt.train(run, overwrite=True, progress=False)
    told = errors(done.model, done.processor, held)
    return {**told, "parameters": int(lt.trainable(done.model, count=True)), "seconds": time.monotonic() - begun}

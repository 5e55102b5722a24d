"""Spoken digits: adapters in Whisper-tiny's encoder beside its head alone, on voices that training never heard.

espeak-ng says the digits zero to nine (`apt-get install espeak-ng`): for training in one voice at two speeds and two
pitches, for the test in five others; white noise lies over all, `--snr` decibels below the voice. Whisper reads windows
of `--seconds` (its positions are sines, so the first of them serve a shorter window), which its own feature extractor
fills with silence. All contestants have the same steps, learning rate and a head that is trained whole; `head` is the
null: the head and the projector before it alone. What was found with the same settings is kept.

    python -m bench spoken_digits [--steps 60] [--seeds 0 1 2] [--folder WORK]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
import wave
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from bench._registry import results_of
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

import luthier as lt
from luthier import data
from luthier.core.records import replace_json
from luthier.models import fetch
from luthier.training import Run, Training

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAINED, HELD = ("en-gb",), ("en-029", "en-gb-x-rp", "en-us", "en-us-nyc", "en-gb-scotland")
SPEEDS, PITCHES = (130, 200), (30, 70)
BEHIND = "output(fc2)"
CONTESTANTS = {
    "conformer": (lt.Conformer(dim=8, insertion="sequential"), BEHIND),
    "bottleneck": (lt.Bottleneck(dim=16, activation="gelu"), BEHIND),
    "lora": (lt.LoRA(rank=4), "q_proj, v_proj"),
    "head": (lt.BitFit(), "params(encoder.layer_norm.bias)"),
}
"""`head` trains a bias that the projector's own bias makes redundant: an adapter alone is what a run takes."""


def ready() -> None:
    """Says what is missing, and leaves the other core alone."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not there: apt-get install espeak-ng")
    torch.set_num_threads(1)


def spoken(folder: Path, voices: Sequence[str], speeds: Sequence[int], pitches: Sequence[int], snr: float) -> Path:
    """Writes a folder of sounds for each digit, as espeak-ng says it, under white noise."""
    draw = np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    for word, voice, speed, pitch in product(WORDS, voices, speeds, pitches):
        file = folder / word / f"{voice}-{speed}-{pitch}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        said = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(file), word]
        subprocess.run(said, check=True, capture_output=True)
        cover(file, snr, draw)
    return folder


def cover(file: Path, snr: float, draw: np.random.Generator) -> None:
    """Adds white noise to a sound of 16 bits, `snr` decibels below its own power."""
    with wave.open(str(file), "rb") as sound:
        told, samples = sound.getparams(), np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(float)
    power = np.sqrt(np.mean(samples**2)) * 10 ** (-snr / 20)
    mixed = np.clip(samples + power * draw.standard_normal(len(samples)), -(2**15), 2**15 - 1)
    with wave.open(str(file), "wb") as sound:
        sound.setparams(told)
        sound.writeframes(mixed.astype("<i2").tobytes())


def short_windows(folder: Path, seconds: float) -> Path:
    """Writes Whisper-tiny with windows of `seconds`."""
    source = fetch("whisper-tiny-en")
    frames = round(50 * seconds)
    config = WhisperConfig.from_pretrained(source, trust_remote_code=False)
    whole = WhisperForConditionalGeneration.from_pretrained(source, trust_remote_code=False)
    state = whole.state_dict()
    key = "model.encoder.embed_positions.weight"
    state[key] = state[key][:frames].clone()
    config.max_source_positions = frames
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=seconds).save_pretrained(folder)
    return folder


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--snr", type=float, default=0.0, help="decibels of the voice over the noise")
    parser.add_argument("--seconds", type=int, default=1, help="the window, whole seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--folder", type=Path, help="where sounds and runs lie. Default: a temporary one")
    given = parser.parse_args(list(arguments))
    ready()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        trained = spoken(folder / "train", TRAINED, SPEEDS, PITCHES, given.snr)
        held = spoken(folder / "test", HELD, (160,), (50, 80), given.snr)
        model = str(short_windows(folder / "model", given.seconds))
        settings = {"steps": given.steps, "lr": given.lr, "snr": given.snr, "window": given.seconds}
        found = before(settings)
        for seed, name in product(given.seeds, given.only):
            own = contest(name, seed, model, trained, held, folder, given)
            found = before(settings) | {f"{name} {seed}": {"contestant": name, "seed": seed, **own}}
            replace_json(results_of("spoken_digits"), {**settings, "found": found})
    for name in CONTESTANTS:
        if each := [one for one in found.values() if one["contestant"] == name]:
            scores = [one["accuracy"] for one in each]
            told = f"{statistics.mean(scores):.3f} {min(scores):.3f} {max(scores):.3f}"
            print(f"{name:12} {each[0]['parameters']:>8,} {told} of {len(each)} seeds")


def before(settings: dict) -> dict:
    """What was found with these settings before, by contestant and seed."""
    file = results_of("spoken_digits")
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known["found"] if {key: known.get(key) for key in settings} == settings else {}


def contest(
    name: str, seed: int, model: str, trained: Path, held: Path, folder: Path, given: argparse.Namespace
) -> dict[str, float]:
    """Trains a contestant; returns its accuracy on the held voices, its size and its time."""
    form, where = CONTESTANTS[name]
    begun, out = time.monotonic(), folder / "runs" / f"{name}-{seed}"
    settings = Training(
        steps=given.steps, batch=16, lr=given.lr, eval_fraction=0.0, seed=seed, warmup=0.1, save_every=given.steps
    )
    run = Run(model, str(trained), form, where, str(out), task="audio-classification", training=settings)
    done = lt.train(run, overwrite=True, progress=False)
    extractor = WhisperFeatureExtractor.from_pretrained(model)
    told = lt.evaluate(done.model, extractor, data.load(str(held), task="audio-classification"), progress=False)
    print(json.dumps({"contestant": name, "seed": seed, "accuracy": told.metrics["accuracy"]}), flush=True)
    return {
        "accuracy": told.metrics["accuracy"],
        "parameters": int(lt.trainable(done.model, count=True)),
        "seconds": time.monotonic() - begun,
    }

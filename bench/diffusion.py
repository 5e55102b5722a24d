"""A small diffusers UNet on scikit-learn's digits: SaRA, adapters on convolutions and full fine-tuning of one base.

The base, from its configuration, learns to predict the noise on the digits 0 to 4; each contestant then learns 5 to 9
from it, in as many steps. Told are the loss on held-out digits of both halves, how many numbers train, and whether the
merged model is the adapted one. Samples are drawn by DDPM and saved as a picture. It needs the extra `diffusion` and
scikit-learn.

    python -m bench diffusion [--steps 300] [--base-steps 600] [--out bench/results/diffusion.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from torch import Tensor
from torch.nn import functional

import luthier as lt
from luthier.core.adapters.optimiser import optimiser
from luthier.methods.updates.sara import SaRA

BATCH, NOISES = 64, 1000
CONTESTANTS: dict[str, tuple[lt.Form, str, lt.Update, float]] = {
    "full": (lt.Full(), "params(*)", lt.AdamW(), 1e-3),
    "sara": (lt.Full(), "params(*.weight)", SaRA(threshold=0.02, narrowest=16), 2e-3),
    "lora": (lt.LoRA(rank=4), "all-linear | conv", lt.AdamW(), 4e-3),
    "dora": (lt.DoRA(rank=4), "all-linear | conv", lt.AdamW(), 4e-3),
    "wegeft": (lt.WeGeFT(rank=4), "conv", lt.AdamW(), 4e-3),
}


def unet() -> Any:
    """The base, with random weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def digits() -> dict[str, Tensor]:
    """Pictures [n, 1, 8, 8] from -1 to 1, of both halves, for training and held out."""
    from sklearn.datasets import load_digits

    held = load_digits()
    pictures = torch.tensor(held.images, dtype=torch.float32)[:, None] / 8 - 1
    low = torch.tensor(held.target) < 5
    parts = {"low": pictures[low], "high": pictures[~low]}
    cut = {"train": slice(60, None), "test": slice(60)}
    return {f"{name} {part}": x[at] for name, x in parts.items() for part, at in cut.items()}


def noised(scheduler: Any, x: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(noised pictures, the noise, the times)."""
    noise = torch.randn(x.shape, generator=draw)
    times = torch.randint(0, NOISES, (len(x),), generator=draw)
    return scheduler.add_noise(x, noise, times), noise, times


def loss_of(model: Any, scheduler: Any, x: Tensor, draw: torch.Generator) -> Tensor:
    given, noise, times = noised(scheduler, x, draw)
    return functional.mse_loss(model(given, times).sample, noise)


def held_loss(model: Any, scheduler: Any, x: Tensor) -> float:
    """Over the held-out pictures, eight noises each, the same ones for all."""
    draw = torch.Generator().manual_seed(5)
    model.eval()
    with torch.no_grad():
        found = [float(loss_of(model, scheduler, x, draw)) for _ in range(8)]
    model.train()
    return sum(found) / len(found)


def fit(model: Any, optimizer: Any, scheduler: Any, x: Tensor, steps: int) -> None:
    """Steps on random pictures."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (BATCH,), generator=draw)
        loss_of(model, scheduler, x[chosen], draw).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def samples(model: Any, scheduler: Any, count: int = 8) -> Tensor:
    """Pictures drawn by DDPM in 100 steps, [count, 8, 8]."""
    draw = torch.Generator().manual_seed(3)
    scheduler.set_timesteps(100)
    x = torch.randn(count, 1, 8, 8, generator=draw)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t).sample, t, x, generator=draw).prev_sample
    return x[:, 0].clamp(-1, 1)


def contestant(base: Any, name: str, scheduler: Any, data: dict[str, Tensor], steps: int) -> tuple[dict, Tensor]:
    """What one method reaches, and its samples."""
    form, where, update, rate = CONTESTANTS[name]
    model = copy.deepcopy(base).train()
    torch.manual_seed(2)
    lt.attach(model, form, where, check=False)
    optimizer = optimiser(model, update, lr=rate, steps=steps)
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    begun = time.perf_counter()
    fit(model, optimizer, scheduler, data["high train"], steps)
    seconds = time.perf_counter() - begun
    found = {half: round(held_loss(model, scheduler, data[f"{half} test"]), 4) for half in ("low", "high")}
    model.eval()
    drawn = samples(model, scheduler)
    given, _, times = noised(scheduler, data["high test"], torch.Generator().manual_seed(6))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        after = model(given, times).sample
        lt.save(model, Path(folder) / "adapter", base="unet")
        fresh = lt.load(copy.deepcopy(base).eval(), Path(folder) / "adapter", check=False)
        loaded = float((fresh(given, times).sample - after).abs().max())
        lt.merge(model)
        merged = float((model(given, times).sample - after).abs().max())
    told = {"trained": trained, "loss": found, "seconds": round(seconds, 1), "merged": merged, "loaded": loaded}
    return told, drawn


def draw_samples(rows: dict[str, Tensor], path: Path) -> None:
    """A row of samples for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 8)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=results_of("diffusion"))
    given = parser.parse_args(arguments)
    from diffusers import DDPMScheduler

    scheduler, data, base = DDPMScheduler(num_train_timesteps=NOISES), digits(), unet().train()
    fit(base, torch.optim.AdamW(base.parameters(), lr=2e-3), scheduler, data["low train"], given.base_steps)
    tests = {half: round(held_loss(base, scheduler, data[f"{half} test"]), 4) for half in ("low", "high")}
    result: dict[str, Any] = {"base": {"numbers": sum(p.numel() for p in base.parameters()), "loss": tests}}
    rows = {"base": samples(base.eval(), scheduler)}
    for name in CONTESTANTS:
        result[name], rows[name] = contestant(base, name, scheduler, data, given.steps)
        print(name, json.dumps(result[name]), flush=True)
    draw_samples(rows, given.out.with_suffix(".png"))
    result["machine"] = {"platform": platform.platform(), "torch": torch.__version__, "steps": given.steps}
    result["machine"]["base steps"] = given.base_steps
    given.out.write_text(json.dumps(result, indent=1) + "\n")

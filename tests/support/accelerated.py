"""Every form and every command on an accelerator, beside the same on the CPU.

`python -m support.accelerated forms|commands FOLDER` runs them on `support.accelerator`'s, and prints JSON lines.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.device import on_device
from support import accelerator, command_cases
from support.architectures import ARCHITECTURES, base_of
from support.tiny import sums, write_rows

SHORT = "--rank 2 --steps 2 --batch 2 --eval-fraction 0"
MORE = (
    f"train {{model}} {{labelled.jsonl}} --task classification --method lora {SHORT} --out {{sorted}}",
    "unlearn {model} --adapter {sorted} --forget {first.jsonl} --retain {others.jsonl} --by dmm --steps 1 --out {gone}",
    f"train {{model}} {{rows.jsonl}} --method lora --init eva --ranks eva {SHORT} --out {{measured}}",
    f"train {{model}} {{rows.jsonl}} --method lora --precision auto {SHORT} --out {{half}}",
)
"""Commands that take other ways through a model."""


def forms(device: str) -> Iterator[tuple[str, float]]:
    """(form, the largest difference of a forward and backward pass on the device from the CPU's, as a share of the
    largest number there, if that is above 1) for every form, in float32."""
    for name in names("forms"):
        yield name, max(map(_differs, _passes(name, device), _passes(name, "cpu")))


def _differs(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def _passes(name: str, device: str) -> list[Tensor]:
    """The logits of a tiny model with the form away from its start, and the gradients of what is trained."""
    torch.manual_seed(0)
    model = lt.attach(base_of(name).build().to(device), find("forms", name, Form)())
    draw = torch.Generator().manual_seed(5)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw).to(parameter)
    given = {key: value.to(device) for key, value in ARCHITECTURES["qwen2"].inputs(2, 12).items()}
    logits = model(**given).logits
    logits.pow(2).sum().backward()
    slopes = [p.grad for p in lt.trainable(model).values() if p.grad is not None]
    return [each.detach().cpu() for each in (logits, *slopes)]


def commands(device: str, root: Path) -> Iterator[tuple[str, int, str]]:
    """(command, exit code, what it said) for every command that is tried on tiny models, with these on the device."""
    command_cases.given(root)
    rows = [{"text": row["prompt"], "label": "ab"[number % 2]} for number, row in enumerate(sums(16))]
    for name, part in {"labelled": rows, "first": rows[:4], "others": rows[4:]}.items():
        write_rows(root / f"{name}.jsonl", part)
    every = [*command_cases.MADE.values(), *(words for each in command_cases.READ.values() for words in each), *MORE]
    with on_device(device):
        for number, words in enumerate(dict.fromkeys(every)):
            own = re.sub(r"\{new([.\w]*)\}", rf"{{new{number}\1}}", words)
            yield own, *command_cases.told(root, own)


def main(what: str, *folder: str) -> None:
    accelerator.begin()
    out = sys.stdout  # commands print as well
    for each in forms(accelerator.NAME) if what == "forms" else commands(accelerator.NAME, Path(*folder)):
        print(json.dumps(each), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

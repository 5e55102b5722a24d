"""Writes tests/interop/control_vector_folders with repeng itself: see recorded.py.

    pip install --no-deps repeng==0.4.0 numpy==1.26.4
    python -m support.record_repeng interop/control_vector_folders        # from tests/

Each vector is written by `ControlVector.export_gguf` and read again by `import_gguf` before its answer is recorded. The
rows of `IDS` are asked one by one: with the positions that transformers 5 hands on, repeng 0.4.0 takes no batch of two.
The numbers are random.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from repeng import ControlModel, ControlVector
from safetensors.torch import save_file

from support.pyreft_recorded import IDS
from support.recorded import base

CASES = {
    "llama-all": ("llama", [1, 2], 1.0),
    "llama-last": ("llama", [2], -0.7),
    "mistral-one": ("mistral", [1], 2.0),
    "gpt2-all": ("gpt2", [1, 2], 1.0),
}


def answer(model) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=row[None]).logits for row in IDS])


def main(out: Path) -> None:
    draw = np.random.default_rng(0)
    answers = {}
    for name, (kind, blocks, strength) in CASES.items():
        model = base(kind)
        answers.setdefault(kind, answer(model))
        width = model.get_input_embeddings().weight.shape[1]
        directions = {block: draw.normal(size=width).astype(np.float32) for block in blocks}
        (out / name).mkdir(parents=True, exist_ok=True)
        ControlVector(model_type=model.config.model_type, directions=directions).export_gguf(out / name / "v.gguf")
        controlled = ControlModel(model, blocks)
        controlled.set_control(ControlVector.import_gguf(out / name / "v.gguf"), strength)
        answers[name] = answer(controlled)
    save_file(answers, out / "logits.safetensors")
    cases = {
        name: {"base": kind, "settings": {} if strength == 1.0 else {"strength": strength}}
        for name, (kind, _, strength) in CASES.items()
    }
    told = {"versions": {"repeng": "0.4.0", "transformers": version("transformers")}, "cases": cases}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

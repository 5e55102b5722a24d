"""The bases, inputs and settings of what pyreft itself wrote, for both sides.

It lies in tests/interop/pyreft_folders and was written by record_pyreft.py. Nothing here needs pyreft: weights
come from a formula, so that they are the same under any version of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

FOLDER = Path(__file__).parents[1] / "interop" / "pyreft_folders"
RANK = 3
SIZE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
IDS = torch.tensor([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
PLACES = {"f2+l3": [[0, 1, 7, 8, 9]], "f2,l2": [[0, 1], [8, 9]], "f1": [[0]], "l1": [[9]]}
"""Columns of `IDS` that each group of positions edits."""


@dataclass(frozen=True)
class Case:
    """A folder: the class of its interventions and where they act."""

    kind: str
    layers: tuple[int, ...] = (0, 2)
    positions: str = "f2+l3"
    bias: bool = False
    component: str = "block_output"
    model: str = "llama"
    trained: str = ""
    """Parameters of the model itself, by the start of their names, that were trained and saved as well."""


CASES = {
    "loreft": Case("Loreft"),
    "loreft-apart": Case("Loreft", (0, 1, 2), "f2,l2"),
    "loreft-path": Case("Loreft", (1,), "l1", component="model.layers[%d].output"),
    "noreft": Case("Noreft"),
    "noreft-bias": Case("Noreft", (0, 1), "f2,l2", bias=True),
    "consreft": Case("Consreft"),
    "consreft-apart": Case("Consreft", (1,), "f2,l2"),
    "lobireft": Case("Lobireft"),
    "lobireft-apart": Case("Lobireft", (1,), "f2,l2"),
    "direft": Case("Direft"),
    "direft-apart": Case("Direft", (0, 2), "f2,l2"),
    "nodireft": Case("Nodireft", bias=True),
    "nodireft-apart": Case("Nodireft", (2,), "f2,l2"),
    "direft-head": Case("Direft", (1,), trained="lm_head"),
    "glue": Case("Loreft", (0, 2), "f1", False, "roberta.encoder.layer[%d].output", "roberta", "classifier"),
}


def values(count: int, turn: int) -> torch.Tensor:
    """Numbers in [-1, 1) that look random, from a formula."""
    seeds = torch.arange(count, dtype=torch.float64) * 12.9898 + turn * 78.233
    return ((seeds.sin() * 43758.5453) % 1.0 * 2 - 1).float()


def base(name: str) -> Any:
    """A model whose parameters follow from their names."""
    if name == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, num_attention_heads=2))
    else:
        more = {"num_attention_heads": 2, "max_position_embeddings": 20, "type_vocab_size": 1, "num_labels": 2}
        model = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZE, **more))
    for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
        spread = 0.4 * values(parameter.numel(), turn).view_as(parameter)
        parameter.data.copy_(spread if parameter.dim() > 1 else 1 + spread)
    return model.eval()


DIM, ROWS, STEPS, LR = 192, 64, 40, 9e-4
"""The trajectory: width, rows of data, steps and the paper's rate; the edits have rank 4."""


def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [ROWS, DIM] and those that the edit is to make of them."""
    h = 2 * values(ROWS * DIM, 101).view(ROWS, DIM)
    turned = values(DIM * DIM, 102).view(DIM, DIM) / DIM**0.5
    return h, h + h @ turned

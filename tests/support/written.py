"""Folders that we wrote and the library itself read, kept with what its model answered.

    python -m support.written mlx_lm                                          # ours: writes the folders, from tests/
    python record_mlx.py BASES tests/interop/mlx_lm_written                   # theirs: reads them, records the answers

`tests/interop/<format>_written` holds a folder for each case of `CASES` that the format expresses, and
`logits.safetensors` with the library's answers to `IDS`. The test is that we still write the same.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import luthier as lt
from support.pyreft_recorded import values
from support.recorded import FOLDERS, base

CASES: dict[str, tuple[str, Any, str]] = {
    "llama-lora": ("llama", lt.LoRA(rank=2, alpha=3.0), "q_proj, v_proj, down_proj"),
    "llama-wegeft": ("llama", lt.WeGeFT(rank=2), "up_proj"),
    "llama-dora": ("llama", lt.DoRA(rank=2), "q_proj, o_proj"),
    "llama-head": ("llama", lt.LoRA(rank=2), "lm_head, embed_tokens, k_proj"),
    "llama-norms": ("llama", lt.Full(), "params(*layernorm.weight)"),
    "qwen2-lora": ("qwen2", lt.LoRA(rank=3, scaling="rslora"), "all-linear"),
    "gpt2-lora": ("gpt2", lt.LoRA(rank=2), "c_attn, c_fc"),
    "gpt2-dora": ("gpt2", lt.DoRA(rank=2), "c_proj"),
    "gpt2-whole": ("gpt2", lt.Full(), "params(*.c_fc.weight)"),
    "phi3-lora": ("phi3", lt.LoRA(rank=2), "qkv_proj, gate_up_proj"),
    "mixtral-lora": ("mixtral", lt.LoRA(rank=2), "q_proj, v_proj"),
    "roberta-lora": ("roberta", lt.LoRA(rank=2), "query, value"),
    "llama-dora-qv": ("llama", lt.DoRA(rank=2, alpha=3.0), "q_proj, v_proj"),
    "llama-houlsby": ("llama", lt.Bottleneck(dim=5, activation="gelu", scale=0.5), "o_proj, down_proj"),
    "llama-pfeiffer": ("llama", lt.Bottleneck(dim=3, activation="silu"), "stream & layers(0, 2)"),
    "llama-ia3": ("llama", lt.IA3(), "k_proj, down_proj"),
    "mistral-some": ("mistral", lt.LoRA(rank=2), "(q_proj & layers(1)) | (up_proj & layers(1, 2))"),
    "bert-houlsby": ("bert", lt.Bottleneck(dim=6, activation="tanh"), "attention.output.dense, *.output.dense"),
    "bert-wide": ("bert", lt.LoRA(rank=3), "query, key, intermediate.dense"),
    "llama-mixed": ("llama", lt.LoRA(rank=2), "k_proj & layers(1) | up_proj & layers(0)"),
    "mistral-dora": ("mistral", lt.DoRA(rank=3), "k_proj, gate_proj, lm_head"),
    "gpt2-ia3": ("gpt2", lt.IA3(), "c_attn, c_fc"),
    "llama-loreft": ("llama", lt.LoReFT(rank=2, positions="f2,l3"), "stream & layers(0, 2)"),
    "llama-noreft": ("llama", lt.NoReFT(rank=3, positions="l2"), "stream & layers(1)"),
    "llama-direft": ("llama", lt.DiReFT(rank=2, positions="f1+l1"), "stream"),
    "llama-consreft": ("llama", lt.ConsReFT(rank=2, positions="f1"), "stream & layers(0)"),
    "roberta-lobireft": ("roberta", lt.LobiReFT(rank=2, positions="all"), "stream & layers(1, 2)"),
    "gpt2-houlsby": ("gpt2", lt.Bottleneck(dim=4), "output(attn)"),
}
"""{case: (base, form, where it acts)}."""
CASES["roberta-head"] = ("roberta", lt.LoRA(rank=2), "value")
BESIDE = {case: (lt.Full(), "params(classifier.*)") for case in ("roberta-head", "roberta-lobireft")}
"""A second form of a case."""


def adapted(case: str) -> Any:
    """A base with an adapter whose numbers follow from a formula."""
    name, form, where = CASES[case]
    model = lt.attach(base(name), form, where=where)
    if case in BESIDE:
        more, there = BESIDE[case]
        lt.attach(model, more, where=there)
    for turn, (key, parameter) in enumerate(sorted(lt.trainable(model).items())):
        parameter.data = 0.3 * values(parameter.numel(), 500 + turn).view_as(parameter) + (
            parameter.data if parameter.dim() == 1 or key.endswith("theta") else 0
        )
    return model.eval()


def write(form: str, case: str, work: Path) -> Path:
    """The folder that we write now, below `work`."""
    lt.save(adapted(case), work / f"{case}-adapter")
    lt.export(work / f"{case}-adapter", work / case, to=form, base=base(CASES[case][0]))
    return work / case


def main(form: str) -> None:
    """Writes every case that the format expresses."""
    target = FOLDERS / f"{form}_written"
    shutil.rmtree(target, ignore_errors=True)
    for case in CASES:
        try:
            write(form, case, target)
        except lt.LuthierError as error:
            print(f"{case}: {error}")
        shutil.rmtree(target / f"{case}-adapter")


if __name__ == "__main__":
    main(sys.argv[1])

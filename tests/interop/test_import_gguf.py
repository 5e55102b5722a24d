"""Adapters that llama.cpp's converter wrote answer here as they do there (tests/support/record_llamacpp.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import luthier as lt
from interop.test_gguf import made, same_as_llamacpp
from support.shipped import byte_level, logits

gguf = pytest.importorskip("gguf")

RECORDED = Path(__file__).parent / "llamacpp_adapters"
CASES = sorted(path.name for path in RECORDED.iterdir())
ROUNDED = {"mistral-f16": 0.02, "qwen2-q8_0": 0.05, "qwen3": 0.05}
"""What llama.cpp may differ by where factors are of few bits: it rounds what enters them to the same dtype."""


def base_file(case: str, folder: Path) -> Path:
    """The base of a case in GGUF."""
    lt.save(lt.attach(made(case), lt.LoRA(rank=1)), folder / "none")
    lt.export(folder / "none", folder / "base", to="gguf", base=made(case), processor=byte_level())
    return folder / "base" / "model.gguf"


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_in_llamacpp(name, tmp_path):
    case = name.partition("-")[0]
    ours = lt.import_adapter(RECORDED / name, tmp_path / "ours", base=made(case))
    model = lt.load(made(case), ours)
    assert (logits(model) - logits(made(case))).abs().max() > 0.1
    assert same_as_llamacpp(model, base_file(case, tmp_path), RECORDED / name / "adapter.gguf", ROUNDED.get(name, 1e-4))


def rewritten(path: Path, out: Path, values: dict, tensors: dict) -> Path:
    """A file of an adapter with other metadata and tensors."""
    writer = gguf.GGUFWriter(out / "adapter.gguf", values.pop("architecture", "llama"))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    if "tokens" in values:
        writer.add_array("adapter.alora.invocation_tokens", values.pop("tokens"))
    for key, value in ({"adapter.lora.alpha": 6.0} | values).items():
        writer.add_float32(key, value)
    held = {each.name: each.data.copy() for each in gguf.GGUFReader(path).tensors} | tensors
    for key, tensor in held.items():
        if tensor is not None:
            writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def refused(tmp_path: Path, match: str, *, base: str = "llama", values: dict | None = None, **tensors) -> None:
    named = {key.replace("_dot_", "."): tensor for key, tensor in tensors.items()}
    folder = rewritten(RECORDED / "llama" / "adapter.gguf", tmp_path, values or {}, named)
    with pytest.raises(lt.LuthierError, match=match):
        lt.import_adapter(folder, tmp_path / "ours", base=made(base))
    assert not (tmp_path / "ours").exists()


def test_what_has_no_equal_is_refused(tmp_path):
    wide = torch.zeros(4, 32).numpy()
    beyond = {f"blk.9.attn_q.weight.lora_{half}": wide for half in "ab"}
    for number, (match, more) in enumerate(
        {
            "is for llama.cpp's llama, and this base is its qwen2": {"base": "qwen2"},
            "acts from certain tokens on alone": {"values": {"tokens": [3, 4]}},
            "one of the two factors": {"blk.0.attn_q.weight.lora_a": None},
            "which this LlamaForCausalLM lacks": beyond,
            "not a factor of a change": {"blk.0.attn_q.bias": wide[0]},
            "holds NaN or infinity": {"blk.0.attn_q.weight.lora_a": wide * float("nan")},
            "no head of its own": {"base": "llama, tied", "output.weight.lora_a": wide, "output.weight.lora_b": wide},
        }.items()
    ):
        (tmp_path / str(number)).mkdir()
        refused(tmp_path / str(number), match, **more)


def test_norms_that_llamacpp_passes_over_are_told(tmp_path):
    norm = {"blk.0.attn_norm.weight": torch.full((32,), 2.0).numpy()}
    folder = rewritten(RECORDED / "llama" / "adapter.gguf", tmp_path, {}, norm)
    with pytest.warns(UserWarning, match="passes over"):
        ours = lt.import_adapter(folder, tmp_path / "ours", base=made("llama"))
    plain = lt.import_adapter(RECORDED / "llama", tmp_path / "plain", base=made("llama"))
    assert torch.equal(logits(lt.load(made("llama"), ours)), logits(lt.load(made("llama"), plain)))


def test_several_files_of_a_kind_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes((RECORDED / "llama" / "adapter.gguf").read_bytes())
    with pytest.raises(lt.LuthierError, match="several files of this kind"):
        lt.import_adapter(tmp_path, tmp_path / "ours", base=made("llama"))

"""Models in ONNX, run by onnxruntime as their users do, answer as the adapted model."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import luthier as lt
from laws.test_formats import tokenizer
from support.recorded import base
from support.shipped import moved

CASES = {
    "llama": ("llama", "q_proj, down_proj"),
    "added positions": ("gpt2", "c_attn"),
    "experts": ("mixtral", "experts"),
    "an encoder": ("bert", "query"),
}


def exported(case: str, folder, **settings):
    """(the adapted model, a session on what was written, what was lost)."""
    onnxruntime = pytest.importorskip("onnxruntime")
    name, where = CASES[case]
    model = moved(lt.attach(base(name), lt.LoRA(rank=2), where=where), 0.3).eval()
    lt.save(model, folder / "adapter")
    to = lt.formats.ONNX(**settings)
    lost = lt.export(folder / "adapter", folder / "out", to=to, base=base(name), processor=tokenizer())
    (file,) = (folder / "out" / "onnx").iterdir()
    return model, onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]), lost


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_answers_as_the_adapted_model(case, tmp_path):
    model, session, lost = exported(case, tmp_path)
    ids = torch.tensor([[3, 9, 4, 11, 5], [7, 2, 8, 6, 10], [1, 12, 3, 9, 2]])
    feed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(5).expand(3, 5)}
    feed |= {"token_type_ids": torch.zeros_like(ids)}
    given = [each.name for each in session.get_inputs()]
    held = {}
    for name in given:
        if name.startswith("past_key_values"):  # as transformers.js does: of no length, by the configuration
            config = json.loads((tmp_path / "out" / "config.json").read_text())
            heads = config.get("num_key_value_heads") or config["n_head"]
            width = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // (
                config.get("num_attention_heads") or config["n_head"]
            )
            held[name] = torch.zeros(3, heads, 0, width).numpy()
    wanted = model(input_ids=ids)[0].detach()
    found = session.run(["logits"], {name: feed[name].numpy() for name in given if name in feed} | held)[0]
    assert (torch.from_numpy(found) - wanted).abs().max() < 1e-4 * wanted.abs().max() and all(
        v < 1e-4 for v in lost.values()
    )
    assert (wanted - base(CASES[case][0])(input_ids=ids)[0]).abs().max() > 0.05
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.long
def test_a_language_model_has_the_names_that_its_users_ask_for(tmp_path):
    _, session, lost = exported("llama", tmp_path, dtype="q4")
    kept = [f"{turn}.{kind}" for turn in range(3) for kind in ("key", "value")]
    asked = {"input_ids", "attention_mask", "position_ids", *(f"past_key_values.{each}" for each in kept)}
    assert {each.name for each in session.get_inputs()} == asked
    assert {each.name for each in session.get_outputs()} == {"logits", *(f"present.{each}" for each in kept)}
    assert (tmp_path / "out" / "onnx" / "model_q4.onnx").exists() and 0 < lost["the output"] < 1


def test_a_cache_that_a_graph_has_no_place_for_is_refused(tmp_path):
    lt.save(lt.attach(base("gemma3"), lt.LoRA(rank=2), where="q_proj"), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match="its cache holds DynamicSlidingWindowLayer"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="onnx", base=base("gemma3"), processor=tokenizer())


def test_a_graph_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    """What exporters get wrong is found by running the file."""
    pytest.importorskip("onnxruntime")
    from luthier.interop.formats import _onnx_run

    monkeypatch.setattr(_onnx_run, "EXACT", 0.0)
    with pytest.raises(lt.LuthierError, match="answers otherwise than the model"):
        exported("an encoder", tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_its_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lt.save(lt.attach(base("llama"), lt.LoRA(rank=2), where="q_proj"), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match=r"pip install 'luthier\[onnx\]'"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="onnx", base=base("llama"), processor=tokenizer())

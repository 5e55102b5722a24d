"""Models in ONNX, run by onnxruntime as their users do, answer as the adapted model."""

from __future__ import annotations

import json
import sys
from copy import deepcopy

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
    given = {each.name: each.shape for each in session.get_inputs()}
    held = {}
    for name, axes in given.items():
        if name.startswith("past_key_values"):  # transformers.js 3 makes it by the configuration, and 4 by these axes
            config = json.loads((tmp_path / "out" / "config.json").read_text())
            heads = config.get("num_key_value_heads") or config["n_head"]
            width = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // (
                config.get("num_attention_heads") or config["n_head"]
            )
            assert axes == ["batch_size", heads, "past_sequence_length", width]
            held[name] = torch.zeros(3, heads, 0, width).numpy()
    wanted = model(input_ids=ids)[0].detach()
    found = session.run(["logits"], {name: feed[name].numpy() for name in given if name in feed} | held)[0]
    assert (torch.from_numpy(found) - wanted).abs().max() < 1e-4 * wanted.abs().max() and all(
        v < 1e-4 for v in lost.values()
    )
    assert (wanted - base(CASES[case][0])(input_ids=ids)[0]).abs().max() > 0.05
    total = "total_sequence_length" if held else "sequence_length"
    assert given["input_ids"] == ["batch_size", "sequence_length"] and given["attention_mask"] == ["batch_size", total]
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


def test_what_other_libraries_raise_is_a_line(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from luthier.interop.formats import _onnx

    def fails(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(_onnx, "graph_of", fails)
    with pytest.raises(lt.LuthierError, match=r"cannot be written in ONNX: RuntimeError: no such operator"):
        exported("an encoder", tmp_path)


def test_weights_beside_have_the_names_that_are_looked_for(tmp_path, monkeypatch):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from luthier.interop.formats import _onnx

    weights = onnx.numpy_helper.from_array(torch.randn(64, 64).numpy(), "w")
    shaped = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", *([s] for s in shaped),
                                   [weights])  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text('{"a": 1}')
    monkeypatch.setattr(_onnx, "BESIDE", 0)
    small = _onnx.quantised(tmp_path / "model.onnx")
    _onnx.tell_of_weights_beside(small, tmp_path / "config.json")
    assert {each.name for each in tmp_path.iterdir()} == {"config.json", "model_q4.onnx", "model_q4.onnx_data"}
    assert json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]["use_external_data_format"]
    onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])


def test_rows_that_are_traced_lie_where_the_model_does():
    from luthier.interop.formats import _onnx

    assert _onnx._ids(2, 5, deepcopy(base("llama")).to("meta")).device.type == "meta"


def test_without_its_packages_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lt.save(lt.attach(base("llama"), lt.LoRA(rank=2), where="q_proj"), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match=r"pip install 'luthier\[onnx\]'"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="onnx", base=base("llama"), processor=tokenizer())

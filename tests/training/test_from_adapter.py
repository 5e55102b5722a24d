"""Runs that go on from a finished adapter, ours or another library's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import models
from luthier.core.adapters.control import tensors
from luthier.training import Run, Training, train
from luthier.training.folder import read_record, read_run
from support.tiny import pairs, write_rows

SHORT = Training(steps=3, batch=4, lr=1e-2, eval_fraction=0.0, save_every=1, keep=9)


@pytest.fixture(scope="module")
def finished(llama, additions, tmp_path_factory):
    """A run of LoRA whose ranks differ from the default."""
    out = str(tmp_path_factory.mktemp("runs") / "first")
    form = lt.LoRA(rank=3, alpha=12.0)
    return train(Run(llama, additions, form, "q_proj, v_proj", out=out, training=SHORT), progress=False)


def held(result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter.safetensors")


def test_it_starts_as_the_adapter_is_and_extends_a_run(finished, tmp_path):
    out = str(tmp_path / "more")
    tiny = lt.train(from_adapter=str(finished.folder), steps=1, lr=1e-12, out=out, progress=False)
    run = read_run(tiny.folder)
    assert (run.form, run.where) == (lt.LoRA(rank=3, alpha=12.0), "q_proj, v_proj")
    assert (run.data, run.training.batch, run.training.steps) == (read_run(finished.folder).data, 4, 1)
    before, after = held(finished), held(tiny)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in before)
    longer = lt.train(from_adapter=str(finished.folder), out=str(tmp_path / "longer"), progress=False)
    assert longer.losses[0][1] < finished.losses[0][1]
    assert not torch.equal(held(longer)[next(iter(before))], before[next(iter(before))])


def test_resumes_exactly_and_notices_another_start(finished, tmp_path):
    def go_on(out, steps=4, **more):
        settings = {"data": read_run(finished.folder).data, "steps": steps, "save_every": 1, "batch": 4, "lr": 1e-2}
        told = {"from_adapter": str(finished.folder), "out": str(tmp_path / out), "progress": False, "keep": 9}
        return lt.train(read_run(finished.folder).model, **settings, **told, **more)

    class Stop(__import__("transformers").TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    whole = go_on("whole")
    with pytest.raises(KeyboardInterrupt):
        go_on("cut", callbacks=[Stop()])
    resumed = go_on("cut", resume=True)
    assert all(torch.equal(held(whole)[key], held(resumed)[key]) for key in held(whole))
    record = read_record(resumed.folder)
    assert record["start"] == lt.core.storage.folder.read_adapter(finished.folder)[1]["sha256"]
    spec = resumed.folder / "run.json"
    spec.write_text(spec.read_text().replace(record["start"], "0" * 64))
    with pytest.raises(lt.LuthierError, match="no longer the one"):
        go_on("cut", resume=True)


def test_what_the_adapter_brings_is_refused(finished, llama, additions, tmp_path):
    start = str(finished.folder)
    run = Run(llama, additions, lt.LoRA(), out=str(tmp_path / "run"), from_adapter=start, training=SHORT)
    with pytest.raises(lt.LuthierError, match=r"lora\(rank=3, alpha=12.0\).*come with the adapter"):
        train(run, progress=False)
    with pytest.raises(lt.LuthierError, match="ranks would start an adapter"):
        replace(run, ranks=lt.ranks.Uniform())
    with pytest.raises(lt.LuthierError, match="choose another out"):
        lt.train(from_adapter=start, out=start, overwrite=True, progress=False)
    with pytest.raises(lt.LuthierError, match="not a finished run"):
        lt.train(from_adapter=llama, out=str(tmp_path / "x"), progress=False)


def test_preferences_compare_with_the_start(finished, llama, tmp_path):
    rows = write_rows(tmp_path / "pairs.jsonl", pairs(8))
    told = {"from_adapter": str(finished.folder), "steps": 1, "lr": 1e-12, "batch": 8, "progress": False}
    told |= {"eval_fraction": 0.0}
    result = lt.train(llama, rows, out=str(tmp_path / "dpo"), **told)
    lines = lt.training.metrics.read(result.folder)
    assert lines[0]["reward_chosen"] == pytest.approx(0, abs=1e-5)  # the model is its own reference
    base = lt.train(llama, rows, objective=lt.DPO(reference="base"), out=str(tmp_path / "base"), **told)
    assert abs(lt.training.metrics.read(base.folder)[0]["reward_chosen"]) > 1e-3


def test_another_librarys_adapter_goes_on(llama, additions, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    import peft

    base = models.load(llama).model
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    theirs.save_pretrained(tmp_path / "theirs")
    told = {"from_adapter": str(tmp_path / "theirs"), "out": str(tmp_path / "run")}
    result = lt.train(llama, additions, steps=1, lr=1e-12, eval_fraction=0.0, progress=False, **told)
    assert (read_run(result.folder).form.rank, read_run(result.folder).form.alpha) == (2, 6.0)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        assert torch.allclose(result.model(ids).logits, theirs(ids).logits, atol=1e-5)
    assert len(tensors(result.model)) == 2 * result.model.config.num_hidden_layers


def test_a_head_that_was_trained_goes_on_too(bert, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "a b c"[: 1 + i], "label": "xy"[i % 2]} for i in range(5)])
    told = {"steps": 2, "batch": 4, "lr": 0.05, "eval_fraction": 0.0, "progress": False}
    first = lt.train(bert, rows, form=lt.LoRA(rank=2), out=str(tmp_path / "first"), **told)
    second = lt.train(
        bert, rows, from_adapter=str(first.folder), out=str(tmp_path / "second"), **{**told, "lr": 1e-12, "steps": 1}
    )
    before, after = held(first), held(second)
    assert before.keys() == after.keys() and all(torch.allclose(before[k], after[k], atol=1e-9) for k in before)

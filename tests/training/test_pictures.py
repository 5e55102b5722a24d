"""Chats with pictures: trained as transformers' own recipe trains them, answered as its `generate` answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.cli import main
from luthier.core.errors import LuthierError
from luthier.core.sites.packing import packed
from luthier.data.media import media_digest
from luthier.data.pictures import Seen
from luthier.engine.answers import written
from luthier.engine.sampler import Ask, Sampler
from luthier.engine.settings import Sampling
from luthier.training import Run, Training
from support.seeing import picture, qwen2_vl, save_llava, write_digits

STEPS = Training(steps=4, batch=2, lr=1e-2, max_length=64, eval_fraction=0.25, save_every=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


def seeing(name, folder):
    if name == "qwen2_vl":
        return qwen2_vl()
    loaded = models.load(str(folder))
    return loaded.model, loaded.processor


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_loss_and_gradients_are_the_plain_recipes(name, folder, tmp_path):
    """`model(**batch).loss` of the library, and the packed pass, by rows with a picture and one without."""
    model, tokenizer = seeing(name, folder)
    file = write_digits(tmp_path, 3)
    turns = [{"role": "user", "content": "none?"}, {"role": "assistant", "content": "none at all"}]
    file.write_text(file.read_text() + json.dumps({"messages": turns}) + "\n")
    features = data.encode_all(data.load(file), tokenizer, max_length=64, pictures=True)
    batch = data.collator_for("causal-lm", tokenizer)(features)
    batch.pop("rows")
    lt.attach(model, lt.LoRA(rank=2), where="all-linear")
    for parameter in lt.trainable(model).values():
        parameter.data += 0.05
    found = {}
    for how in ("plain", "ours", "packed"):
        model.zero_grad()
        if how == "plain":
            loss = model(**batch).loss
        elif how == "ours":
            loss = lt.SFT().loss(model, batch)
        else:
            with packed(model):
                loss = lt.SFT().loss(model, batch)
        loss.backward()
        grads = [p.grad.clone() for p in lt.trainable(model).values() if p.grad is not None]
        found[how] = loss.item(), grads
    for how in ("ours", "packed"):
        assert found[how][0] == pytest.approx(found["plain"][0], abs=1e-5)
        for one, other in zip(found[how][1], found["plain"][1], strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_answers_in_a_mixed_batch_are_those_of_generate(name, folder, tmp_path):
    model, tokenizer = seeing(name, folder)
    rows = data.load(write_digits(tmp_path, 3)).rows
    prompts = [data.prompt_ids(row, tokenizer) for row in rows]
    prompts.insert(1, [7, 8, 9, 30, 31])
    got = [ids for _, ids in written(model, tokenizer, prompts, Sampling(6), batch=3)]
    for prompt, ids in zip(prompts, got, strict=True):
        beside = prompt.inputs(len(prompt)) if isinstance(prompt, Seen) else {}
        asked = torch.tensor([list(prompt)])
        out = model.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=6, do_sample=False, **beside
        )
        assert out[0, len(prompt) :].tolist()[: len(ids)] == ids


def test_a_turn_to_another_adapter_sees_the_picture_again(folder, tmp_path):
    """Rows whose adapter changes read all of their tokens once more, their pictures too."""
    from luthier.engine.turns import Turns

    model, tokenizer = seeing("llava", folder)
    (row,) = data.load(write_digits(tmp_path, 1)).rows
    prompt = data.prompt_ids(row, tokenizer)
    for name in ("one", "two"):
        lt.attach(model, lt.LoRA(rank=2), where="all-linear", name=name)

    class Halfway(Turns):
        def adapter(self, own, ids):
            return "two" if len(ids) >= 2 else own

    ask = Ask(tuple(prompt), 0, 5, prompt)
    (turned,) = Sampler(model, tokenizer, "one", turns=Halfway(None, None, {"tool": "two"}))([ask], 0.0, 1.0)
    (alone,) = Sampler(model, tokenizer, "one")([ask], 0.0, 1.0)
    assert turned.ids == alone.ids  # both adapters are fresh, and add nothing


def test_a_run_through_the_command_line(folder, tmp_path, capsys):
    rows = write_digits(tmp_path / "rows", 12)
    out = tmp_path / "run"
    words = ["train", str(folder), str(rows), "--steps", "4", "--batch", "2", "--lr", "0.01", "--out", str(out)]
    assert main([*words, "--max-length", "64"]) == 0
    assert not json.loads((out / "run.json").read_text()).get("unread")
    capsys.readouterr()
    assert main(["evaluate", str(folder), str(rows), "--adapter", str(out), "--json", "--max-new-tokens", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 12
    assert main(["merge", str(folder), str(out), str(tmp_path / "merged")]) == 0
    assert models.load(str(tmp_path / "merged")).processor and (tmp_path / "merged" / "processor_config.json").is_file()
    said = tmp_path / "said.jsonl"
    assert main(["predict", str(folder), str(rows), "--adapter", str(out), "--out", str(said)]) == 0
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert len(lines) == 12 and all(0 < line["probability"] <= 1 for line in lines)


def test_what_is_learned_depends_on_the_pictures(folder, tmp_path):
    """A run on rows whose answers follow from pictures alone ends otherwise with other pictures."""
    found = {}
    for start in (0, 20):
        rows = write_digits(tmp_path / str(start), 8, start)
        told = [json.loads(line) for line in rows.read_text().splitlines()]
        for place, row in enumerate(told):
            row["messages"][1]["content"] = str(place % 2)
        rows.write_text("".join(json.dumps(row) + "\n" for row in told))
        lt.train(Run(str(folder), str(rows), lt.LoRA(rank=2), out=str(tmp_path / f"run{start}"), training=STEPS))
        adapter = lt.load(models.load(str(folder)).model, tmp_path / f"run{start}")
        found[start] = torch.cat([tensor.flatten() for tensor in lt.trainable(adapter).values()])
    assert not torch.allclose(found[0], found[20], atol=1e-6)


def test_other_pictures_under_the_same_names_are_noticed(tmp_path):
    rows = data.load(write_digits(tmp_path, 2))
    before = media_digest(rows.rows)
    picture(5).save(tmp_path / "0.png")
    assert before is not None and media_digest(rows.rows) != before
    assert rows.fingerprint != data.load(write_digits(tmp_path / "other", 2)).fingerprint


def test_pairs_with_pictures(folder, tmp_path):
    rows = write_digits(tmp_path / "rows", 6)
    told = [json.loads(line)["messages"] for line in rows.read_text().splitlines()]
    pairs = [{"prompt": [asked], "chosen": [said], "rejected": [{**said, "content": "x"}]} for asked, said in told]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run = Run(str(folder), str(rows), lt.LoRA(rank=2), objective=lt.DPO(), out=str(tmp_path / "run"), training=STEPS)
    lt.train(run)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    pairs[0]["rejected"][0]["content"] = [{"type": "image", "path": "0.png"}, {"type": "text", "text": "b"}]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.raises(LuthierError, match="a rejected answer with a picture"):
        lt.train(replace(run, out=str(tmp_path / "other")))


def test_objectives_that_do_not_take_pictures_say_so(folder, tmp_path):
    rows = write_digits(tmp_path / "rows", 6)
    run = Run(
        str(folder), str(rows), lt.LoRA(rank=2), objective=lt.MaskedThought(), out=str(tmp_path / "run"), training=STEPS
    )
    with pytest.raises(LuthierError, match="has pictures, and"):
        lt.train(run)

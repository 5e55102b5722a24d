"""Distillation runs: from an adapter, from the base with a text that the student does not see, from another model."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import models
from luthier.core.contracts.objective import At
from luthier.methods.objectives.distill import TAUGHT
from luthier.training import Run, Training, metrics, train
from support.tiny import TEMPLATE, save_model, sums, write_rows

SETTINGS = Training(epochs=8, batch=4, lr=2e-2, eval_fraction=0.2, save_every=6)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("distill")
    rows = [row | {"hint": "Say it backwards, twice."} for row in sums(20)]
    return Run(
        save_model(folder / "llama", "llama", TEMPLATE),
        write_rows(folder / "rows.jsonl", rows),
        lt.LoRA(rank=4),
        out=str(folder / "hint"),
        objective=lt.Distill(),
        training=SETTINGS,
    )


@pytest.fixture(scope="module")
def plain(run) -> str:
    return write_rows(run.folder.parent / "plain.jsonl", sums(20))


def fell(result) -> bool:
    held = [line["eval_loss"] for line in metrics.read(result.folder) if "eval_loss" in line]
    return result.losses[-1][1] < 0.5 * result.losses[0][1] and held[-1] < held[0]


def test_a_hint_is_learned_into_the_weights(run):
    result = train(run, progress=False)
    lines = [line for line in metrics.read(result.folder) if "loss" in line]
    assert fell(result) and 0 <= lines[-1]["agreement"] <= 1
    again = train(replace(run, out=f"{run.out}-again"), progress=False)
    assert again.losses == result.losses


def test_an_adapter_teaches_another_form(run, plain):
    """The teacher's own tensors stay, none of them is saved, and it is off the model afterwards."""
    taught = replace(run, data=plain, objective=lt.SFT(), out=f"{run.out}-teacher")
    teacher = train(taught, progress=False)
    before = load_file(teacher.adapter / "adapter.safetensors")
    chosen = lt.Distill(teacher=str(teacher.folder), divergence="reverse")
    student = train(replace(taught, form=lt.IA3(), objective=chosen, out=f"{run.out}-student"), progress=False)
    assert student.losses[-1][1] < student.losses[0][1]
    assert {row["form"] for row in lt.describe(student.model)} == {"ia3"}
    after = load_file(teacher.adapter / "adapter.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    same = train(replace(taught, objective=chosen, out=f"{run.out}-same"), progress=False)
    assert fell(same)


def test_another_model_teaches(run, plain):
    larger = save_model(run.folder.parent / "larger", "llama", TEMPLATE, num_hidden_layers=4)
    chosen = replace(run, data=plain, objective=lt.Distill(teacher=larger, divergence="jsd"), out=f"{run.out}-larger")
    result = train(chosen, progress=False)
    assert result.losses[-1][1] < result.losses[0][1]
    assert sum(p.numel() for p in models.load(run.model).model.parameters()) == result.total


def test_teachers_that_cannot_be_are_refused(run, plain):
    with pytest.raises(lt.LuthierError, match="nothing to learn"):
        train(replace(run, data=plain, out=f"{run.out}-none"), progress=False)
    with pytest.raises(lt.LuthierError, match="nowhere"):
        train(
            replace(run, data=plain, objective=lt.Distill(teacher="./nowhere"), out=f"{run.out}-none"), progress=False
        )
    with pytest.raises(lt.LuthierError, match="would ignore"):
        lt.Distill(beta=0.3)
    with pytest.raises(lt.LuthierError, match="without them"):
        lt.Distill(divergence="jsd", beta=1.0)


def test_a_teacher_of_another_vocabulary_is_refused(run, plain, tmp_path):
    from support.tiny import tokenizer

    other = save_model(tmp_path / "other", "llama", TEMPLATE)
    changed = tokenizer(TEMPLATE)
    changed.add_tokens(["<more>"])
    changed.save_pretrained(other)
    with pytest.raises(lt.LuthierError, match="another vocabulary"):
        train(replace(run, data=plain, objective=lt.Distill(teacher=other), out=f"{run.out}-none"), progress=False)


@contextmanager
def served(loaded, answers=lambda told: told):
    """A server whose completions tell the log-probabilities of a prompt under a model; `answers` may change them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send({"data": [{"id": "teacher"}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["echo"] and asked["max_tokens"] == 0 and asked["model"] == "teacher"
            ids = asked["prompt"]
            with torch.no_grad():
                logs = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            found = [None, *(float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1))]
            texts = [loaded.processor.decode([each]) for each in ids]
            self.send(answers({"choices": [{"logprobs": {"tokens": texts, "token_logprobs": found}}]}))

        def send(self, value):
            self.send_response(200 if value else 400)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_teaches(run, plain):
    """By the log-probabilities of the student's own answers: those of the very model that it serves."""
    teacher = models.load(save_model(run.folder.parent / "server", "llama", TEMPLATE, num_hidden_layers=2))
    settings = replace(SETTINGS, steps=12, batch=8, lr=2e-2)
    with served(teacher) as url:
        chosen = lt.Distill(teacher=url, divergence="reverse", own=1.0, max_tokens=8)
        result = train(
            replace(run, data=plain, objective=chosen, training=settings, out=f"{run.out}-served"), progress=True
        )
    lines = [line for line in metrics.read(result.folder) if "loss" in line]
    assert all(line["gap"] == pytest.approx(line["loss"], rel=1e-5) for line in lines)
    assert lines[0]["gap"] > 0 and sum(line["gap"] for line in lines[-3:]) < sum(line["gap"] for line in lines[:3])
    with pytest.raises(lt.LuthierError, match="reverse divergence alone"):
        lt.Distill(teacher=url, own=1.0)
    out = f"{run.out}-unserved"
    for answers, why in (
        (lambda told: None, "does not tell the log-probabilities"),
        (lambda told: {"choices": [{"logprobs": None}]}, "it sends none"),
        (lambda told: {"choices": [{"logprobs": {"tokens": [], "token_logprobs": [None]}}]}, "reads them otherwise"),
    ):
        with served(teacher, answers) as url, pytest.raises(lt.LuthierError, match=why):
            train(replace(run, data=plain, objective=replace(chosen, teacher=url), out=out), progress=False)


def test_what_a_server_tells_gives_the_divergences_gradient_on_average():
    """Σ_y p_S(y) times the gradient of answer y is the gradient of KL(p_S ‖ p_T), and so is the loss its value."""
    draw = torch.Generator().manual_seed(0)
    words = 7
    student, teacher = (torch.randn(words, generator=draw, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    p_s, p_t = student.log_softmax(-1), teacher.log_softmax(-1)
    wanted = (p_s.exp() * (p_s - p_t)).sum()
    chosen = lt.Distill(teacher="http://none", divergence="reverse", own=1.0)

    class Told(torch.nn.Module):
        def forward(self, **inputs):
            return type("Output", (), {"logits": student.expand(1, 2, words)})

    found, slope = 0.0, torch.zeros(words, dtype=torch.float64)
    for word in range(words):
        labels = torch.tensor([[-100, word]])
        at = At(0, 1, True, lambda batch, word=word: p_t.detach()[word].expand(1, 1))
        batch = chosen.inputs({"input_ids": labels.clamp(min=0), "labels": labels}, at)
        assert batch[TAUGHT].shape == (1,)
        loss = chosen.loss(Told(), batch)
        share = p_s.detach()[word].exp()
        found += float(share * loss)
        slope += share * torch.autograd.grad(loss, student)[0]
    assert found == pytest.approx(float(wanted), rel=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted, student)[0], rtol=0, atol=1e-12)

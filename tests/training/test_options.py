"""Training options: schedules by their formulas, the best evaluation, early stopping, NEFTune."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import luthier as lt
from luthier.core.errors import LuthierError
from luthier.training import Run, Training, metrics, train
from luthier.training.arguments import loading, optim_of
from luthier.training.best import Best
from luthier.training.noise_scale import NoiseScale, noise_scale
from luthier.training.optimisers import Muon, ScheduleFree, orthogonal
from luthier.training.schedule import FALLS, PLAIN, is_plain, shape
from luthier.training.spec import LIBRARIES
from support.architectures import ARCHITECTURES

SHORT = Training(steps=8, batch=4, lr=1e-2, warmup=0.25, eval_fraction=0.2, eval_every=1, save_every=4, keep=20)


def run(llama, additions, tmp_path, **settings) -> Run:
    return Run(llama, additions, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=replace(SHORT, **settings))


def rates(run: Run) -> list[float]:
    return [line["lr"] for line in metrics.read(run.folder) if "loss" in line]


# --- schedules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_ours_are_transformers_where_both_have_one(name):
    """Step by step, as far as rounding goes."""
    settings = Training(steps=40, warmup=0.1, schedule=name)  # type: ignore[arg-type]
    alone = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = transformers.get_scheduler(PLAIN[name], alone, 4, 40).lr_lambdas[0]  # type: ignore[attr-defined]
    assert is_plain(settings)
    assert [shape(settings, 40)(s) for s in range(41)] == pytest.approx([theirs(s) for s in range(41)])


def test_formulas():
    def at(step: int, **settings) -> float:
        return shape(Training(steps=100, warmup=0.2, **settings), 100)(step)

    for name in FALLS:
        assert [at(s, schedule=name) for s in (0, 10, 20)] == pytest.approx([0, 0.5, 1])
    assert at(60, schedule="cosine", min_lr=0.1) == pytest.approx(0.1 + 0.9 * 0.5)
    assert at(100, schedule="cosine", min_lr=0.1) == pytest.approx(0.1) == at(100, schedule="linear", min_lr=0.1)
    assert at(60, schedule="polynomial", power=3.0, min_lr=0.2) == pytest.approx(0.2 + 0.8 * 0.5**3)
    assert [at(s, schedule="wsd", decay=0.4) for s in (21, 60, 80, 100)] == pytest.approx([1, 1, 0.5, 0])
    assert at(90, schedule="wsd", decay=0.2, min_lr=0.5) == pytest.approx(0.75)
    assert at(80, schedule="inverse_sqrt") == pytest.approx(math.sqrt(20 / 80))
    assert [at(s, schedule="cosine_restarts", cycles=2) for s in (40, 60, 80, 100)] == pytest.approx([0.5, 1, 0.5, 0])


def test_a_schedule_is_what_training_follows(llama, additions, tmp_path):
    wanted = run(llama, additions, tmp_path, schedule="wsd", decay=0.5, min_lr=0.1)
    train(wanted, progress=False)
    factors = [shape(wanted.training, 8)(s) for s in range(8)]
    assert rates(wanted) == pytest.approx([1e-2 * f for f in factors], abs=1e-9) or rates(wanted) == pytest.approx(
        [1e-2 * shape(wanted.training, 8)(s) for s in range(1, 9)], abs=1e-9
    )


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"min_lr": 0.1, "schedule": "constant"}, "min_lr is 0.1 and would be ignored"),
        ({"decay": 0.3}, "acts where schedule is wsd"),
        ({"cycles": 3, "schedule": "cosine"}, "acts where schedule is cosine_restarts"),
        ({"power": 1.0}, "acts where schedule is polynomial"),
        ({"patience": 2}, "say by which figure"),
        ({"min_lr": 2.0}, "expected between 0 and 1"),
        ({"best": "loss", "patience": 0}, "expected at least 1"),
    ],
)
def test_what_would_be_ignored_is_refused(wrong, told):
    with pytest.raises(LuthierError, match=told):
        Training(**wrong)


# --- the best evaluation -----------------------------------------------------------------------------


def test_the_best_adapter_is_saved_and_training_stops(llama, additions, tmp_path):
    """A rate so high that the loss rises soon: the adapter is that of the best step, bit for bit."""
    wanted = run(llama, additions, tmp_path, steps=30, lr=0.3, warmup=0.0, schedule="constant", best="loss", patience=3)
    done = train(wanted, progress=False)
    held = dict(done.eval_losses)
    best = min(held, key=held.__getitem__)
    assert max(held) == best + 3 < 30 and done.eval_loss == held[best] < held[max(held)]
    kept = load_file(wanted.folder / "checkpoints" / f"step-{best}" / "adapter.safetensors")
    saved = load_file(wanted.folder / "adapter" / "adapter.safetensors")
    assert sorted(t.double().sum().item() for t in kept.values()) == sorted(
        t.double().sum().item() for t in saved.values()
    )
    again = train(wanted, resume=True, progress=False)  # it is over, and stays so
    assert again.eval_loss == done.eval_loss and len(again.losses) == len(done.losses)


def test_a_resumed_run_knows_what_was_best(llama, additions, tmp_path):
    wanted = run(llama, additions, tmp_path, steps=6, best="loss")
    whole = train(wanted, progress=False)
    shorter = replace(wanted, out=str(tmp_path / "cut"))
    train(shorter, progress=False)
    for step in (5, 6):
        shutil.rmtree(shorter.folder / "checkpoints" / f"step-{step}", ignore_errors=True)
    assert train(shorter, resume=True, progress=False).eval_losses == whole.eval_losses
    ours, theirs = (load_file(r.folder / "adapter" / "adapter.safetensors") for r in (wanted, shorter))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_figures_of_which_more_is_better(llama, additions, tmp_path):
    made = Best(run(llama, additions, tmp_path, best="accuracy", patience=2), None, writes=False)
    made.values = [(1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6)]
    assert made.at() == 2 and made._spent()
    made.values = made.values[:3]
    assert not made._spent()
    with pytest.raises(LuthierError, match="no row is held out"):
        train(run(llama, additions, tmp_path, best="loss", eval_fraction=0.0), progress=False)
    with pytest.raises(LuthierError, match="best is 'accuracy'; an evaluation of this run tells: loss"):
        train(run(llama, additions, tmp_path, best="accuracy"), progress=False)


# --- the loss ----------------------------------------------------------------------------------------


def test_neftune_acts_in_training_alone(llama, additions, tmp_path):
    plain = train(run(llama, additions, tmp_path / "a", steps=2), progress=False)
    noisy = train(run(llama, additions, tmp_path / "b", steps=2, neftune=50.0), progress=False)
    assert noisy.losses[0] != plain.losses[0]
    assert noisy.eval_losses[0] == plain.eval_losses[0]  # at rate 0 nothing was learned, and evaluations have no noise
    assert noisy.eval_losses[1] != plain.eval_losses[1]
    again = train(run(llama, additions, tmp_path / "c", steps=2, neftune=50.0), progress=False)
    assert again.losses == noisy.losses


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_neftune_reaches_every_table_that_reads_tokens(name):
    """An encoder and a decoder read the table that they share through modules of their own."""
    from luthier.core.sites.tables import token_tables
    from luthier.methods.noise import noisy
    from support.shipped import build

    model, noise = build(name).train(), {}
    encoder = model.config.is_encoder_decoder
    batch = {"input_ids": torch.tensor([[3, 4, 5]])}
    more = {"decoder_input_ids": torch.tensor([[3, 4]])} if encoder else {}

    def see(module, args, out):
        noise[module] = float((out - torch.nn.functional.embedding(args[0], module.weight)).detach().abs().max())

    with noisy(model, 5.0, batch):
        for table in token_tables(model):
            table.register_forward_hook(see)
        model(**batch, **more)
    assert len(noise) == (2 if encoder else 1) and min(noise.values()) > 0


def test_label_smoothing_is_its_equation():
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :3] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    log_p = torch.log_softmax(model(input_ids=ids).logits, -1)[:, :-1][labels[:, 1:] != -100]
    own = log_p.gather(1, labels[:, 1:][labels[:, 1:] != -100][:, None]).mean()
    wanted = -0.7 * own - 0.3 * log_p.mean()
    smoothing = lt.find("objectives", "label_smoothing")
    assert torch.allclose(smoothing(epsilon=0.3).loss(model, batch), wanted, rtol=1e-10)  # type: ignore[attr-defined]


# --- optimisers --------------------------------------------------------------------------------------


CLASSES = {
    "adamw": "AdamW", "adafactor": "Adafactor", "sgd": "SGD", "lion": "Lion", "adamw_8bit": "AdamW", "muon": "Muon",
    "schedule_free": "ScheduleFree", "adamw_torch_8bit": "AdamW8bit", "adamw_torch_4bit": "AdamW4bit",
}  # fmt: skip


@pytest.fixture
def as_it_is():
    """What libraries would compile runs as it is."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("name", CLASSES)
def test_an_optimiser_is_the_one_that_was_asked_for(llama, additions, tmp_path, name, as_it_is):
    """It is the class that is meant, learns, and a run that is resumed is the whole run, bit for bit.

    Libraries keep states of fewer than 4,096 numbers as they are, so here their AdamW is torch's.
    """
    if library := LIBRARIES.get(name):
        pytest.importorskip(library)
    rate = {"sgd": 0.5, "lion": 1e-3}.get(name, 1e-2)
    more = {"schedule": "constant"} if name == "schedule_free" else {}
    wanted = run(llama, additions, tmp_path / "a", steps=4, lr=rate, optimizer=name, save_every=2, **more)
    seen: list[torch.optim.Optimizer] = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            seen.append(getattr(optimizer, "optimizer", optimizer))

    done = train(wanted, progress=False, callbacks=[Look()])
    assert {type(each).__name__ for each in seen} == {CLASSES[name]}
    assert all(each.param_groups[0]["fused"] for each in seen) if name == "adamw" else True
    plain = train(run(llama, additions, tmp_path / "b", steps=4, lr=rate, **more), progress=False)
    assert done.losses[-1][1] < done.losses[0][1] + 0.5
    if CLASSES[name].startswith("AdamW"):
        assert [loss for _, loss in done.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)
    else:
        assert done.losses != plain.losses
    shutil.rmtree(wanted.folder / "checkpoints" / "step-4")
    assert train(wanted, resume=True, progress=False).losses == done.losses


def test_pages_are_a_gpus(llama, additions, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LuthierError, match="here is none; take adamw_8bit"):
        train(run(llama, additions, tmp_path, optimizer="paged_adamw_8bit"), progress=False)
    assert optim_of(Training(optimizer="paged_adamw_8bit")) == {"optim": "paged_adamw_8bit"}


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_torch_8bit", "adamw_torch_4bit"])
def test_large_states_have_few_bits(name, as_it_is):
    library = pytest.importorskip(LIBRARIES[name])
    args = transformers.TrainingArguments("x", use_cpu=True, report_to=[], **optim_of(Training(optimizer=name)))
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(args)
    parameter = torch.nn.Parameter(torch.ones(64, 128))
    made = kind([parameter], **settings)
    parameter.grad = torch.full((64, 128), 0.5)
    made.step()
    moment = made.state[parameter]["state1" if library.__name__ == "bitsandbytes" else "exp_avg"]
    assert (
        moment.dtype == torch.uint8
        or type(moment).__name__ == {"8": "OptimState8bit", "4": "OptimState4bit"}[name.removesuffix("bit")[-1]]
    )


def follows(made: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: int = 6) -> list[torch.Tensor]:
    """The parameters behind some steps on fixed gradients."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)
        made.step()
    return [p.detach().clone() for p in parameters]


def parameters_of(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]


def test_muon_is_torchs_for_matrices_and_adamw_for_all_else():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has none")
    settings = {"lr": 0.02, "weight_decay": 0.1}
    shapes = ((6, 40), (40, 6), (8,))
    ours = follows(Muon((own := parameters_of(*shapes)), **settings), own)
    wide, tall, bias = parameters_of(*shapes)

    class Both:
        parts = (
            torch.optim.Muon([wide, tall], adjust_lr_fn="match_rms_adamw", **settings),
            torch.optim.AdamW([bias], **settings),
        )

        def step(self):
            for part in self.parts:
                part.step()

    theirs = follows(Both(), [wide, tall, bias])  # type: ignore[arg-type]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=2e-2, atol=2e-3)  # its iterations are rounded to bfloat16
    values = torch.linalg.svdvals(orthogonal(torch.randn(6, 40, generator=torch.Generator().manual_seed(2))).float())
    assert values.min() > 0.5 and values.max() < 1.4


def test_schedule_free_is_its_equations():
    [p], rate, one, two = parameters_of((5, 3)), 0.05, 0.9, 0.999
    x = z = p.detach().double().clone()
    square, total = torch.zeros_like(x), 0.0
    y, draw = x, torch.Generator().manual_seed(0)
    for count in range(1, 7):
        grad = torch.randn(p.shape, generator=draw).double()
        square = two * square + (1 - two) * grad**2
        z = z - rate * (grad / ((square / (1 - two**count)).sqrt() + 1e-8) + 0.1 * y)
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        y = (1 - one) * z + one * x
    made = ScheduleFree([p], lr=rate, weight_decay=0.1)
    assert torch.allclose(follows(made, [p])[0].double(), y, atol=1e-5)
    assert torch.allclose(made.state[p]["x"].double(), x, atol=1e-5)


def test_the_mean_is_what_schedule_free_evaluates_and_saves(llama, additions, tmp_path):
    wanted = run(
        llama, additions, tmp_path, steps=4, lr=5e-2, optimizer="schedule_free", schedule="constant", save_every=1
    )
    done = train(wanted, progress=False)

    def at(step: int, name: str) -> dict[str, torch.Tensor]:
        return load_file(wanted.folder / "checkpoints" / f"step-{step}" / name)

    mean, point = at(4, "averaged.safetensors"), at(4, "adapter.safetensors")
    saved = load_file(wanted.folder / "adapter" / "adapter.safetensors")
    sums = [sorted(t.double().sum().item() for t in each.values()) for each in (saved, mean, point)]
    assert sums[0] == sums[1] != sums[2]
    shutil.rmtree(wanted.folder / "adapter")  # as of a run that ended between its last checkpoint and its adapter
    again = train(wanted, resume=True, progress=False)
    kept = load_file(wanted.folder / "adapter" / "adapter.safetensors")
    assert again.eval_losses == done.eval_losses and all(torch.equal(kept[key], saved[key]) for key in saved)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({}, "add schedule=constant"), ({"schedule": "constant", "ema": 0.9}, "an average of its own"),
     ({"schedule": "constant", "shard": True}, "does not go with shard")],
)  # fmt: skip
def test_schedule_free_needs_no_schedule(wrong, told):
    with pytest.raises(LuthierError, match=told):
        Training(optimizer="schedule_free", **wrong)


def test_an_update_of_adamw_goes_with_adamw_alone(llama, additions, tmp_path):
    with pytest.raises(LuthierError, match="changes what AdamW does, and the optimiser is sgd"):
        replace(run(llama, additions, tmp_path, optimizer="sgd"), update=lt.find("updates", "lora_plus")())  # type: ignore[arg-type]


# --- averages, attention, weights of classes ---------------------------------------------------------


def test_the_average_is_saved_and_resumes_exactly(llama, additions, tmp_path):
    """θ̄ by its recurrence, from the checkpoint of every step; training itself is as without it."""
    plain = run(llama, additions, tmp_path / "a", steps=6, save_every=1)
    wanted = run(llama, additions, tmp_path / "b", steps=6, save_every=1, ema=0.7)
    without, done = train(plain, progress=False), train(wanted, progress=False)
    assert done.losses == without.losses and done.eval_losses[-1] != without.eval_losses[-1]

    def at(step: int, name: str = "adapter.safetensors") -> dict[str, torch.Tensor]:
        return load_file(wanted.folder / "checkpoints" / f"step-{step}" / name)

    mean = None
    for step in range(1, 7):
        raw, kept = at(step), at(step, "averaged.safetensors")
        if mean is not None:
            for key, tensor in raw.items():
                assert torch.allclose(kept[key], 0.7 * mean[key] + 0.3 * tensor, atol=1e-7)
        mean = kept
    saved = load_file(wanted.folder / "adapter" / "adapter.safetensors")
    assert sorted(t.double().sum().item() for t in saved.values()) == sorted(
        t.double().sum().item() for t in mean.values()
    )
    for step in (4, 5, 6):
        shutil.rmtree(wanted.folder / "checkpoints" / f"step-{step}")
    again = train(wanted, resume=True, progress=False)
    resumed = load_file(wanted.folder / "adapter" / "adapter.safetensors")
    assert again.eval_losses == done.eval_losses and all(torch.equal(resumed[key], saved[key]) for key in saved)
    finished = train(wanted, resume=True, progress=False)
    kept = load_file(finished.adapter / "adapter.safetensors")
    assert all(torch.equal(kept[key], saved[key]) for key in saved)


def test_the_best_of_averages_is_an_average(llama, additions, tmp_path):
    wanted = run(llama, additions, tmp_path, steps=4, save_every=1, ema=0.5, best="loss")
    done = train(wanted, progress=False)
    held = dict(done.eval_losses)
    best = min(held, key=held.__getitem__)
    mean = load_file(wanted.folder / "checkpoints" / f"step-{best}" / "averaged.safetensors")
    saved = load_file(wanted.folder / "adapter" / "adapter.safetensors")
    assert sorted(t.double().sum().item() for t in saved.values()) == sorted(
        t.double().sum().item() for t in mean.values()
    )


@pytest.mark.parametrize(
    "wrong, told",
    [({"ema": 1.0}, "would stay where training starts"), ({"ema": -0.1}, "expected between"),
     ({"attn": "flash_attention_2"}, "flash-attn"), ({"attn": "quick"}, "attn")],
)  # fmt: skip
def test_averages_and_attention_that_cannot_be(wrong, told):
    if wrong.get("attn") == "flash_attention_2" and __import__("importlib.util").util.find_spec("flash_attn"):
        pytest.skip("flash-attn is here")
    with pytest.raises(LuthierError, match=told):
        Training(**wrong)


def test_attention_is_computed_as_was_asked_for(llama, additions, tmp_path):
    losses = {}
    for name in ("eager", "sdpa"):
        done = train(run(llama, additions, tmp_path / name, steps=2, attn=name, pack=False), progress=False)
        assert done.model.config._attn_implementation == name
        losses[name] = [loss for _, loss in done.losses]
    assert losses["eager"] == pytest.approx(losses["sdpa"], rel=1e-4)
    with pytest.raises(LuthierError, match="was loaded with sdpa"):
        train(lt.model(llama), additions, form=lt.LoRA(rank=2), out=str(tmp_path / "c"), attn="eager", progress=False)


def test_class_weights_are_their_equation(bert):
    from luthier import models

    loaded = models.load(bert, task="classification", labels=["a", "b", "c"])
    ids = torch.randint(4, 90, (4, 6), generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, 1, 1, 2]), torch.tensor([5.0, 1.0, 1.0, 0.5])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "weight": weights}
    chosen = lt.ClassWeights(weights="a=5,c=0.5")
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        theirs = torch.nn.functional.cross_entropy(logits, labels, weight=torch.tensor([5.0, 1.0, 0.5]))
        assert torch.allclose(chosen.loss(loaded.model, batch), theirs, rtol=1e-5)
    assert chosen.token_counts(batch, torch.ones(4)).tolist() == [7.5]
    assert chosen.of_classes(["a", "b", "c"], []) == {"a": 5.0, "b": 1.0, "c": 0.5}
    with pytest.raises(LuthierError, match="weights is 'a'; expected balanced"):
        lt.ClassWeights(weights="a")
    with pytest.raises(LuthierError, match="names 'd', which is not a class"):
        lt.ClassWeights(weights="d=1").of_classes(["a"], [])


def test_balanced_weights_are_scikit_learns(bert, tmp_path):
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    from luthier import data
    from support.tiny import write_rows

    rows = [{"text": "x" * (1 + i), "label": "abb"[i % 3]} for i in range(10)]
    examples = data.load(write_rows(tmp_path / "rows.jsonl", rows))
    ours = lt.ClassWeights().of_classes(examples.labels, examples.rows)
    names = [row["label"] for row in rows]
    assert list(ours.values()) == pytest.approx(
        sklearn.compute_class_weight("balanced", classes=np.array(["a", "b"]), y=names)
    )


def test_a_rare_class_is_told_where_it_weighs_more(bert, tmp_path):
    """Rows that nobody can tell apart, a tenth of one class: its probability goes to its weighted share."""
    from luthier.evaluating import predict
    from support.tiny import write_rows

    rows = [{"text": "same", "label": "rare" if i % 10 == 0 else "usual"} for i in range(40)]
    source, shares = write_rows(tmp_path / "rows.jsonl", rows), {}
    for name, objective in {"equal": lt.SFT(), "more": lt.ClassWeights(weights="rare=27")}.items():
        settings = Training(steps=40, batch=40, lr=2e-2, eval_fraction=0.0, save_every=100)
        wanted = Run(bert, source, lt.LoRA(rank=2), objective=objective, out=str(tmp_path / name), training=settings)
        done = train(wanted, progress=False)
        found = predict(done.model, done.processor, [{"text": "same"}], top_k=2).rows[0]
        shares[name] = {found["prediction"]: found["probability"], found["prediction_2"]: found["probability_2"]}
    assert shares["equal"]["rare"] == pytest.approx(0.1, abs=0.05)
    assert shares["more"]["rare"] == pytest.approx(0.75, abs=0.08)


# --- figures of a task, batches from other processes, compiled blocks ---------------------------------


def labelled(tmp_path, kind: str) -> str:
    from support.tiny import write_rows

    numbers = range(24)
    rows: dict[str, list[dict]] = {
        "classes": [{"text": "ab"[i % 2] * (1 + i % 5), "label": "xy"[i % 2]} for i in numbers],
        "numbers": [{"text": "a" * (1 + i), "label": i / 4 + 0.1} for i in numbers],
        "several": [{"text": "ab"[i % 2] * (1 + i), "labels": ["xy"[i % 2], "z"]} for i in numbers],
        "entities": [
            {"tokens": ["a" * (1 + i), "b"], "ner_tags": ["B-X", "O"] if i % 2 else ["O", "O"]} for i in numbers
        ],
        "tags": [{"tokens": ["a" * (1 + i), "b"], "ner_tags": ["N", "V"]} for i in numbers],
        "places": [
            {
                "question": "Q?",
                "context": "a" * i + "Z",
                "answers": {"text": ["Z"][i % 4 == 3 :], "answer_start": [i][i % 4 == 3 :]},
            }
            for i in numbers
        ],
        "pairs": [{"anchor": "a" * (1 + i), "positive": "A" * (1 + i)} for i in numbers],
        "triplets": [{"anchor": "a" * (1 + i), "positive": "A" * (1 + i), "negative": "b" * i + "c"} for i in numbers],
    }
    return write_rows(tmp_path / "rows.jsonl", rows[kind])


TOLD = {
    "classes": ({"accuracy", "mcc", "macro_f1", "macro_precision", "macro_recall"}, "macro_f1"),
    "numbers": ({"pearson", "mse"}, "mse"),
    "several": ({"micro_f1", "micro_precision", "micro_recall", "exact_match"}, "micro_f1"),
    "entities": ({"f1", "precision", "recall", "accuracy"}, "f1"),
    "tags": ({"accuracy"}, "accuracy"),
    "places": ({"f1", "exact_match"}, "f1"),
    "pairs": ({"mrr@10", "accuracy@1", "accuracy@10"}, "mrr@10"),
    "triplets": ({"mrr@10", "accuracy@1", "accuracy@10", "triplet_accuracy"}, "triplet_accuracy"),
}
OWN = {"pairs": {"accuracy"}, "triplets": {"accuracy"}}
"""Figures of the objective over its batches, which `luthier evaluate` does not tell."""


@pytest.mark.parametrize("kind", TOLD)
def test_the_best_adapter_by_a_figure_of_the_task(bert, tmp_path, kind):
    """Every evaluation tells what `luthier evaluate` tells of the same rows, and best goes by any of it."""
    from luthier import data
    from luthier.evaluating import evaluate

    names, best = TOLD[kind]
    source = labelled(tmp_path, kind)
    settings = replace(SHORT, steps=6, batch=8, lr=5e-2, best=best, patience=3)
    near = {"objective": lt.InfoNCE()} if kind in OWN else {}
    wanted = Run(bert, source, lt.LoRA(rank=2), eval_data=None, out=str(tmp_path / "run"), training=settings, **near)
    done = train(wanted, progress=False)
    told = [line for line in metrics.read(wanted.folder) if "eval_loss" in line]
    assert all({f"eval_{name}" for name in names} <= set(line) for line in told)
    sign = -1 if best == "mse" else 1
    chosen = max(told, key=lambda line: (sign * line[f"eval_{best}"], -line["step"]))
    held = data.split(data.load(source), n=round(0.2 * 24), seed=0)[1]
    again = evaluate(done.model, done.processor, held, progress=False)
    for name in names:
        assert again.metrics[name] == pytest.approx(chosen[f"eval_{name}"], abs=1e-5) or math.isnan(again.metrics[name])
    with pytest.raises(LuthierError, match="best is 'rouge'; an evaluation of this run tells: ") as refused:
        train(replace(wanted, training=replace(settings, best="rouge"), out=str(tmp_path / "no")), progress=False)
    told = set(str(refused.value).partition("tells: ")[2].removesuffix(".").split(", "))
    assert told == {"loss", *names, *OWN.get(kind, ())}


@pytest.mark.parametrize("best", ["exact_match", "rougeL", "number"])
def test_the_best_adapter_by_written_answers(llama, additions, tmp_path, best):
    """The figure of an evaluation is that of `luthier evaluate` on the rows held out, and best goes by it."""
    from luthier import data
    from luthier.evaluating import evaluate

    if best == "rougeL":
        pytest.importorskip("rouge_score")
    wanted = run(llama, additions, tmp_path, steps=9, batch=8, lr=3e-2, eval_every=3, best=best)
    done = train(wanted, progress=False)
    told = {line["step"]: line[f"eval_{best}"] for line in metrics.read(wanted.folder) if f"eval_{best}" in line}
    assert list(told) == [3, 6, 9]
    examples = data.load(additions)
    held = data.split(examples, n=round(0.2 * len(examples)), seed=0)[1]
    more = {"metrics": [best]} if best == "rougeL" else {"scorer": data.scorer_for(held, best)}
    again = evaluate(done.model, done.processor, held, progress=False, **more)
    assert again.metrics[best] == pytest.approx(max(told.values()), abs=1e-6)


def test_the_best_adapter_by_written_answers_where_it_goes_by_tasks(llama, tmp_path):
    from luthier import data
    from luthier.evaluating import evaluate
    from support.tiny import sums, write_rows

    source = write_rows(tmp_path / "rows.jsonl", [row | {"task": "ab"[i % 2]} for i, row in enumerate(sums(24))])
    form, settings = lt.MHR(rank=2, skills=2, tasks=("a", "b")), replace(SHORT, steps=4, eval_every=2, best="number")
    wanted = Run(llama, source, form, out=str(tmp_path / "run"), training=replace(settings, batch=8))
    done = train(wanted, progress=False)
    told = {line["step"]: line["eval_number"] for line in metrics.read(wanted.folder) if "eval_number" in line}
    assert list(told) == [2, 4]
    rows = data.load(source, columns=("task",))
    held = data.split(rows, n=round(0.2 * len(rows)), seed=0)[1]
    again = evaluate(done.model, done.processor, held, progress=False, scorer=data.scorer_for(held, "number"))
    assert again.score == pytest.approx(max(told.values()), abs=1e-6)


def longest(held, processor) -> int:
    """The most tokens of an answer that an evaluation writes to these rows."""
    from luthier import data

    features = data.encode_all(held, processor, task=held.task, max_length=None)
    return 16 + max(sum(label != -100 for label in feature["labels"]) for feature in features)


@pytest.mark.parametrize("best", ["exact_match", "chrf"])
def test_the_best_adapter_by_what_a_model_with_an_encoder_writes(tmp_path, best):
    from luthier import data
    from luthier.evaluating import evaluate
    from support.tiny import save_model, sums, write_rows

    if best == "chrf":
        pytest.importorskip("sacrebleu")
    base, source = save_model(tmp_path / "t5", "t5"), write_rows(tmp_path / "rows.jsonl", sums(24))
    settings = replace(SHORT, steps=4, batch=8, lr=2e-2, eval_every=2, best=best)
    wanted = Run(base, source, lt.LoRA(rank=2), task="seq2seq", out=str(tmp_path / "run"), training=settings)
    done = train(wanted, progress=False)
    told = {line["step"]: line[f"eval_{best}"] for line in metrics.read(wanted.folder) if f"eval_{best}" in line}
    assert list(told) == [2, 4]
    rows = data.load(source, task="seq2seq")
    held = data.split(rows, n=round(0.2 * len(rows)), seed=0)[1]
    more = {"metrics": [best]} if best == "chrf" else {"scorer": data.scorer_for(held, best)}
    most = longest(held, done.processor)
    again = evaluate(done.model, done.processor, held, progress=False, max_new_tokens=most, **more)
    assert again.metrics[best] == pytest.approx(max(told.values()), abs=1e-6)


def test_the_best_adapter_by_what_is_written_down_of_sounds(tmp_path):
    from luthier import data
    from luthier.evaluating import evaluate
    from support.tiny import write_rows
    from support.tiny_speech import save_whisper, spoken_rows

    base, source = save_whisper(tmp_path / "whisper"), write_rows(tmp_path / "rows.jsonl", spoken_rows(tmp_path, 10))
    settings = replace(SHORT, steps=4, batch=4, lr=2e-2, eval_every=2, best="cer")
    wanted = Run(base, source, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=settings)
    done = train(wanted, progress=False)
    told = {line["step"]: line["eval_cer"] for line in metrics.read(wanted.folder) if "eval_cer" in line}
    assert list(told) == [2, 4]
    rows = data.load(source)
    held = data.split(rows, n=2, seed=0)[1]
    most = longest(held, done.processor)
    again = evaluate(done.model, done.processor, held, progress=False, max_new_tokens=most)
    assert again.metrics["cer"] == pytest.approx(min(told.values()), abs=1e-6)  # less is better
    with pytest.raises(LuthierError, match="tells: loss, wer, cer, wer_plain, word_accuracy"):
        train(replace(wanted, training=replace(settings, best="bleu"), out=str(tmp_path / "no")), progress=False)


def test_rows_without_answers_have_none_to_score(llama, tmp_path):
    from support.tiny import write_rows

    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"a text {i}"} for i in range(20)])
    with pytest.raises(LuthierError, match="best is 'bleu'; an evaluation of this run tells: loss"):
        train(run(llama, texts, tmp_path, best="bleu"), progress=False)


def test_the_noise_scale_is_the_ratio_of_what_was_put_in(llama, additions, tmp_path):
    """Gradients G + noise of a row: the means of both estimates, in rows; and a run tells them, and is as without."""
    draw = torch.Generator().manual_seed(0)
    truth, spread, rows = torch.randn(50, generator=draw), 2.0, 4
    p, measured, lines = torch.nn.Parameter(torch.zeros(50)), NoiseScale(), []
    for _ in range(400):
        p.grad = torch.zeros(50)
        for _ in range(3):
            p.grad = p.grad + (truth + spread / rows**0.5 * torch.randn(50, generator=draw)) / 3
            measured.batch({"p": p}, 1 / 3, rows)
        lines.append(measured.step())
    mean = {key: sum(line[key] for line in lines) / len(lines) for key in lines[0]}
    assert mean["grad_noise"] == pytest.approx(50 * spread**2, rel=0.05)
    assert mean["grad_signal"] == pytest.approx(float(truth.square().sum()), rel=0.05)
    assert noise_scale(lines) == pytest.approx(mean["grad_noise"] / mean["grad_signal"])
    settings = {"steps": 3, "batch": 2, "accumulate": 2}
    wanted = run(llama, additions, tmp_path / "a", noise_scale=True, **settings)
    done, plain = (
        train(wanted, progress=False),
        train(run(llama, additions, tmp_path / "b", **settings), progress=False),
    )
    told = [line for line in metrics.read(wanted.folder) if "loss" in line]
    assert all(line["grad_noise"] > 0 for line in told) and done.losses == plain.losses
    with pytest.raises(LuthierError, match="set accumulate to 2 or more"):
        Training(noise_scale=True)


def test_batches_from_other_processes_are_the_same(llama, additions, tmp_path):
    alone = train(run(llama, additions, tmp_path / "a", steps=3), progress=False)
    helped = train(run(llama, additions, tmp_path / "b", steps=3, workers=2), progress=False)
    assert helped.losses == alone.losses and helped.eval_losses == alone.eval_losses
    with pytest.raises(LuthierError, match="workers is -1"):
        Training(workers=-1)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_are_refused_where_they_would_not_be_forked(monkeypatch, method):
    fields = dict(transformers.TrainingArguments.__dataclass_fields__)
    fields.pop("dataloader_multiprocessing_context", None)
    monkeypatch.setattr(transformers.TrainingArguments, "__dataclass_fields__", fields)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: method)
    if method == "fork":
        assert loading(2) == {"dataloader_num_workers": 2}
        return
    with pytest.raises(LuthierError, match="workers is 2: they are forked"):
        loading(2)


@pytest.mark.long  # tracing alone takes seconds
def test_blocks_are_compiled_and_are_as_before_afterwards(llama, additions, tmp_path, monkeypatch):
    """Traced as for the compiler, whose code is left out. Blocks that are alike share what is compiled."""
    from functools import partial

    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    done = train(run(llama, additions, tmp_path / "a", steps=2, compile=True), progress=False)
    assert 0 < counters["stats"]["unique_graphs"] <= 12, "each step is compiled anew"
    monkeypatch.undo()
    plain = train(run(llama, additions, tmp_path / "b", steps=2), progress=False)
    assert [loss for _, loss in done.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)
    assert all(module._compiled_call_impl is None for module in done.model.modules())

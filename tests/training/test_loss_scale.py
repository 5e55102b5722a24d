"""A float16 base: the loss is scaled, small gradients arrive, and an overflow costs a step and no more."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

import luthier as lt
from luthier.core.device import usual_precision
from luthier.training import Training, train
from luthier.training.loss_scale import LARGEST, PATIENCE, LossScale
from luthier.training.spec import Run
from luthier.training.trainer import Diverged
from support.tiny import save_model, sums, write_rows

SHORT = Training(steps=6, batch=4, accumulate=2, lr=1e-2, save_every=3, keep=20, precision="float16")


@pytest.fixture
def run(tmp_path) -> Run:
    base, rows = save_model(tmp_path / "base", "llama"), write_rows(tmp_path / "rows.jsonl", sums(32))
    return Run(base, rows, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=SHORT)


def tensors_of(result) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(result.adapter.glob("*.safetensors")))


def linear(size: float = 1.0) -> tuple[torch.nn.Parameter, torch.Tensor]:
    """A float32 weight behind a float16 product, and the loss."""
    weight = torch.nn.Parameter(torch.full((2, 2), size))
    return weight, (weight.half() @ torch.full((2, 1), size).half()).float().mean()


def test_gradients_that_float16_does_not_have_arrive():
    weight = torch.nn.Parameter(torch.ones(4))
    loss = (weight.half() * 1e-4).float().mean() * 1e-6  # of 2.5e-11 in the middle: below the smallest of float16
    plain = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    scale = LossScale()
    scale.scaled(loss).backward()
    assert scale.unscale([weight]) and float(plain.abs().max()) == 0
    assert torch.allclose(weight.grad, torch.full((4,), 2.5e-11), rtol=1e-2)


def test_the_loss_itself_is_as_it_was():
    _, loss = linear()
    assert torch.equal(LossScale().scaled(loss), loss)


def test_an_overflow_halves_the_scale_and_leaves_no_gradient():
    weight, loss = linear(200.0)
    scale, halved = LossScale(), 0
    while True:
        weight.grad = None
        scale.scaled(loss * 100).backward(retain_graph=True)
        if scale.unscale([weight]):
            break
        halved += 1
        assert weight.grad is None and scale.factor == LARGEST / 2**halved
    assert halved > 0
    assert torch.allclose(weight.grad, torch.full((2, 2), 1e4), rtol=1e-3)


def test_it_doubles_after_so_many_steps_up_to_its_start():
    scale = LossScale()
    scale.factor = LARGEST / 2
    for _ in range(3 * PATIENCE):
        assert scale.unscale([])
    assert scale.factor == LARGEST


def test_gradients_that_are_never_finite_end_the_run(run, monkeypatch):
    def never(self, parameters):
        self.factor /= 2**16
        return False

    monkeypatch.setattr(LossScale, "unscale", never)
    with pytest.raises(Diverged, match=r"gradient's norm became inf at step 0, on the rows .* ends at 65,504"):
        train(run, progress=False)


def test_a_run_is_that_in_float32_to_rounding_and_keeps_float32_adapters(run):
    half = train(run, progress=False)
    whole = train(replace(run, out=f"{run.out}-32", training=replace(SHORT, precision="float32")), progress=False)
    assert half.model.dtype == torch.float16
    assert {t.dtype for t in tensors_of(half).values()} == {torch.float32}
    assert [x for _, x in half.losses] == pytest.approx([x for _, x in whole.losses], rel=5e-3)
    lines = [json.loads(line) for line in (half.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["loss_scale"] for line in lines if "loss" in line} == {LARGEST}


@pytest.fixture
def dropped(monkeypatch) -> list[bool]:
    """Has the gradients of a run's third and fourth step overflow, and notes what became of each step."""
    plain, told = LossScale.unscale, []

    def unscale(self, parameters):
        held = [p for p in parameters if p.grad is not None]
        if self.good in (2, 0) and len(told) in (2, 3):
            held[0].grad[0] = float("inf")
        told.append(plain(self, held))
        return told[-1]

    monkeypatch.setattr(LossScale, "unscale", unscale)
    return told


class Steps(transformers.TrainerCallback):
    """The adapter behind each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append({key: p.detach().clone() for key, p in lt.trainable(model).items()})


def test_an_overflow_in_a_run_costs_that_step_alone(run, dropped):
    steps = Steps()
    done = train(run, progress=False, callbacks=[steps])
    assert dropped == [True, True, False, False, True, True]
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(steps.seen)]
    assert moved == [True, False, False, True, True]
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    scales = [line["loss_scale"] / LARGEST for line in lines if "loss" in line]
    assert scales == [1, 1, 1 / 2, 1 / 4, 1 / 4, 1 / 4]


@pytest.mark.parametrize("more", [{}, {"ema": 0.5, "clip": 0.1}])
def test_a_resumed_run_has_the_scale_of_its_checkpoint(run, dropped, more):
    run = replace(run, training=replace(SHORT, **more))
    whole = train(run, progress=False)
    dropped.clear()
    again = replace(run, out=f"{run.out}-again")
    train(again, progress=False)
    shutil.rmtree(again.folder / "checkpoints" / "step-6")
    shutil.rmtree(again.folder / "adapter")
    del dropped[3:]
    resumed = train(again, resume=True, progress=False)
    assert resumed.losses == whole.losses and dropped == [True, True, False, False, True, True]
    assert all(torch.equal(t, tensors_of(whole)[key]) for key, t in tensors_of(resumed).items())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"update": lt.updates.SpIEL(), "form": lt.Sparse(density=0.1)}, r"spiel \(update\)"),
        ({"init": lt.inits.LoRAGA()}, r"lora_ga \(ranks, init\)"),
        ({"training": replace(SHORT, noise_scale=True)}, "noise_scale"),
        ({"update": lt.updates.SaRA(threshold=0.01), "form": lt.Full()}, r"sara \(update\)"),
    ],
)
def test_what_takes_gradients_of_its_own_is_refused(run, changed, named):
    with pytest.raises(lt.LuthierError, match=rf"{named} goes by gradients .* train in bfloat16 or float32"):
        train(replace(run, **changed), progress=False)


def test_auto_is_float16_where_a_gpu_has_no_bfloat16(monkeypatch):
    class Old:
        @staticmethod
        def is_bf16_supported(including_emulation: bool = True) -> bool:
            return including_emulation

    monkeypatch.setattr(torch, "get_device_module", lambda device: Old)
    assert usual_precision(torch.device("cuda", 0)) == "float16"
    assert usual_precision(torch.device("xpu", 0)) == "float32"

"""LoRA-Pro: its factors' gradients against the gradient of the whole weight, in float64."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.update import Update
from luthier.measuring.trial import trial
from luthier.methods.targeted_form import TargetedForm
from luthier.methods.updates.lora_pro import LoRAPro, nearest, scale
from support.calibrated import batches
from support.common import copies, llama, moments, run
from support.tiny import save_model

M, N, R, S = 7, 9, 3, 2.5


def pair(rank_b: int = R):
    """A, B (of `rank_b`), the gradient g of W, and what LoRA's own gradients are: s Bᵀ g and s g Aᵀ."""
    torch.manual_seed(0)
    a, b = torch.randn(R, N, dtype=torch.float64), torch.randn(M, R, dtype=torch.float64)
    b = b @ torch.diag(torch.tensor([1.0] * rank_b + [0.0] * (R - rank_b), dtype=torch.float64))
    g = torch.randn(M, N, dtype=torch.float64)
    return a, b, g, S * b.mT @ g, S * g @ a.mT


def projection(columns: torch.Tensor) -> torch.Tensor:
    return columns @ torch.linalg.pinv(columns)


@pytest.mark.parametrize("rank_b", [0, 1, 2, 3])
def test_the_equivalent_gradient_is_the_projection_of_the_whole(rank_b):
    a, b, g, da, db = pair(rank_b)
    ga, gb = nearest(a, b, da, db, S)
    pb, pa = projection(b), projection(a.mT)
    assert torch.allclose(S * (b @ ga + gb @ a), pb @ g + g @ pa - pb @ g @ pa, atol=1e-10)


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_badly_conditioned_factors_in_float32(condition):
    a, b, g, _, _ = pair()
    u, _, vt = torch.linalg.svd(b, full_matrices=False)
    b = (u * torch.logspace(0, -float(torch.tensor(condition).log10()), R, dtype=torch.float64) @ vt).float()
    a, g = a.float(), g.float()
    ga, gb = nearest(a, b, S * b.mT @ g, S * g @ a.mT, S)
    assert ga.dtype == gb.dtype == torch.float32
    pb, pa, g = projection(b.double()), projection(a.double().mT), g.double()
    step = S * (b.double() @ ga.double() + gb.double() @ a.double())
    assert torch.allclose(step, pb @ g + g @ pa - pb @ g @ pa, atol=1e-7 * condition + 1e-6)


@pytest.mark.parametrize("rank_b", [0, 2, 3])
def test_no_other_pair_is_closer_to_the_gradient(rank_b):
    a, b, g, da, db = pair(rank_b)
    ga, gb = nearest(a, b, da, db, S)
    far = lambda x, y: (S * (b @ x + y @ a) - g).norm()  # noqa: E731
    best, plain = far(ga, gb), far(da, db)
    assert best < plain - 1e-3
    for size in (1e-3, 1e-1, 1.0, 10.0):
        for _ in range(50):
            assert far(ga + size * torch.randn_like(ga), gb + size * torch.randn_like(gb)) >= best - 1e-12


def test_x_solves_the_sylvester_equation_and_leaves_the_step_alone():
    a, b, _, da, db = pair()
    ga, gb = nearest(a, b, da, db, S)
    inverse = torch.linalg.inv(b.mT @ b)
    x = (ga - inverse @ da / S**2) @ torch.linalg.pinv(a)
    assert torch.allclose(b.mT @ b @ x + x @ a @ a.mT, -inverse @ da @ a.mT / S**2, atol=1e-10)
    kept = db @ torch.linalg.inv(a @ a.mT) / S**2
    assert torch.allclose(gb, kept - projection(b) @ kept - b @ x, atol=1e-10)


def test_x_keeps_the_pair_nearest_to_lora_s_own_gradients():
    """Of all pairs with the same effect, (gᴬ + Y A, gᴮ - B Y), none is nearer to (∂A, ∂B)."""
    a, b, _, da, db = pair()
    ga, gb = nearest(a, b, da, db, S)
    far = lambda y: (ga + y @ a - da).norm() ** 2 + (gb - b @ y - db).norm() ** 2  # noqa: E731
    slope = 2 * (ga - da) @ a.mT - 2 * b.mT @ (gb - db)
    y = torch.zeros(R, R, dtype=torch.float64, requires_grad=True)
    far(y).backward()
    assert y.grad is not None and torch.allclose(y.grad, slope)
    expected = -2 * da @ a.mT + 2 * b.mT @ db  # what the equation leaves: zero, as s Bᵀ g Aᵀ is both
    assert torch.allclose(expected, torch.zeros_like(expected), atol=1e-10) and torch.allclose(
        slope, expected, atol=1e-9
    )


def test_the_first_step_moves_b_alone():
    a, b, _, da, db = pair(0)
    ga, gb = nearest(a, b, da, db, S)
    assert not ga.any() and torch.allclose(gb, db @ torch.linalg.inv(a @ a.mT) / S**2, atol=1e-12)


def test_experts_are_taken_one_by_one():
    cases = [pair(rank) for rank in (2, 3)]
    a, b, _, da, db = (torch.stack(tensors) for tensors in zip(*cases, strict=True))
    together = nearest(a, b, da, db, S)
    for i, (a, b, _, da, db) in enumerate(cases):
        assert all(torch.allclose(t[i], alone) for t, alone in zip(together, nearest(a, b, da, db, S), strict=True))


@pytest.mark.parametrize("form", [lt.LoRA(rank=3, alpha=7.0), lt.LoRA(rank=4, alpha=7.0, scaling="rslora")])
def test_the_scale_is_the_form_s_own(form):
    assert scale(form, "B") == pytest.approx(form.scale)


def test_factors_that_depend_on_the_weight_are_refused():
    """W (I + s φ ψ) moves by s W (φ gψ + gφ ψ), which is not the step of the equation."""
    assert scale(lt.WeGeFT(rank=3), "phi") is None
    with pytest.raises(lt.LuthierError, match="ΔW = s B A, and wegeft is none of that"):
        optimiser(lt.attach(llama(), lt.WeGeFT(rank=3)), LoRAPro(), lr=1e-3, steps=1)


BESIDE = [lt.DoRA(rank=2), lt.Hydra(rank=2), lt.WeGeFT(rank=2)]


@pytest.mark.parametrize("form", BESIDE, ids=lambda form: form.name())
def test_further_factors_are_checked_as_the_first_are(form, tmp_path):
    model = lt.attach(lt.attach(llama(), lt.LoRA(rank=3), "q_proj"), form, "v_proj")
    with pytest.raises(lt.LuthierError, match=f"{form.name()} is none of that kind"):
        optimiser(model, LoRAPro(), lr=1e-3, steps=1)
    base = save_model(tmp_path / "base", "llama")
    with pytest.raises(lt.LuthierError, match=f"{form.name()} is none of that kind"):
        trial(base, "causal-lm", lt.LoRA(rank=3), "q_proj", None, None, LoRAPro(), (TargetedForm(form, "v_proj"),))
    trial(base, "causal-lm", lt.LoRA(rank=3), "q_proj", None, None, LoRAPro(), (TargetedForm(lt.IA3(), "v_proj"),))


def test_in_a_model_the_first_step_follows_the_weight_s_gradient():
    """W moves along g P_A, the gradient of the whole weight projected on the rows of A."""
    model = lt.attach(llama(), lt.LoRA(rank=3), "q_proj")
    made = LoRAPro()
    (place, *_) = training_plan(model, 1).groups
    weight = place.module.get_parameter("weight").requires_grad_(True)
    run_backward(model)
    g = grad(weight)
    a, s = place.params["A"].detach(), place.form.scale  # type: ignore[attr-defined]
    grads = {key: grad(p) for key, p in place.params.items()}
    new = made.update(grads, {}, place)
    assert torch.allclose(s * new["B"] @ a, g @ projection(a.mT), atol=1e-10) and not new["A"].any()


def grad(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def run_backward(model) -> None:
    model(**batches(1)[0]).loss.backward()


def test_moments_are_those_of_the_factors():
    model = lt.attach(llama(), lt.LoRA(rank=3), "all-linear")
    optimizer = optimiser(model, LoRAPro(), lr=1e-3, steps=3)
    before = copies(model)
    run(model, optimizer, 2)
    assert moments(optimizer) == 2 * lt.trainable(model, count=True)
    assert all(not torch.equal(before[key], t) for key, t in copies(model).items())


def test_adamw_sees_what_it_makes():
    """The step of the update is AdamW's on the gradients that `nearest` gives."""
    model, plain = (lt.attach(llama(), lt.LoRA(rank=3), "q_proj, v_proj") for _ in range(2))
    with torch.no_grad():
        for one, other in zip(lt.trainable(model).values(), lt.trainable(plain).values(), strict=True):
            one.copy_(0.1 * torch.randn_like(one))
            other.copy_(one)
    run(model, optimiser(model, LoRAPro(), lr=1e-2, steps=1), 1)
    run_backward(plain)
    for place in training_plan(plain, 1).groups:
        a, b = place.params["A"], place.params["B"]
        a.grad, b.grad = nearest(a.detach(), b.detach(), grad(a), grad(b), 16 / 3)
    torch.optim.AdamW(lt.trainable(plain).values(), lr=1e-2, weight_decay=0).step()
    assert all(torch.allclose(t, copies(plain)[key], atol=1e-12) for key, t in copies(model).items())


def test_heads_that_are_new_train_as_they_are():
    model = lt.attach(llama(), lt.LoRA(rank=3), "q_proj")
    lt.attach(model, lt.Full(), "params(lm_head.weight)")
    update: Update = LoRAPro()
    before = copies(model)
    run(model, optimiser(model, update, lr=1e-2, steps=2), 2)
    assert all(not torch.equal(t, before[key]) for key, t in copies(model).items())

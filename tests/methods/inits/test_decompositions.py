"""Starts that are decompositions: each against its definition, and against peft where that does the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.linalg import matrix_norm

import luthier as lt
from luthier.core.adapters.lower import affine_map
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.sites.collect import collect
from luthier.methods.inits.corda import GOOD, CorDA, damped
from luthier.methods.inits.lora_ga import LoRAGA
from luthier.methods.inits.lora_sb import LoRASB
from luthier.methods.inits.olora import OLoRA
from luthier.methods.inits.pissa import PiSSA
from luthier.methods.statistics.moment import Moment
from support.calibrated import batches, build

D_IN, D_OUT, R = 20, 24, 3
S = 1.5
FORM = lt.LoRA(rank=R, alpha=S * R)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(D_IN, D_OUT), nn.Linear(D_OUT, 2)).double()


def started(init, form=FORM, base=None, **stats):
    """(net, W, parameters) of one layer that starts so."""
    model = base or net()
    weight = model[0].weight.detach().clone()
    lt.attach(model, form, "0", init=init, stats={"0": stats})
    return model, weight, dict(model[0].adapters.tuners()[0]._parameters)


def same(a, b, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() < tolerance)


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def gram() -> torch.Tensor:
    """The second moment of inputs whose directions differ a hundredfold in size."""
    x = torch.randn(500, D_IN, dtype=torch.float64) * torch.logspace(0, -2, D_IN, dtype=torch.float64)
    mixed = x @ torch.linalg.qr(torch.randn(D_IN, D_IN, dtype=torch.float64)).Q
    return mixed.T @ mixed / len(mixed)


def test_pissa_trains_the_leading_part_of_the_weight():
    _, w, p = started(PiSSA())
    assert same(S * p["B"] @ p["A"], best(w, R))
    assert same(p["B"].T @ p["B"], p["A"] @ p["A"].T)  # both hold the root of the singular values


def test_pissa_by_iteration_finds_the_same():
    w = torch.randn(60, 50, dtype=torch.float64) @ torch.diag(0.7 ** torch.arange(50.0, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(50, 60), nn.Linear(60, 2)).double()
    model[0].weight.data = w
    _, _, p = started(PiSSA(niter=8), base=model)
    assert same(S * p["B"] @ p["A"], best(w, R), 1e-8)
    with pytest.raises(lt.LuthierError, match=r"pissa\.niter is -1"):
        PiSSA(niter=-1)


def test_olora_is_the_qr_decomposition():
    _, w, p = started(OLoRA())
    assert same(p["B"].T @ p["B"], torch.eye(R, dtype=w.dtype))
    assert same(p["B"] @ p["A"][:, :R], w[:, :R])  # R is upper triangular: the first columns of W come whole
    assert same(p["A"].tril(-1), torch.zeros(1)) and same(p["B"] @ p["B"].T @ w, p["B"] @ p["A"])


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_peft_starts_so(name):
    peft = pytest.importorskip("peft")
    init = {"pissa": PiSSA, "olora": OLoRA}[name]()
    base = net().float()
    model = net().float()
    model.load_state_dict(base.state_dict())
    model, w, p = started(init, base=model)
    config = peft.LoraConfig(r=R, lora_alpha=S * R, target_modules=["0"], init_lora_weights=name)
    theirs = peft.get_peft_model(base, config).base_model.model[0]
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    assert same(b @ a, p["B"] @ p["A"], 1e-5)
    assert same(theirs.base_layer.weight, w - S * p["B"] @ p["A"], 1e-5)  # what stays frozen
    a.data, b.data = p["A"].data + 0.1, p["B"].data - 0.1
    p["A"].data, p["B"].data = a.data.clone(), b.data.clone()
    x = torch.randn(5, D_IN)
    assert same(theirs(x), model[0](x), 1e-5)  # and so it is away from the start


@pytest.mark.parametrize("context", ["covariance", "root"])
@pytest.mark.parametrize("mode", ["instruction", "knowledge"])
def test_corda_decomposes_the_weight_in_its_context(mode, context):
    c = gram()
    _, w, p = started(CorDA(mode=mode, context=context), moment=c)
    found, inverse = damped(c, 0.01, lambda m: m)
    if context == "root":
        values, vectors = torch.linalg.eigh(found)
        found, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    u, s, vt = torch.linalg.svd(w @ found, full_matrices=False)
    assert same((u * s) @ vt @ inverse, w)  # all of it gives W back
    kept = slice(R) if mode == "instruction" else slice(-R, None)
    assert same(S * p["B"] @ p["A"], (u[:, kept] * s[kept]) @ vt[kept] @ inverse)
    assert same(p["B"].T @ p["B"] * S, s[kept].diag())


def test_corda_keeps_more_of_what_its_context_needs_than_a_plain_svd():
    c = gram()
    root = torch.linalg.cholesky(c)

    def error(approximation: torch.Tensor) -> float:
        return float(matrix_norm((w - approximation) @ root))  # the outputs' error on those inputs

    kept = {}
    for context in ("covariance", "root"):
        torch.manual_seed(1)
        _, w, p = started(CorDA(context=context, damping=1e-6), moment=c)  # type: ignore[arg-type]
        kept[context] = error((S * p["B"] @ p["A"]).detach())
    assert kept["root"] <= kept["covariance"] < 0.9 * error(best(w, R))
    optimum = torch.linalg.svdvals(w @ root)[R:].norm()
    assert abs(kept["root"] - float(optimum)) < 1e-4  # Eckart and Young, in the metric of the inputs


def test_corda_on_the_inputs_of_a_model():
    """From the calibration pass: what is left out of the frozen weight matters for other rows of that kind."""
    model = build(dtype=torch.float64)
    where = "layers(1) & o_proj"
    path = lt.select(model, where)[0].path
    stats = collect(model, batches(8), lt.select(model, where), [Moment()])
    held_out = collect(model, batches(4, seed=9), lt.select(model, where), [Moment()])[path]["moment"]
    lost = {}
    for mode in ("instruction", "knowledge"):
        fresh = build(dtype=torch.float64)
        lt.attach(fresh, lt.LoRA(rank=4, alpha=4.0), where, init=CorDA(mode=mode), stats=stats)  # type: ignore[arg-type]
        tuner = fresh.get_submodule(path).adapters.tuners()[0]
        ba = (tuner.B @ tuner.A).detach()
        lost[mode] = float(((ba @ held_out) * ba).sum().sqrt())  # size of the trained part's output
    assert lost["instruction"] > 5 * lost["knowledge"]


@pytest.mark.parametrize(("mode", "theirs"), [("instruction", "ipm"), ("knowledge", "kpm")])
def test_peft_decomposes_a_single_row_so(mode, theirs):
    """Where its hook does no harm: one row, which it divides by one number."""
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    ids = torch.randint(3, 90, (1, 48), generator=torch.Generator().manual_seed(4))
    where, rows = "layers(1) & o_proj", [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    model, base = build(), build()
    stats = collect(model, rows, lt.select(model, where), [Moment()])
    lt.attach(model, lt.LoRA(rank=4, alpha=4.0), where, init=CorDA(mode=mode), stats=stats)  # type: ignore[arg-type]
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=r".*layers\.1\..*o_proj", init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=theirs),
    )  # fmt: skip
    preprocess_corda(base, config, run_model=lambda: base(**rows[0]))
    layer = get_peft_model(base, config).base_model.model.model.layers[1].self_attn.o_proj
    tuner = model.model.layers[1].self_attn.o_proj.adapters.tuners()[0]
    ours = (tuner.B @ tuner.A).detach()
    product = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    assert same(ours, product, 2e-3 * float(ours.abs().max()))


def test_corda_damps_until_its_inverse_is_good():
    thin = torch.randn(4, D_IN)
    c = thin.T @ thin  # rank 4 of 20, float32
    found, inverse = damped(c, 1e-12, lambda m: m)
    assert matrix_norm(found @ inverse - torch.eye(D_IN)) < GOOD
    assert (found - c).diagonal().min() > 1e-12 * c.diagonal().mean()
    for hopeless in (torch.zeros(3, 3), torch.full((3, 3), torch.inf)):
        with pytest.raises(lt.LuthierError, match="all zero or not finite"):
            damped(hopeless, 0.01, lambda m: m)
    with pytest.raises(lt.LuthierError, match=r"corda\.damping is 0"):
        CorDA(damping=0.0)


def first_step(model, p, gradient: torch.Tensor) -> torch.Tensor:
    """The change of W per unit of learning rate, where the loss has this gradient."""
    (model[0](torch.eye(D_IN, dtype=torch.float64)).T * gradient).sum().backward()
    return -S * (p["B"].grad @ p["A"] + p["B"] @ p["A"].grad).detach()


def residual(step: torch.Tensor, gradient: torch.Tensor) -> float:
    """How much of the gradient no multiple of the step gives."""
    along = (step * gradient).sum() / (step * step).sum()
    return float((gradient - along * step).norm() / gradient.norm())


def test_lora_ga_steps_first_by_the_best_of_twice_its_rank():
    gradient = torch.randn(D_OUT, D_IN, dtype=torch.float64)
    model, w, p = started(LoRAGA(), gradient=gradient)
    u, _, vt = torch.linalg.svd(gradient)
    assert same((p["A"] @ p["A"].T).abs(), D_OUT**0.5 / 16 * torch.eye(R, dtype=w.dtype))
    assert same((p["A"] @ vt[:R].T).abs(), D_OUT**0.25 / 4 * torch.eye(R, dtype=w.dtype))
    assert same((p["B"].T @ u[:, R : 2 * R]).abs(), D_OUT**0.25 / 4 * torch.eye(R, dtype=w.dtype))
    ours = residual(first_step(model, p, gradient), gradient)
    optimum = float((gradient - best(gradient, 2 * R)).norm() / gradient.norm())
    assert abs(ours - optimum) < 1e-10
    plain = lt.attach(net(), FORM, "0")
    q = dict(plain[0].adapters.tuners()[0]._parameters)
    theirs = residual(first_step(plain, q, gradient), gradient)
    assert ours < 0.65 and theirs > 0.85


def test_peft_steps_elsewhere_first():
    """Its `lora_ga`, with the paper's direction and scale, is further from the gradient than the optimum."""
    peft = pytest.importorskip("peft")
    gradient = torch.randn(D_OUT, D_IN)
    base = net().float()
    base[0]._peft_loraga_grad = gradient
    config = peft.LoraConfig(
        r=R, lora_alpha=S * R, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
    )
    layer = peft.get_peft_model(base, config).base_model.model[0]
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    theirs = residual(-(gradient @ a.T @ a + b @ b.T @ gradient), gradient)
    _, _, p = started(LoRAGA(), gradient=gradient)
    a, b = p["A"].detach().float(), p["B"].detach().float()
    assert residual(-(gradient @ a.T @ a + b @ b.T @ gradient), gradient) < theirs - 0.1


def test_lora_ga_reads_the_models_own_gradient():
    model = build(dtype=torch.float64)
    sites = lt.select(model, "q_proj")
    stats = collect(model, batches(3), sites, LoRAGA().statistics(FORM))
    lt.attach(model, FORM, "q_proj", init=LoRAGA(), stats=stats)
    path = sites[0].path
    base = build(dtype=torch.float64)
    sum(base(**rows).loss for rows in batches(3)).backward()  # type: ignore[union-attr]
    g = base.get_submodule(path).weight.grad / 3
    tuner = model.get_submodule(path).adapters.tuners()[0]
    shared = tuner.A @ torch.linalg.svd(g)[2][:R].T  # the rows span the gradient's leading directions
    assert same(shared @ shared.T, tuner.A @ tuner.A.T, 1e-5)


def test_lora_sb_starts_at_the_best_of_the_first_sign_step():
    gradient = torch.randn(D_OUT, D_IN, dtype=torch.float64)
    model, w, p = started(LoRASB(eta=2e-3), lt.LoRAXS(rank=R), gradient=gradient)
    assert same(p["B"] @ p["R"] @ p["A"], best(-2e-3 * gradient.sign(), R))
    assert lt.trainable(model, count=True) == R * R and list(lt.trainable(model)) == ["default.0.R"]
    assert same(p["B"].T @ p["B"], torch.eye(R, dtype=w.dtype)) and same(p["A"] @ p["A"].T, torch.eye(R, dtype=w.dtype))
    assert same(affine_map(model[0], model[0].adapters.tuners())[0], w + best(-2e-3 * gradient.sign(), R))
    model[0](torch.eye(D_IN, dtype=w.dtype)).T.mul(gradient).sum().backward()
    assert same(p["R"].grad, p["B"].T @ gradient @ p["A"].T)  # scale 1: the projected gradient itself


@pytest.mark.parametrize(
    ("init", "form", "told"),
    [
        (PiSSA(), lt.LoReFT(), "has no such pair; these forms have one: .*lora"),
        (OLoRA(), lt.DoRA(), "has no such pair"),
        (PiSSA(), lt.LoRA(share="type"), "share='type'"),
        (PiSSA(), lt.LoRA(alpha=0.0), "divides by the form's scale, which is 0"),
        (LoRASB(), lt.LoRA(), "starts loraxs"),
        (LoRASB(), lt.LoRAXS(scale=16.0), r"needs scale=1"),
    ],
)
def test_forms_that_a_start_cannot_serve_are_refused(init, form, told):
    site = lt.select(net(), "0")[0]
    with pytest.raises(lt.LuthierError, match=told):
        init.factors(form, site, {})


def test_places_and_ranks_that_a_start_cannot_serve_are_refused():
    with pytest.raises(lt.LuthierError, match=r"lora_ga needs 22 directions of 0, which is 24 x 20"):
        started(LoRAGA(), lt.LoRA(rank=11), gradient=torch.randn(D_OUT, D_IN))
    with pytest.raises(lt.LuthierError, match="is of kind embedding"):
        PiSSA().factors(FORM, lt.select(build(), "embeddings")[0], {})
    model = build()
    with pytest.raises(lt.LuthierError, match="corda needs moment of model"):
        lt.attach(model, FORM, init=CorDA())
    assert "adapters" not in str(model)


def test_experts_start_each_by_its_own_weight():
    from support.architectures import ARCHITECTURES

    model = ARCHITECTURES["mixtral"].build(dtype=torch.float64)
    site = lt.select(model, "experts")[0]
    lt.attach(model, FORM, "experts", init=PiSSA(), check=False)  # no grouped product in float64
    tuner = next(tuner for tuner in model.modules() if isinstance(tuner, TunerLayer) and tuner.site.key == site.key)
    weight = model.get_submodule(site.module)._parameters[site.path.rpartition(".")[2]].detach()
    weight = weight.mT if site.transposed else weight
    for expert in range(site.experts or 0):
        assert same(S * tuner.B[expert] @ tuner.A[expert], best(weight[expert], R))


def test_dropout_falls_on_what_is_trained_alone():
    """W_res x + s B A drop(x): the frozen part sees all of x."""
    torch.manual_seed(0)
    model, w, p = started(PiSSA(), lt.LoRA(rank=R, alpha=S * R, dropout=0.5))
    x = torch.randn(2000, D_IN, dtype=torch.float64)
    rest = x @ (w - S * p["B"] @ p["A"]).T + model[0].bias
    trained = model.train()[0](x) - rest
    assert torch.linalg.matrix_rank(trained, atol=1e-8) == R  # nothing of the frozen part is dropped
    assert not same(trained, x @ (S * p["B"] @ p["A"]).T, 1e-3)


def test_a_packed_base_takes_a_start_and_keeps_its_output(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    build().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    ids = batches(1)[0]["input_ids"]
    lt.attach(model, lt.LoRA(rank=4), init=PiSSA())
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with lt.disabled(model):
            assert torch.equal(model(input_ids=ids).logits, adapted)

"""Mixtures of experts: the equations in float64, their balance, and what they equal where little is mixed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

import luthier as lt
from luthier.core.contracts.router import ROUTE, ROUTE_TASKS, RoutedBatch, routing
from luthier.core.contracts.site import Site
from luthier.kernels._grouped import Few, Sent, everywhere, padded
from luthier.methods.forms.loramoe import cv_squared
from luthier.methods.objectives.two_passes import TwoPasses, divergence
from support.architectures import ARCHITECTURES

SITE = Site("layer", "affine", 12, 8)
FFN = "gate_proj, up_proj, down_proj"


def build(name: str = "llama"):
    return ARCHITECTURES[name].build(dtype=torch.float64)


def ids(rows: int = 2, length: int = 9) -> torch.Tensor:
    return ARCHITECTURES["llama"].inputs(rows, length)["input_ids"]


def moved(model, size: float = 0.3):
    generator = torch.Generator().manual_seed(5)
    for tensor in lt.trainable(model).values():
        tensor.data += size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return model


def moved32(model):
    return moved(model.double()).float()


def away(form, site: Site = SITE) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = form.init(site, {})
    return {
        k: torch.randn(t.shape, generator=generator).double() if t.is_floating_point() else t for k, t in found.items()
    }


def logits(model, **given) -> torch.Tensor:
    with torch.no_grad():
        return model(**({"input_ids": ids()} | given)).logits


# --- grouped products ---------------------------------------------------------------------------------


def one_by_one(x, w, sent: Sent):
    return torch.cat([x[sent.expert == e] @ w[e] for e in range(sent.experts)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "d_in"), [(40, 16), (3, 16), (40, 5), (1, 7)])
def test_grouped_products_and_their_gradients_are_the_naive_ones(dtype, tokens, d_in):
    """Aligned widths take torch's grouped product, others the padded one; some experts have no token."""
    torch.manual_seed(0)
    choices = torch.stack([torch.randperm(5)[:2] for _ in range(tokens)])
    sent, found = Sent.by(choices, 7), {}
    assert torch.equal(choices.flatten()[sent.choice], sent.expert) and bool((sent.expert.diff() >= 0).all())
    assert int(sent.counts().sum()) == 2 * tokens and not int(sent.counts()[5:].sum())
    ways = {
        "naive": one_by_one,
        "sent": lambda x, w, s: s.times(x, w),
        "padded": lambda x, w, s: padded(x, w, s.expert, s.counts()),
        "everywhere": lambda x, w, s: everywhere(x, w, s.expert),
    }
    for name, way in ways.items():
        torch.manual_seed(1)
        x = torch.randn(tokens, d_in, dtype=dtype, requires_grad=True)
        w = torch.randn(7, d_in, 8, dtype=dtype, requires_grad=True)
        y = way(x[sent.token], w, sent)
        y.sum().backward()  # whose gradient is expanded, with strides of zero
        found[name] = (y.detach(), x.grad, w.grad)
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for name, each in found.items():
        for a, b in zip(each, found["naive"], strict=True):
            assert torch.allclose(a, b, rtol=near, atol=near), name


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_few_pairs_without_gradients_gather_their_matrices_and_give_the_same(tokens):
    torch.manual_seed(0)
    choices = torch.stack([torch.randperm(5)[:2] for _ in range(tokens)])
    x, w = torch.randn(tokens, 6, dtype=torch.float64), torch.randn(5, 6, 4, dtype=torch.float64)
    share = torch.rand(tokens, 2, dtype=torch.float64)
    sent = Sent.by(choices, 5)
    with torch.no_grad():
        few = Sent.by(choices, 5)
        assert isinstance(few, Few) and isinstance(Sent.by(choices.repeat(9, 1), 5), Sent) and isinstance(sent, Sent)
    found = [each.summed(each.weights(share) * each.times(each.spread(x), w), tokens) for each in (few, sent)]
    assert torch.allclose(*found, atol=1e-12)
    for form in (lt.MixLoRA(experts=5, rank=2), lt.MeteoRA(experts=tuple(map(str, range(16))), rank=2)):
        model = moved(lt.attach(build(), form))
        sorted_ = model(input_ids=ids(1, 17)).logits.detach()
        assert torch.allclose(logits(model, input_ids=ids(1, 17)), sorted_, atol=1e-10)
        assert torch.allclose(
            logits(model, input_ids=ids(1, 1)), model(input_ids=ids(1, 1)).logits.detach(), atol=1e-10
        )


# --- LoRAMoE ------------------------------------------------------------------------------------------


def test_loramoe_is_the_soft_sum_of_its_experts():
    form = lt.LoRAMoE(experts=3, rank=2, alpha=6.0)
    p, x, y = away(form), torch.randn(2, 5, 12).double(), torch.randn(2, 5, 8).double()
    w = torch.exp(x @ p["gate"].T)
    w = w / w.sum(-1, keepdim=True)
    wanted = y + 3.0 * sum(w[..., i, None] * (x @ p["A"][i].T @ p["B"][i].T) for i in range(3))
    assert torch.allclose(routing(form)(p, x, y), wanted, rtol=1e-10, atol=1e-12)


def test_one_expert_is_lora():
    model = moved(lt.attach(build(), lt.LoRAMoE(experts=1, rank=3, alpha=5.0), FFN))
    lora = lt.attach(build(), lt.LoRA(rank=3, alpha=5.0), FFN)
    held = lt.trainable(model)
    for key, tensor in lt.trainable(lora).items():
        tensor.data = held[key].data[0]
    assert torch.allclose(logits(model), logits(lora), rtol=1e-10) and not torch.allclose(
        logits(model), logits(build())
    )
    assert lt.LoRAMoE(experts=1, beta=1.0).balance([torch.zeros(2, 3, 1)], RoutedBatch()) is None


def test_the_balance_is_the_authors_and_leaves_padding_out():
    """`cv_squared(route_weight.sum(1) * I) * blc_weight`, summed over layers; type 1 has 1 + δ on one half."""
    form = lt.LoRAMoE(experts=4, rank=2, beta=0.3, delta=0.2, types=("a", "b"))
    routed, tasks = [torch.randn(3, 6, 4).double() for _ in range(2)], torch.tensor([0, 1, 1])
    wanted = 0.0
    for each in routed:
        mass = each.softmax(-1).sum(1)
        first = torch.tensor([[1.2, 1.2, 0.8, 0.8], [0.8, 0.8, 1.2, 1.2], [0.8, 0.8, 1.2, 1.2]]).double()
        values = (mass * first).flatten().numpy()
        wanted += 0.3 * values.var(ddof=1) / values.mean() ** 2
    assert float(form.balance(routed, RoutedBatch(None, tasks))) == pytest.approx(wanted, rel=1e-9)
    real = torch.ones(3, 6, dtype=torch.bool)
    real[0, 4:] = False
    told = form.balance(routed, RoutedBatch(real, tasks))
    changed = [torch.where(real[..., None], each, 7.0) for each in routed]
    assert float(form.balance(changed, RoutedBatch(real, tasks))) == pytest.approx(float(told), rel=1e-12)
    assert float(told) != pytest.approx(wanted, rel=1e-3)
    even = lt.LoRAMoE(experts=4, beta=1.0).balance([torch.zeros(3, 6, 4)], RoutedBatch())
    assert float(even) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("delta", [0.2, -0.2])
def test_positive_delta_sends_a_row_to_the_experts_of_other_types(delta):
    """The half that gains mass: evened out, Q I is one number, so Q is largest where I is smallest."""
    form = lt.LoRAMoE(experts=4, rank=2, beta=1.0, delta=delta, types=("a", "b"))
    free, tasks = torch.zeros(2, 5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1])
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        form.balance([free], RoutedBatch(None, tasks)).backward()
        optimizer.step()
    mass = form.mass(free.detach(), None)
    own, others = mass[0, :2].sum(), mass[0, 2:].sum()
    assert float(others / own) == pytest.approx((1 + delta) / (1 - delta), rel=1e-2)
    assert float(mass[1, :2].sum() / mass[1, 2:].sum()) == pytest.approx((1 + delta) / (1 - delta), rel=1e-2)


@pytest.mark.parametrize(
    "settings",
    [{"delta": 0.1}, {"types": ("a", "b")}, {"types": ("a", "b", "c"), "beta": 1.0, "delta": 0.1}, {"delta": 1.0}],
)
def test_settings_that_would_do_nothing_are_refused(settings):
    with pytest.raises(lt.LuthierError, match="loramoe"):
        lt.LoRAMoE(**settings)


# --- MixLoRA ------------------------------------------------------------------------------------------


def naive(model, form, path: str, x: torch.Tensor) -> torch.Tensor:
    """Σ_k w_k FFN(x; W + s B_k A_k): each expert a module of its own, with weights that are merged."""
    bare = build(type(model).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower())
    module = bare.get_submodule(path)
    held = {k.rpartition(".")[2]: t for k, t in lt.trainable(model).items() if f".{path}." in k}
    powers = (x @ held["gate"].T).softmax(-1)
    best, places = powers.topk(form.top, -1)
    best = best / best.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for e in range(form.experts):
        weights = dict(module.named_parameters())
        for name, layer in module.named_children():
            if f"A_{name}" in held:
                change = form.scale * held[f"B_{name}"][e] @ held[f"A_{name}"][e]
                weights[f"{name}.weight"] = layer.weight + (change.T if type(layer).__name__ == "Conv1D" else change)
        expert = torch.func.functional_call(module, weights, (x,))
        y = y + torch.where(places == e, best, 0.0).sum(-1, keepdim=True) * expert
    return y


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{"top": 2}, {"top": 1}, {"top": 3, "experts": 3}])
def test_mixlora_is_the_naive_sum_over_experts(architecture, settings):
    form = lt.MixLoRA(rank=2, alpha=3.0, spread=1.0, **{"experts": 4} | settings)
    model = moved(lt.attach(build(architecture), form))
    site = lt.select(model, "output(mlp)")[1]
    x = torch.randn(2, 5, site.d_in).double().requires_grad_()
    found, wanted = model.get_submodule(site.path)(x), naive(model, form, site.path, x)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(found, build(architecture).get_submodule(site.path)(x), rtol=1e-2)
    mine = {k: t for k, t in lt.trainable(model).items() if f".{site.path}." in k}
    both = [torch.autograd.grad(y.square().sum(), [x, *mine.values()]) for y in (found, wanted)]
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*both, strict=True))


def test_without_changes_it_is_the_base_whatever_the_router():
    model = lt.attach(build(), lt.MixLoRA(experts=4, rank=2, spread=3.0))
    assert torch.allclose(logits(model), logits(build()), rtol=1e-10, atol=1e-12)


def test_the_balance_is_top_k_where_all_is_even():
    """2.0 at k = 2, whatever the number of experts; more where tokens crowd."""
    for experts, top in ((8, 2), (4, 1), (6, 3)):
        form = lt.MixLoRA(experts=experts, top=top, beta=1.0)
        tokens = torch.stack([torch.roll(torch.linspace(1e-4, 0, experts).double(), i) for i in range(experts)])
        assert float(form.balance([tokens, tokens], RoutedBatch())) == pytest.approx(top, rel=1e-3)
        crowded = torch.zeros(9, experts).double()
        crowded[:, :top] = 9.0
        assert float(form.balance([crowded], RoutedBatch())) > experts * 0.9
    assert lt.MixLoRA(beta=0.0).balance([torch.zeros(3, 8)], RoutedBatch()) is None


def test_what_is_no_feed_forward_module_is_refused_and_the_model_left():
    model = build()
    before = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(lt.LuthierError, match="feed-forward modules"):
        lt.attach(model, lt.MixLoRA(experts=2), "output(self_attn)")
    assert {path: type(module) for path, module in model.named_modules()} == before
    with pytest.raises(lt.LuthierError, match="top is 3, and there are 2 experts"):
        lt.MixLoRA(experts=2, top=3)


def test_lora_on_a_layer_inside_still_acts():
    """Attention and even the module's own layers may have LoRA beside the experts."""
    model = moved(lt.attach(build(), lt.MixLoRA(experts=3, rank=2), name="experts"))
    before = logits(model)
    lt.attach(model, lt.LoRA(rank=2), "q_proj, up_proj", name="lora")
    for key, tensor in lt.trainable(model).items():
        tensor.data += 0.3 if key.startswith("lora.") else 0.0
    changed = logits(model)
    assert not torch.allclose(changed, before, rtol=1e-3)
    assert torch.equal(logits(model), changed)  # by what the first pass planned for decoding, too
    lt.detach(model, "lora")
    assert torch.allclose(logits(model), before, rtol=1e-10)


# --- MoSA ---------------------------------------------------------------------------------------------


def test_masks_partition_the_up_projection():
    p = lt.MoSA(dim=6, experts=4).init(Site("m", "stream", 12, 12), {})
    masks = torch.stack([p["part"] == j for j in range(4)])
    assert bool((masks.sum(0) == 1).all()) and masks.flatten(1).sum(1).tolist() == [18, 18, 18, 18]
    assert sorted(torch.bincount(p["bias_part"].long(), minlength=4).tolist()) == [3, 3, 3, 3]


def dense(p: dict, x: torch.Tensor, up: torch.Tensor, bias: torch.Tensor, s: float) -> torch.Tensor:
    return s * (functional.gelu(x @ p["down"].T + p["down_bias"]) @ up.T + bias)


def test_a_pass_is_of_one_expert_and_training_moves_its_entries_alone():
    form = lt.MoSA(dim=6, experts=3, scale=0.5)
    p = away(form, Site("m", "stream", 12, 12))
    x, y = torch.randn(2, 4, 12).double(), torch.randn(2, 4, 12).double()
    each = [dense(p, x, p["up"] * (p["part"] == j), p["up_bias"] * (p["bias_part"] == j), 0.5) for j in range(3)]
    met = set()
    for seed in range(12):
        torch.manual_seed(seed)
        up = p["up"].clone().requires_grad_()
        found = form.post({**p, "up": up}, x, y)
        (j,) = [j for j in range(3) if torch.allclose(found, y + each[j], rtol=1e-10)]
        (grad,) = torch.autograd.grad(found.square().sum(), up)
        assert torch.equal(grad != 0, p["part"] == j)
        met.add(j)
    assert met == {0, 1, 2}


@pytest.mark.parametrize("insertion", ["parallel", "sequential"])
def test_outside_training_it_is_one_dense_adapter_the_sum_of_its_experts(insertion):
    settings = {"dim": 6, "insertion": insertion, "activation": "gelu", "scale": 0.5}
    model = moved(lt.attach(build(), lt.MoSA(experts=4, **settings), "output(mlp)")).eval()
    plain = lt.attach(build(), lt.Bottleneck(**settings), "output(mlp)")
    for key, tensor in lt.trainable(plain).items():
        tensor.data = lt.trainable(model)[key].data
    assert torch.allclose(logits(model), logits(plain), rtol=1e-10)
    one = lt.attach(build(), lt.MoSA(experts=1, **settings), "output(mlp)")
    for key, tensor in lt.trainable(one).items():
        tensor.data = lt.trainable(model)[key].data
    assert torch.allclose(logits(one.train()), logits(plain), rtol=1e-10)
    assert not torch.allclose(logits(model.train()), logits(plain), rtol=1e-4)


def test_the_two_passes_are_the_symmetric_divergence():
    torch.manual_seed(0)
    model = moved(lt.attach(build(), lt.MoSA(dim=6, experts=3))).train()
    labels = ids().clone()
    labels[:, :4] = -100
    batch = {"input_ids": ids(), "labels": labels}
    torch.manual_seed(4)
    found = TwoPasses(weight=0.7, second=0.4).loss(model, batch)
    torch.manual_seed(4)
    one, two = model(**batch), model(**batch)
    p, q = (functional.log_softmax(o.logits[:, :-1][labels[:, 1:] != -100].double(), -1) for o in (one, two))
    kl = lambda a, b: float((a.exp() * (a - b)).sum(-1).mean())  # noqa: E731
    wanted = float(one.loss + 0.4 * two.loss) + 0.7 * 0.5 * (kl(p, q) + kl(q, p))
    assert float(found) == pytest.approx(wanted, rel=1e-5) and kl(p, q) > 1e-4
    assert float(divergence(p, q).detach()) == pytest.approx(kl(p, q), rel=1e-9)


# --- IAA ----------------------------------------------------------------------------------------------


def by_hand(model, inner, form, held):
    """lm_head(norm(h_L + a_L)) with the chain written out, from the states of a model that has the inside modules."""
    states, norm = [], inner.model.norm
    hooks = [block.register_forward_hook(lambda m, a, out: states.append(out)) for block in inner.model.layers]
    inner(input_ids=ids())
    for hook in hooks:
        hook.remove()
    a = torch.zeros_like(states[0])
    for index, h in enumerate(states):
        p = {k.rpartition(".")[2]: t for k, t in held.items() if f"layers.{index}." in k}
        read = h + a if form.reads == "chain" else h
        a = a + form.scale * (functional.gelu(read @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"])
    return inner.lm_head(norm(states[-1] + a)), inner.lm_head(norm(states[-1].detach() + a))


@pytest.mark.parametrize("reads", ["block", "chain"])
def test_the_chain_is_added_to_the_last_state_and_gradient_reaches_inside_modules_through_it(reads):
    form, inside = lt.IAA(dim=4, scale=0.5, reads=reads), lt.Bottleneck(dim=3)
    model = moved(lt.attach(lt.attach(build(), inside, "output(mlp)", "inside"), form, name="aside"))
    inner = lt.attach(build(), inside, "output(mlp)", "inside")
    for key, tensor in lt.trainable(inner).items():
        tensor.data = lt.trainable(model)[key].data
    held = {k: t for k, t in lt.trainable(model).items() if k.startswith("aside.")}
    wanted, aside = by_hand(model, inner, form, held)
    found = model(input_ids=ids()).logits
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-10)
    names = list(lt.trainable(inner))
    grads = torch.autograd.grad(wanted.square().sum(), [lt.trainable(inner)[k] for k in names], retain_graph=True)
    mine = torch.autograd.grad(found.square().sum(), [lt.trainable(model)[k] for k in names])
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(mine, grads, strict=True))
    alone = torch.autograd.grad(aside.square().sum(), [lt.trainable(inner)[k] for k in names])
    assert all(float(g.abs().sum()) > 0 for g in alone)


def test_scattered_it_is_the_modules_inside_and_rows_keep_their_own():
    model = lt.attach(build(), lt.IAA(dim=4))
    assert torch.equal(logits(model), logits(build()))
    moved(model)
    with lt.rows(model, ["default", None]):
        mixed = logits(model)
    assert torch.allclose(mixed[1], logits(build())[1], rtol=1e-10)
    assert torch.allclose(mixed[0], logits(model)[0], rtol=1e-10)
    with pytest.raises(lt.LuthierError, match="is not the output of one"):
        lt.attach(build(), lt.IAA(dim=4), "output(mlp)")
    some = moved(lt.attach(build(), lt.IAA(dim=4), "stream & layers(0, 1)"))
    assert not torch.allclose(logits(some), logits(build()), rtol=1e-4)


def test_route_is_handed_on():
    form = lt.LoRAMoE(experts=2, rank=2)
    p, x, y = away(form), torch.randn(1, 3, 12).double(), torch.zeros(1, 3, 8).double()
    sure = torch.tensor([60.0, -60.0]).double().expand(1, 3, 2)
    wanted = form.scale * x @ p["A"][0].T @ p["B"][0].T
    assert torch.allclose(form.post({**p, ROUTE: sure}, x, y), wanted, rtol=1e-9)


def test_cv_of_one_number_is_nothing():
    assert float(cv_squared(torch.ones(1))) == 0.0


# --- Polyhistor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("insertion", ["parallel", "sequential"])
def test_polyhistor_is_the_adapter_of_explicit_kronecker_products(insertion):
    names = ("a", "b", "c")
    form = lt.Polyhistor(dim=6, parts=2, rank=2, size=3, tasks=names, insertion=insertion, scale=0.5)
    p, told = away(form, Site("m", "stream", 12, 12)), torch.tensor([2, 0, 2])
    x, y = torch.randn(3, 4, 12).double(), torch.randn(3, 4, 12).double()
    found = routing(form)({**p, ROUTE_TASKS: told}, x, y)
    flat = routing(form)({**p, ROUTE_TASKS: told}, x[:, 0], y[:, 0])
    for row, task in enumerate(told.tolist()):
        e = p["embedding"][task]
        down, up = (torch.kron(p[f"{w}_kernel"], (p[f"{w}_p"] @ e) @ (p[f"{w}_q"] @ e)) for w in ("down", "up"))
        assert down.shape == (6, 12) and up.shape == (12, 6)
        h = y[row] if insertion == "sequential" else x[row]
        wanted = y[row] + 0.5 * functional.gelu(h @ down.T) @ up.T
        assert torch.allclose(found[row], wanted, rtol=1e-10, atol=1e-12)
        assert torch.allclose(flat[row], wanted[0], rtol=1e-10, atol=1e-12)


def test_a_further_task_costs_one_embedding():
    site, counts = Site("m", "stream", 512, 512), []
    for tasks in (1, 2, 4, 8, 16):
        form = lt.Polyhistor(tasks=tuple(f"task{i}" for i in range(tasks)))
        counts.append(sum(t.numel() for t in form.init(site, {}).values()))
    assert [b - a for a, b in itertools.pairwise(counts)] == [8, 16, 32, 64]
    one = sum(t.numel() for t in lt.Bottleneck(dim=32).init(site, {}).values())
    assert counts[-1] < one < 16 * one  # sixteen tasks cost less than the plain adapter of one


def test_rows_of_several_tasks_train_their_own_embeddings():
    model = moved(lt.attach(build(), lt.Polyhistor(dim=4, parts=2, tasks=("a", "b", "c"))))
    mixed = logits(model, tasks=["b", "a"])
    assert torch.allclose(mixed[0], logits(model, tasks="b")[0], rtol=1e-10)
    model(input_ids=ids(), tasks=["b", "b"]).logits.square().sum().backward()
    grads = [t.grad for key, t in lt.trainable(model).items() if key.endswith("embedding")]
    assert all(not g[0].any() and g[1].any() and not g[2].any() for g in grads if g is not None)
    for settings in ({"dim": 6, "parts": 4}, {"tasks": ("a", "a")}):
        with pytest.raises(lt.LuthierError, match="polyhistor"):
            lt.Polyhistor(**settings)
    with pytest.raises(lt.LuthierError, match="cannot be divided into 5"):
        lt.attach(build(), lt.Polyhistor(dim=10, parts=5))


# --- served and shipped -------------------------------------------------------------------------------


def test_rows_of_a_batch_name_their_tasks():
    model = moved(lt.attach(build(), lt.MHR(rank=2, skills=3, tasks=("a", "b")), "q_proj, down_proj", "m"))
    with lt.rows(model, ["m:b", "m:a"]):
        mixed = logits(model)
    for row, task in enumerate("ba"):
        assert torch.allclose(mixed[row], logits(model, tasks=task)[row], rtol=1e-10)
    with lt.rows(model, [None, "m:a"]):
        assert torch.allclose(logits(model)[0], logits(build())[0], rtol=1e-10)
    for names, words in (
        (["m", None], "name it, as m:a"),
        (["m:c", None], "no task 'c'"),
        (["x:a", None], "no adapter"),
    ):
        with pytest.raises(lt.LuthierError, match=words), lt.rows(model, names):
            pass


@pytest.mark.parametrize("heads", [1, 2])
def test_skills_of_several_tasks_are_poly_in_peft(heads, tmp_path):
    import peft

    base = build().float()
    base.save_pretrained(tmp_path / "base")
    model = moved32(
        lt.attach(build().float(), lt.MHR(rank=2, skills=3, heads=heads, tasks=("a", "b")), "q_proj, down_proj")
    )
    lt.save(model, tmp_path / "adapter")
    lt.export(tmp_path / "adapter", tmp_path / "out", to="peft", base=base)
    theirs = peft.PeftModel.from_pretrained(build().float(), tmp_path / "out").eval()
    for place, task in enumerate("ab"):
        with torch.no_grad():
            found = theirs(input_ids=ids(), task_ids=torch.full((2,), place)).logits
        assert torch.allclose(found, logits(model, tasks=task), atol=1e-4)
    assert not torch.allclose(logits(model, tasks="a"), logits(model, tasks="b"), atol=1e-2)
    for engine, why in (("vllm", "this is POLY"), ("transformers", "no task_ids")):
        with pytest.raises(lt.LuthierError, match=why):
            lt.export(tmp_path / "adapter", tmp_path / "engine", to=lt.formats.PEFT(engine=engine), base=base)


@pytest.mark.parametrize("form", [lt.LoRAMoE(experts=2), lt.MixLoRA(experts=2), lt.MoSA(dim=4), lt.IAA(dim=4)])
def test_what_no_weight_can_express_is_neither_merged_nor_exported(form, tmp_path):
    model = moved(lt.attach(build(), form))
    with pytest.raises(lt.LuthierError, match=r"cannot be merged: it (acts on|is not linear)"):
        lt.merge(model)
    lt.save(model, tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match=form.name()):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="peft", base=build())
    assert not (tmp_path / "out").exists()

"""MeteoRA and MHR: the equations in float64, experts from finished adapters, and the tasks of rows."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors, watched
from luthier.core.contracts.router import ROUTE, ROUTE_TASKS, routing
from luthier.core.contracts.site import Site
from luthier.methods.forms.meteora import MANY, gathered, grouped, together
from support.architectures import ARCHITECTURES

SITE = Site("layer", "affine", 12, 8)
WHERE = "q_proj, down_proj"


def build():
    return ARCHITECTURES["llama"].build(dtype=torch.float64)


def ids(rows: int = 3, length: int = 10) -> torch.Tensor:
    return ARCHITECTURES["llama"].inputs(rows, length)["input_ids"]


def logits(model, **given) -> torch.Tensor:
    with torch.no_grad():
        return model(**({"input_ids": ids()} | given)).logits


def moved(model, size: float = 0.3, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors(model).values():
        tensor.data += size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return model


def away(form, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(t.shape, generator=generator).double() for key, t in form.init(SITE, {}).items()}


FITTED = {
    "lora": lt.LoRA(rank=2, alpha=5.0),
    "rslora": lt.LoRA(rank=4, scaling="rslora"),
    "wegeft": lt.WeGeFT(rank=3),
    "hydra": lt.Hydra(rank=2),
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Adapters of one base, each away from its start, saved under their names."""
    folder = tmp_path_factory.mktemp("fitted")
    for seed, (name, form) in enumerate(FITTED.items()):
        lt.save(moved(lt.attach(build(), form, WHERE), seed=seed), folder / name / "adapter")
    return folder


# --- MeteoRA -----------------------------------------------------------------------------------------


def loop(form, p, x, found):
    """Token by token, expert by expert: the equation as the paper writes it."""
    y = x.new_zeros(*x.shape[:-1], p["B"].shape[1])
    for place in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])):
        at = tuple(place.tolist())
        best = sorted(range(len(p["A"])), key=lambda i: float(found[at][i]), reverse=True)[: form.top]
        powers = [torch.exp(found[at][i] / form.temperature) for i in best]
        for i, power in zip(best, powers, strict=True):
            y[at] += power / torch.stack(powers).sum() * (p["B"][i] @ (p["A"][i] @ x[at]))
    return y


@pytest.mark.parametrize("settings", [{"top": 1}, {"top": 2}, {"top": 3, "temperature": 2.5}])
def test_gathered_and_together_are_the_loop(settings):
    form = lt.MeteoRA(experts=("a", "b", "c", "d"), rank=3, **settings)
    p, x = away(form), torch.randn(2, 6, 12).double()
    found = form.route(p, x)
    wanted = loop(form, p, x, found)
    assert torch.allclose(gathered(form, p, x, found), wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(together(form, p, x, found), wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(grouped(form, p, x, found), wanted, rtol=1e-10, atol=1e-12)
    few = slice(0, 1)
    y = torch.randn(1, 2, 8).double()
    for part in (x[few, :2], x[few, :2].repeat(1, 3, 1)):  # fewer tokens than experts, and more
        base = y.repeat(1, part.shape[1] // 2, 1)
        assert torch.allclose(routing(form)(p, part, base), base + loop(form, p, part, form.route(p, part)), rtol=1e-10)


def test_gradients_of_both_ways_agree():
    form = lt.MeteoRA(experts=("a", "b", "c"), rank=3)
    found = {}
    for way in (gathered, together, grouped):
        p = {key: tensor.requires_grad_() for key, tensor in away(form).items()}
        x = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1)).double()
        way(form, p, x, form.route(p, x)).pow(2).sum().backward()
        found[way] = {key: tensor.grad for key, tensor in p.items()}
    for way in (gathered, grouped):
        assert all(torch.allclose(g, found[together][key], rtol=1e-9, atol=1e-12) for key, g in found[way].items())


def test_many_experts_take_the_sorted_way_and_are_the_same():
    form = lt.MeteoRA(experts=tuple(f"task{i}" for i in range(MANY)), rank=3)
    p, x, y = away(form), torch.randn(2, 12, 12).double(), torch.randn(2, 12, 8).double()
    wanted = y + together(form, p, x, form.route(p, x))
    assert torch.allclose(routing(form)(p, x, y), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chosen", range(4))
def test_a_gate_that_says_one_is_that_adapter(fitted, chosen):
    """k = 1 and a one-hot gate, made by logits that no x can outweigh."""
    experts = tuple(f"{name}={fitted / name}" for name in FITTED)
    model = lt.attach(build(), lt.MeteoRA(experts=experts, rank=4, top=1), WHERE)
    form, name = lt.MeteoRA(experts=experts, rank=4, top=1), list(FITTED)[chosen]
    alone = lt.load(build(), fitted / name / "adapter")
    for site in lt.select(build(), WHERE):
        p = {key.rpartition(".")[2]: t for key, t in tensors(model).items() if f".{site.path}." in key}
        x = torch.randn(2, 5, site.d_in).double()
        sure = torch.full((2, 5, 4), -9.0).double()
        sure[..., chosen] = 9.0
        layer = build().get_submodule(site.path)
        wanted = alone.get_submodule(site.path)(x)
        assert torch.allclose(form.post({**p, ROUTE: sure}, x, layer(x)), wanted, rtol=1e-9, atol=1e-12)


def test_one_expert_in_a_model_is_the_finished_adapter(fitted):
    only = lt.MeteoRA(experts=(f"task={fitted / 'wegeft'}",), rank=5, top=1)
    model = lt.attach(build(), only, WHERE)
    assert torch.allclose(logits(model), logits(lt.load(build(), fitted / "wegeft" / "adapter")), rtol=1e-9)
    assert not torch.allclose(logits(model), logits(build()), rtol=1e-3)


def test_experts_stay_and_the_folders_are_needed_no_more(fitted, tmp_path):
    experts = (f"x={fitted / 'lora'}", f"y={fitted / 'hydra'}")
    model = moved(lt.attach(build(), lt.MeteoRA(experts=experts, rank=4, train="router"), WHERE))
    lt.save(model, tmp_path / "routed")
    spec = (tmp_path / "routed" / "adapter.json").read_text()
    (tmp_path / "routed" / "adapter.json").write_text(spec.replace(str(fitted), "/nowhere"))
    try:
        loaded = lt.load(build(), tmp_path / "routed")
    except lt.LuthierError as error:  # a spec with a checksum of its own: leave it as it was
        assert "changed by hand" in str(error)
        (tmp_path / "routed" / "adapter.json").write_text(spec)
        loaded = lt.load(build(), tmp_path / "routed")
    assert torch.equal(logits(loaded), logits(model))


def test_temperature_acts_outside_training_alone():
    form = lt.MeteoRA(experts=("a", "b", "c"), temperature=20.0)
    assert form.train_mode() == lt.MeteoRA(experts=("a", "b", "c")) and form.eval_mode() == form
    model = moved(lt.attach(build(), form, WHERE))
    plain = moved(lt.attach(build(), lt.MeteoRA(experts=("a", "b", "c")), WHERE))
    assert torch.equal(logits(model.train()), logits(plain.train()))
    assert not torch.allclose(logits(model.eval()), logits(plain.eval()), rtol=1e-6)


def refused(fitted, words: str, *experts: str, where: str = WHERE, base=None, rank: int = 4):
    model = base or build()
    before = set(model.state_dict())
    with pytest.raises(lt.LuthierError, match=words):
        lt.attach(model, lt.MeteoRA(experts=experts, rank=rank), where)
    assert set(model.state_dict()) == before and all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_an_expert_is_refused_with_the_reason(fitted, tmp_path):
    good = f"a={fitted / 'lora'}"
    for name, form, where, words in (
        ("ia3", lt.IA3(), WHERE, "no factors of low rank"),
        ("dora", lt.DoRA(rank=2), WHERE, "no factors of low rank"),
        ("loreft", lt.LoReFT(rank=2), "stream", "experts are changes of linear layers"),
        ("table", lt.LoRA(rank=2), "embeddings", "experts are changes of linear layers"),
        ("nonlinear", lt.Bottleneck(dim=2), "q_proj", "not linear in its input"),
    ):
        lt.save(moved(lt.attach(build(), form, where)), tmp_path / name)
        refused(fitted, words, good, f"b={tmp_path / name}")
    refused(fitted, "set rank=4", good, f"b={fitted / 'rslora'}", rank=3)
    refused(fitted, "also changes .*down_proj", good, f"b={fitted / 'wegeft'}", where="q_proj")
    other = build()
    for parameter in other.parameters():
        parameter.data *= 1.5
    refused(fitted, "another", good, f"b={fitted / 'wegeft'}", base=other)
    refused(fitted, "holds no adapter", good, f"b={tmp_path}")


@pytest.mark.parametrize("experts", [("a",), ("a", "a"), ("a", ""), ("a=x", "b")])
def test_experts_are_named_apart(experts):
    with pytest.raises(lt.LuthierError, match=r"meteora\.experts"):
        lt.MeteoRA(experts=experts)


# --- Poly and MHR --------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2])
def test_it_is_pefts_poly(heads):
    """One head is Poly; several are what peft calls n_splits. peft's scale is 1 / rank, and it adds 1e-12 to a sum."""
    peft = pytest.importorskip("peft")
    names = ("a", "b", "c")
    ours = moved(lt.attach(build(), lt.MHR(rank=3, alpha=1.0, skills=4, heads=heads, tasks=names), WHERE))
    settings = {"n_tasks": 3, "n_skills": 4, "n_splits": heads, "target_modules": ["q_proj", "down_proj"]}
    theirs = peft.get_peft_model(build(), peft.PolyConfig(r=3, **settings)).eval()
    held = tensors(ours)
    with torch.no_grad():
        for path, layer in theirs.named_modules():
            if type(layer).__name__ == "Linear" and "poly_router" in dict(layer.named_children()):
                a, b, z = (held[f"default.{path.removeprefix('base_model.model.')}.{key}"] for key in ("A", "B", "Z"))
                layer.poly_lora_A["default"].copy_(a.transpose(0, 1))
                layer.poly_lora_B["default"].copy_(b.permute(2, 0, 1, 3))
                layer.poly_router["default"].module_logits.copy_(z.flatten(1))
        wanted = theirs.base_model(input_ids=ids(), task_ids=torch.tensor([2, 0, 1])).logits
    assert torch.allclose(logits(ours, tasks=["c", "a", "b"]), wanted, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(logits(ours, tasks=["a", "a", "b"]), wanted, rtol=1e-4)


def by_hand(form, p, x, task):
    """W x's change of one task, head by head and skill by skill."""
    a, b = torch.zeros(SITE.d_in, form.rank).double(), torch.zeros(form.rank, SITE.d_out).double()
    wide, tall = SITE.d_in // form.heads, SITE.d_out // form.heads
    for h in range(form.heads):
        share = torch.sigmoid(p["Z"][task, h])
        for s in range(form.skills):
            w = share[s] / share.sum()
            a[h * wide : (h + 1) * wide] += w * p["A"][s, h]
            b[:, h * tall : (h + 1) * tall] += w * p["B"][s, :, h]
    return form.alpha / form.rank * x @ a @ b


@pytest.mark.parametrize("heads", [1, 4])
def test_rows_have_the_averages_of_their_tasks(heads):
    form = lt.MHR(rank=3, skills=5, heads=heads, tasks=("a", "b", "c"))
    p, x, y = away(form), torch.randn(4, 6, 12).double(), torch.randn(4, 6, 8).double()
    told = torch.tensor([2, 0, 2, 1])
    found = routing(form)({**p, ROUTE_TASKS: told}, x, y)
    for row, task in enumerate(told.tolist()):
        wanted = y[row] + by_hand(form, p, x[row], task)
        assert torch.allclose(found[row], wanted, rtol=1e-10, atol=1e-12)
        one = routing(form)({**p, ROUTE_TASKS: torch.tensor([task])}, x[row : row + 1], y[row : row + 1])
        assert torch.allclose(one[0], wanted, rtol=1e-10, atol=1e-12)
    flat = routing(form)({**p, ROUTE_TASKS: told}, x[:, 0], y[:, 0])
    assert torch.allclose(flat, found[:, 0], rtol=1e-10)


def test_parameters_are_averaged_and_not_outputs():
    form = lt.MHR(rank=3, skills=4)
    p, x, y = away(form), torch.randn(2, 5, 12).double(), torch.zeros(2, 5, 8).double()
    w = form.weights(form.route(p, x))[0]
    outputs = torch.stack([w[s] * (x @ p["A"][s, 0] @ p["B"][s, :, 0]) * form.scale for s in range(4)]).sum(0)
    assert not torch.allclose(routing(form)(p, x, y), outputs, rtol=1e-2)
    same = {**p, "A": p["A"][:1].expand_as(p["A"])}  # with one A for all, the two are equal
    outputs = torch.stack([w[s] * (x @ same["A"][s, 0] @ p["B"][s, :, 0]) * form.scale for s in range(4)]).sum(0)
    assert torch.allclose(routing(form)(same, x, y), outputs, rtol=1e-10)


def test_mu_is_uniform_routing():
    form = lt.MHR(rank=3, skills=4, heads=2)
    mu = lt.MHR(rank=3, skills=4, heads=2, route_by="uniform")
    p, x, y = away(form), torch.randn(2, 5, 12).double(), torch.randn(2, 5, 8).double()
    assert set(mu.init(SITE, {})) == {"A", "B"}
    alike = {**p, "Z": torch.full_like(p["Z"], 0.7)}
    without = {key: tensor for key, tensor in p.items() if key != "Z"}
    assert torch.allclose(routing(mu)(without, x, y), routing(form)(alike, x, y), rtol=1e-12)
    assert not torch.allclose(routing(form)(p, x, y), routing(form)(alike, x, y), rtol=1e-3)
    a, b = p["A"].mean(0).flatten(0, 1), p["B"].mean(0).flatten(1)
    assert torch.allclose(routing(mu)(without, x, y), y + mu.scale * x @ a @ b, rtol=1e-12)


def test_weights_hold_where_every_sigmoid_vanishes():
    z = torch.tensor([[-2000.0, -2001.0, -2000.0]]).double()
    wanted = torch.tensor([[1.0, torch.e**-1, 1.0]]).double() / (2 + torch.e**-1)
    assert torch.allclose(lt.MHR(skills=3).weights(z), wanted, rtol=1e-9)


def test_skills_go_on_to_a_new_task(tmp_path):
    """MHR-z and MHR-μ: the skills of a finished adapter, a routing of their own."""
    many = moved(lt.attach(build(), lt.MHR(rank=2, skills=3, heads=2, tasks=("a", "b")), WHERE))
    lt.save(many, tmp_path / "many")
    settings = {"rank": 2, "skills": 3, "heads": 2, "source": str(tmp_path / "many")}
    z = lt.attach(build(), lt.MHR(train="router", **settings), WHERE)
    assert {key.rpartition(".")[2] for key in lt.trainable(z)} == {"Z"}
    mu = lt.attach(build(), lt.MHR(route_by="uniform", **settings), WHERE)
    assert {key.rpartition(".")[2] for key in lt.trainable(mu)} == {"A", "B"}
    for model in (z, mu):
        same = [torch.equal(t, tensors(many)[key]) for key, t in tensors(model).items() if not key.endswith("Z")]
        assert same and all(same)
    assert torch.allclose(logits(z), logits(mu), atol=2e-2)  # Z starts within 1e-3 of nothing
    merged = logits(mu)
    assert torch.allclose(logits(lt.merge(mu)), merged, rtol=1e-9)
    with pytest.raises(lt.LuthierError, match="here it is"):
        lt.attach(build(), lt.MHR(**{**settings, "skills": 4}), WHERE)
    with pytest.raises(lt.LuthierError, match="other sites"):
        lt.attach(build(), lt.MHR(**settings), "q_proj")
    lt.save(moved(lt.attach(build(), lt.LoRA(rank=2), WHERE)), tmp_path / "lora")
    with pytest.raises(lt.LuthierError, match="not an adapter of one mhr"):
        lt.attach(build(), lt.MHR(**{**settings, "source": str(tmp_path / "lora")}), WHERE)


# --- the tasks of rows --------------------------------------------------------------------------------


def by_tasks(*names: str):
    return moved(lt.attach(build(), lt.MHR(rank=2, skills=3, tasks=names), WHERE))


def test_a_call_tells_the_tasks_in_each_way():
    model = by_tasks("a", "b")
    wanted = logits(model, tasks=["b", "a", "b"])
    assert torch.equal(logits(model, tasks=torch.tensor([1, 0, 1])), wanted)
    with lt.tasks(model, ["b", "a", "b"]):
        assert torch.equal(logits(model), wanted)
        assert not torch.allclose(logits(model, tasks="a"), wanted)  # what the call says comes first
        assert torch.equal(logits(model), wanted)
        assert torch.equal(model.lm_head(model.model(ids()).last_hidden_state), wanted)
    assert torch.allclose(logits(model, tasks="b")[0], wanted[0], rtol=1e-10)
    for row, name in enumerate(["b", "a", "b"]):
        assert torch.allclose(logits(model, input_ids=ids()[row : row + 1], tasks=name)[0], wanted[row], rtol=1e-10)


def test_untold_and_unknown_tasks_are_refused():
    model = by_tasks("boolq", "arc")
    with pytest.raises(lt.LuthierError, match=r"none was given.*boolq, arc"):
        logits(model)
    for told in (["boolq", "ark", "arc"], "ark"):
        with pytest.raises(lt.LuthierError, match="arc"):
            logits(model, tasks=told)
        with pytest.raises(lt.LuthierError, match="no task 'ark'"), lt.tasks(model, told):
            pass
    with pytest.raises(lt.LuthierError, match="2 rows were given tasks"):
        logits(model, tasks=["arc", "boolq"])
    logits(model, tasks="arc")
    with pytest.raises(lt.LuthierError, match="none was given"):  # what one call was told is not the next one's
        logits(model)
    with pytest.raises(lt.LuthierError, match="differs from task to task"):
        lt.merge(model)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_goes_by_the_tasks(beams):
    model = by_tasks("a", "b")
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": beams}
    mixed = model.generate(input_ids=ids(), tasks=["b", "a", "b"], **settings)
    for row, name in enumerate(["b", "a", "b"]):
        assert torch.equal(mixed[row], model.generate(input_ids=ids()[row : row + 1], tasks=name, **settings)[0])
    with lt.tasks(model, "b"):
        assert torch.equal(model.generate(input_ids=ids(), **settings)[0], mixed[0])
    assert not torch.equal(model.generate(input_ids=ids(), tasks="a", **settings), mixed)


def test_a_recomputation_meets_the_tasks_of_its_own_pass():
    """Two passes with other tasks, then the gradient of the first."""
    model = by_tasks("a", "b").train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = model(input_ids=ids(), labels=ids(), tasks=["b", "b", "b"]).loss
        model(input_ids=ids(), tasks=["a", "b", "a"])
        loss.backward()
        return {key: p.grad.clone() for key, p in lt.trainable(model).items() if p.grad is not None}

    plain = gradients()
    assert all(not g[0].any() and g[1].any() for key, g in plain.items() if key.endswith("Z"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert all(torch.allclose(again[key], plain[key], rtol=1e-9, atol=1e-12) for key in plain)


def test_compiled_it_goes_by_the_tasks():
    torch._dynamo.reset()
    model = by_tasks("a", "b")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for told in ([1, 0, 1], [0, 0, 1]):
        there = torch.tensor(told)
        assert torch.allclose(logits(compiled, tasks=there), logits(model, tasks=there), rtol=1e-9, atol=1e-12)


def test_watched_logits_carry_gradients_through_a_recomputation():
    model = moved(lt.attach(build(), lt.MeteoRA(experts=("a", "b", "c")), WHERE)).train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        with watched(model) as routes:
            model(input_ids=ids())
        assert len(routes) == len(lt.select(model, WHERE))
        torch.stack([r.logits.logsumexp(-1).mean() for r in routes]).sum().backward()
        return {key: p.grad.clone() for key, p in lt.trainable(model).items() if p.grad is not None}

    plain = gradients()
    assert sum(key.endswith("gate") for key in plain) == len(lt.select(model, WHERE))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert again.keys() == plain.keys()
    assert all(torch.allclose(again[key], plain[key], rtol=1e-9, atol=1e-12) for key in plain)


def test_a_gate_starts_as_it_is_told():
    """Normal of the deviation asked for (1 in the authors' code), else as a linear layer: within ±1 / sqrt(d_in)."""
    width = build().config.hidden_size
    for spread, deviation in ((1.0, 1.0), (None, (3 * width) ** -0.5)):
        model = lt.attach(build(), lt.MeteoRA(experts=tuple("abcdefgh"), spread=spread), "q_proj, k_proj, v_proj")
        gates = torch.cat([t.flatten() for key, t in lt.trainable(model).items() if key.endswith("gate")])
        assert float(gates.std()) == pytest.approx(deviation, rel=0.05)
    with pytest.raises(lt.LuthierError, match=r"meteora.spread is 0.0"):
        lt.MeteoRA(spread=0.0)

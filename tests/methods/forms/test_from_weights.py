"""Hydra, LoRA-XS, LoLDU and S2FT against their equations, written out in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.core.adapters.attach import state_of
from luthier.core.adapters.lower import affine_map, delta_of
from support.architectures import ARCHITECTURES

D_IN, D_OUT, R = 7, 5, 3


def layer(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D_IN, D_OUT, bias=bias), nn.Linear(D_OUT, 2)).double()


def fitted(form, net=None):
    """(net, parameters away from the start, x, W, b) of the first layer."""
    net = lt.attach(net or layer(), form, where="0")
    trained = lt.trainable(net)
    for tensor in trained.values():
        tensor.data += torch.randn_like(tensor)
    p = {k: t.detach() for k, t in net[0].adapters.tuners()[0]._parameters.items()}
    x = torch.randn(4, 6, D_IN, dtype=torch.float64)
    bias = net[0].bias.detach() if net[0].bias is not None else torch.zeros(D_OUT, dtype=torch.float64)
    return net, p, x, net[0].weight.detach().clone(), bias.clone()


def same(a, b, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() < tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_hydra_reads_the_input_and_the_output(bias):
    net, p, x, w, b = fitted(lt.Hydra(rank=R, scale=0.7), layer(bias))
    y = x @ w.T + b
    expected = y + 0.7 * (x @ p["D_p"].T @ p["U_p"].T + y @ p["D_s"].T @ p["U_s"].T)
    assert same(net[0](x), expected)
    if bias:
        lt.merge(net)
        assert same(net[0].weight, w + 0.7 * (p["U_p"] @ p["D_p"] + p["U_s"] @ p["D_s"] @ w))
        assert same(net[0].bias, b + 0.7 * p["U_s"] @ p["D_s"] @ b)
        assert same(net[0](x), expected)


def test_hydra_without_its_sequential_branch_is_lora():
    net, other = layer(), layer()
    other.load_state_dict(net.state_dict())
    net, p, x, _, _ = fitted(lt.Hydra(rank=R, scale=2.0), net)
    p["U_s"].zero_()
    tuner = lt.attach(other, lt.LoRA(rank=R, alpha=2.0 * R), where="0")[0].adapters.tuners()[0]
    tuner.A.data, tuner.B.data = p["D_p"], p["U_p"]
    assert same(net[0](x), other[0](x))


def test_hydra_is_exported_where_no_bias_moves(tmp_path):
    net, _, _, _, _ = fitted(lt.Hydra(rank=R))
    lt.save(net, tmp_path / "a")
    with pytest.raises(lt.LuthierError, match="changes the bias"):
        lt.export(tmp_path / "a", tmp_path / "out", to="peft", base=lt.detach(net))
    net, _, _, w, _ = fitted(lt.Hydra(rank=R), layer(bias=False))
    tuners = net[0].adapters.tuners()
    delta = delta_of(net[0], tuners)
    assert delta.rank == 2 * R and same(delta.dense(), affine_map(net[0], tuners)[0] - w)


def test_loraxs_trains_a_square_between_singular_vectors():
    net, p, x, w, b = fitted(lt.LoRAXS(rank=R, scale=0.5))
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    ba = u[:, :R] * s[:R], vt[:R]
    assert list(lt.trainable(net)) == ["default.0.R"] and lt.trainable(net, count=True) == R * R
    assert same(p["B"] @ p["A"], ba[0] @ ba[1])
    assert same(p["A"] @ p["A"].T, torch.eye(R, dtype=w.dtype)) and same((p["B"].T @ p["B"]).diag(), s[:R] ** 2)
    assert same(net[0](x), x @ (w + 0.5 * p["B"] @ p["R"] @ p["A"]).T + b)


def test_loraxs_has_a_gradient_from_its_start():
    net = lt.attach(layer(), lt.LoRAXS(rank=R, scale=2.0), where="0")
    x = torch.randn(8, D_IN, dtype=torch.float64)
    y = net[0](x)
    (y * torch.ones_like(y)).sum().backward()
    tuner = net[0].adapters.tuners()[0]
    gradient = torch.ones(8, D_OUT, dtype=torch.float64).T @ x  # dL/dW
    assert same(tuner.R.grad, 2.0 * tuner.B.T @ gradient @ tuner.A.T) and tuner.R.grad.abs().max() > 0.1


@pytest.mark.parametrize(("d_in", "d_out"), [(7, 5), (5, 7), (6, 6)])
def test_loldu_decomposes_the_weight(d_in, d_out):
    rank = min(d_in, d_out)
    net = nn.Sequential(nn.Linear(d_in, d_out), nn.Linear(d_out, 2)).double()
    w = net[0].weight.detach().clone()
    lt.attach(net, lt.LoLDU(rank=rank), where="0")
    p = net[0].adapters.tuners()[0]._parameters
    assert same(p["L"] @ p["D"].diag() @ p["U"], w)  # all pivots give W back
    assert same(p["U"].diagonal(), torch.ones(rank, dtype=w.dtype)) and same(p["U"].tril(-1), torch.zeros(1))
    assert same(p["L"].abs().max(0).values, torch.ones(rank, dtype=w.dtype))  # pivoted: rows of a unit triangle
    assert int((p["L"] == 1).sum(0).min()) >= 1


def test_loldu_trains_pivots_alone():
    net, p, x, w, b = fitted(lt.LoLDU(rank=R, scale=0.5))
    assert list(lt.trainable(net)) == ["default.0.z"] and lt.trainable(net, count=True) == R
    assert same(net[0](x), x @ (w + 0.5 * p["L"] @ (p["z"] - p["D"]).diag() @ p["U"]).T + b)
    gradient = torch.randn(4, 6, D_OUT, dtype=torch.float64)
    net[0](x).backward(gradient)
    g = torch.einsum("abo,abi->oi", gradient, x)
    assert same(net[0].adapters.tuners()[0].z.grad, 0.5 * (p["L"].T @ g @ p["U"].T).diag())


def test_loldu_starts_as_a_no_op_in_float32():
    net = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 2))
    x = torch.randn(32, 64)
    before = net[0](x)
    assert same(lt.attach(net, lt.LoLDU(rank=48), where="0")[0](x), before, 1e-6)


def test_loldu_takes_a_singular_weight():
    net = layer()
    net[0].weight.data[:, 0] = 0
    x = torch.randn(3, D_IN, dtype=torch.float64)
    before = net[0](x)
    lt.attach(net, lt.LoLDU(rank=R), where="0")
    assert same(net[0](x), before) and all(t.isfinite().all() for t in net[0].adapters.parameters())


@pytest.mark.parametrize("form", [lt.LoRAXS(rank=6), lt.LoLDU(rank=6)])
def test_a_rank_above_the_layers_is_refused(form):
    with pytest.raises(lt.LuthierError, match=r"needs 6 directions of 0, which is 5 x 7"):
        lt.attach(layer(), form, where="0")


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("rule", ["random", "largest", "smallest"])
def test_s2ft_moves_the_chosen_slice_alone(side, rule):
    net, p, x, w, b = fitted(lt.S2FT(ratio=0.4, side=side, rule=rule))
    axis = 1 if side == "input" else 0
    new, index = w.clone(), p["index"]
    new.index_add_(axis, index, p["delta"])
    assert len(index) == round(0.4 * w.shape[axis]) == len(set(index.tolist()))
    assert same(net[0](x), x @ new.T + b)
    sizes = w.norm(dim=1 - axis)
    expected = {"largest": sizes.argsort()[-len(index) :], "smallest": sizes.argsort()[: len(index)]}
    assert rule == "random" or set(index.tolist()) == set(expected[rule].tolist())


def test_s2ft_keeps_only_the_slice_of_its_input():
    """The backward pass saves x[..., i], never x itself."""
    net = lt.attach(layer(), lt.S2FT(ratio=0.3, side="input"), where="0")
    saved: list[torch.Tensor] = []
    x = torch.randn(9, 6, D_IN, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        net[0](x)
    rows = [t for t in saved if t.is_floating_point() and t.numel() >= 9 * 6]
    assert rows and all(t.numel() == 9 * 6 * 2 for t in rows)  # two of seven channels


def llama():
    settings = dict(ARCHITECTURES["llama"].settings, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(3)
    return replace(ARCHITECTURES["llama"], settings=settings).build(dtype=torch.float64)


def test_s2ft_is_masked_full_fine_tuning_under_grouped_queries():
    """Whole heads at values and outputs, channels at down: N Adam steps = full fine-tuning of that slice alone."""
    model, full = llama(), llama()
    heads = full.config.num_key_value_heads
    where = {"v_proj": "output", "o_proj": "input", "down_proj": "input"}
    for name, side in where.items():
        form = lt.S2FT(ratio=0.5, side=side, units=None if name == "down_proj" else heads)  # type: ignore[arg-type]
        lt.attach(model, form, name)
    masks = {}
    for part in state_of(model).components:
        for site in part.sites:
            weight = full.get_submodule(site.path).weight
            mask = torch.zeros_like(weight)
            index = part.tuners[site.path].index
            mask.index_fill_(0 if part.form.side == "output" else 1, index, 1.0)  # type: ignore[attr-defined]
            masks[f"{site.path}.weight"] = mask
    ids = torch.randint(3, 90, (4, 12))
    for net, parameters in (
        (model, list(lt.trainable(model).values())),
        (full, [p for n, p in full.named_parameters() if n in masks]),
    ):
        for p in net.parameters():
            p.requires_grad_(any(p is q for q in parameters))
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            net(input_ids=ids.roll(step, 0), labels=ids.roll(step, 0)).loss.backward()
            for n, p in net.named_parameters():
                if net is full and n in masks:
                    p.grad *= masks[n]
            optimizer.step()
    base = llama().state_dict()
    lt.merge(model)
    for name, tensor in full.state_dict().items():
        assert same(model.state_dict()[name], tensor), name
    assert all(not torch.equal(full.state_dict()[n], base[n]) for n in masks)
    assert same(model(input_ids=ids).logits, full(input_ids=ids).logits)


def test_s2ft_chooses_matching_heads_under_grouped_queries():
    """A unit is a key-value head at values, and all query heads that read it at the output projection."""
    model = llama()
    lt.attach(model, lt.S2FT(ratio=0.5, side="output", units=2), "v_proj", name="v")
    lt.attach(model, lt.S2FT(ratio=0.5, side="input", units=2), "o_proj", name="o")
    width = model.config.head_dim or model.config.hidden_size // 4
    picked = set()
    for block in model.model.layers:
        v = block.self_attn.v_proj.adapters.tuners()[0].index.unique()
        o = block.self_attn.o_proj.adapters.tuners()[0].index.unique()
        heads = {int(i) // width for i in v}
        assert len(v) == width and len(o) == 2 * width and len(heads) == 1
        assert {int(i) // width // 2 for i in o} == heads  # query head h reads key-value head h // 2
        picked |= heads
        # only the chosen head's rows of v reach the chosen columns of o: a change of v moves nothing else of o's input
        seen = []
        hook = block.self_attn.o_proj.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        ids = torch.arange(3, 13)[None]
        with lt.disabled(model):
            model(input_ids=ids)
        block.self_attn.v_proj.weight.data[v] += 1.0
        with lt.disabled(model):
            model(input_ids=ids)
        block.self_attn.v_proj.weight.data[v] -= 1.0
        hook.remove()
        moved = (seen[1] - seen[0]).abs().amax((0, 1)) > 1e-9
        assert set(moved.nonzero().flatten().tolist()) == set(o.tolist())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ratio": 0.0}, "expected a number above 0"),
        ({"ratio": 1.5}, "expected a number above 0"),
        ({"side": "both"}, "expected one of"),
    ],
)
def test_s2ft_refuses_what_makes_no_sense(settings, told):
    with pytest.raises(lt.LuthierError, match=told):
        lt.S2FT(**settings)
    with pytest.raises(lt.LuthierError, match="7 input channels, which are not 2 equal units"):
        lt.attach(layer(), lt.S2FT(units=2), where="0")

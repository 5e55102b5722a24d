"""Each form equals its equation, written out plainly in float64 on one site."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import luthier as lt

D_IN, D_OUT, R = 6, 5, 3


class Net(nn.Module):
    """A layer and a head; `layer` is the one linear layer that all-linear takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D_IN, D_OUT)
        self.head = nn.Linear(D_OUT, 2)

    def forward(self, x):
        return self.head(self.layer(x))


def fitted(form, where="layer"):
    """(net, parameters away from the start, x, W, b)."""
    net = lt.attach(Net().double(), form, where=where)
    p = {key.rpartition(".")[2]: t for key, t in lt.trainable(net).items()}
    for tensor in p.values():
        tensor.data += torch.randn_like(tensor)
    x = torch.randn(4, 7, D_IN, dtype=torch.float64)
    return net, {k: t.detach() for k, t in p.items()}, x, net.layer.weight.detach(), net.layer.bias.detach()


def same(a, b) -> bool:
    return bool((a - b).abs().max() < 1e-10)


@pytest.mark.parametrize("rule", ["lora", "rslora"])
def test_lora(rule):
    net, p, x, w, b = fitted(lt.LoRA(rank=R, alpha=8, scaling=rule))
    s = 8 / (R if rule == "lora" else math.sqrt(R))
    assert same(net.layer(x), x @ (w + s * p["B"] @ p["A"]).T + b)


def test_dora():
    net, p, x, w, b = fitted(lt.DoRA(rank=R, alpha=8))
    v = w + 8 / R * p["B"] @ p["A"]
    rows = torch.stack([p["m"][i] * v[i] / v[i].pow(2).sum().sqrt() for i in range(D_OUT)])
    assert same(net.layer(x), x @ rows.T + b)


def test_dora_holds_the_norm_constant_in_the_gradient():
    net, p, x, w, _ = fitted(lt.DoRA(rank=R, alpha=R))
    net.layer(x).sum().backward()
    a, b, m = (p[k].clone().requires_grad_() for k in ("A", "B", "m"))
    v = w + b @ a
    constant = v.detach().pow(2).sum(1, keepdim=True).sqrt()
    (x @ (m[:, None] * v / constant).T).sum().backward()
    got = {k.rpartition(".")[2]: t.grad for k, t in lt.trainable(net).items()}
    assert same(got["A"], a.grad) and same(got["B"], b.grad) and same(got["m"], m.grad)


def test_wegeft_multiplies_the_weight():
    net, p, x, w, b = fitted(lt.WeGeFT(rank=R, alpha=8))
    generated = w @ (torch.eye(D_IN, dtype=w.dtype) + 8 / R * p["phi"] @ p["psi"])
    assert same(net.layer(x), x @ generated.T + b)
    factors = lt.WeGeFT(rank=R, alpha=8).factors(p, w)
    assert same(w + factors[0] @ factors[1], generated)
    assert torch.linalg.matrix_rank(generated - w) <= R


@pytest.mark.parametrize("block", ["identity", "sigmoid", "softmax", "gelu", "mlp", "transformer"])
def test_gift_generates_through_a_block(block):
    net, p, x, w, b = fitted(lt.GIFT(rank=R, alpha=8, block=block))
    c = w @ p["phi"]

    def unit(t):
        return t / t.norm(dim=-1, keepdim=True)

    def mlp(t):
        inner = unit(t) @ p["up"].T + p["up_bias"]
        return t + (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ p["down"].T + p["down_bias"]

    def transformer(t):
        q, k, v = (unit(t) @ p["qkv"].T + p["qkv_bias"]).split(R, dim=-1)
        weights = torch.softmax(q @ k.T / math.sqrt(R), dim=-1)
        return mlp(t + (weights @ v) @ p["proj"].T + p["proj_bias"])

    blocks = {
        "identity": lambda t: t,
        "sigmoid": lambda t: 1 / (1 + torch.exp(-t)),
        "softmax": lambda t: torch.exp(t) / torch.exp(t).sum(-1, keepdim=True),
        "gelu": lambda t: t * 0.5 * (1 + torch.erf(t / math.sqrt(2))),
        "mlp": mlp,
        "transformer": transformer,
    }
    assert same(net.layer(x), x @ (w + 8 / R * blocks[block](c) @ p["psi"]).T + b)


def test_gift_has_the_authors_scale_unless_told_otherwise():
    """Their code has none: at any rank a step of ψ moves the weight as theirs does."""
    assert lt.GIFT(rank=64).scale == lt.GIFT(rank=3).with_rank(64).scale == 1
    assert lt.GIFT(rank=4, alpha=8).with_rank(16).scale == 2


def rotation(m):
    """Orthonormal rows by Gram-Schmidt, the slow way."""
    rows = []
    for row in m:
        for other in rows:
            row = row - (row @ other) * other
        rows.append(row / row.norm())
    return torch.stack(rows)


EDITS = {
    "LoReFT": lambda p, h: h + (h @ p["W"].T + p["b"] - h @ rotation(p["R"]).T) @ rotation(p["R"]),
    "DiReFT": lambda p, h: h + (h @ p["W1"].T + p["b"]) @ p["W2"],
    "NoReFT": lambda p, h: h + (h @ p["W1"].T + p["b"] - h @ p["W2"].T) @ p["W2"],
    "ConsReFT": lambda p, h: h + (p["b"] - h @ rotation(p["R"]).T) @ rotation(p["R"]),
    "LobiReFT": lambda p, h: h + p["b"] @ rotation(p["R"]),
}


@pytest.mark.parametrize("name", EDITS)
def test_reft(name):
    net, p, x, w, b = fitted(getattr(lt, name)(rank=R, positions="all"))
    assert same(net.layer(x), EDITS[name](p, x @ w.T + b))


def test_red_scales_and_shifts():
    net, p, x, w, b = fitted(lt.RED())
    assert same(net.layer(x), p["a"] * (x @ w.T + b) + p["b"])


def test_ia3_rescales_outputs_and_inputs():
    net, p, x, w, b = fitted(lt.IA3())
    assert same(net.layer(x), p["l"] * (x @ w.T + b))
    net, p, x, w, b = fitted(lt.IA3(), where="input(layer)")
    assert p["l"].shape == (D_IN,) and same(net.layer(x), (p["l"] * x) @ w.T + b)


def test_bitfit_and_full_replace_parameters():
    net, p, x, w, b = fitted(lt.BitFit(), where="params(layer.bias)")
    assert same(net.layer(x), x @ w.T + b.detach()) and not same(b, net.layer._parameters["bias"])
    net, p, x, w, b = fitted(lt.Full(), where="params(layer.weight)")
    assert same(net.layer(x), x @ p["theta"].T + b)


@pytest.mark.parametrize("insertion", ["sequential", "parallel"])
def test_bottleneck(insertion):
    net, p, x, w, b = fitted(lt.Bottleneck(dim=4, insertion=insertion, scale=0.5))
    y = x @ w.T + b
    h = y if insertion == "sequential" else x
    inner = (h @ p["down"].T + p["down_bias"]).clamp(min=0)
    assert same(net.layer(x), y + 0.5 * (inner @ p["up"].T + p["up_bias"]))


def test_prefix_mixes_two_attentions():
    """(1 - λ) Attn + λ softmax(q P_kᵀ) P_v under a causal mask, against the attention written out."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4,
    )  # fmt: skip
    model = LlamaModel(config).double().eval()
    attention, seen = model.layers[0].self_attn, {}
    attention.o_proj.register_forward_pre_hook(lambda m, a: seen.update(y=a[0]))
    lt.attach(model, lt.Prefix(length=3))
    p = {key.rpartition(".")[2]: t for key, t in lt.trainable(model).items()}
    for tensor in p.values():
        tensor.data += torch.randn_like(tensor)
    captured = {}
    attention.q_proj.register_forward_hook(lambda m, a, y: captured.update(q=y))
    attention.k_proj.register_forward_hook(lambda m, a, y: captured.update(k=y))
    attention.v_proj.register_forward_hook(lambda m, a, y: captured.update(v=y))
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        model(input_ids=ids)
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        q, k, v = (captured[n].view(1, 4, 2, 4).transpose(1, 2) for n in "qkv")
        cos, sin = model.rotary_emb(v, torch.arange(4)[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        scores = (q @ k.mT / 2).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        to_prefix = q @ p["k"].mT / 2
        total = scores.logsumexp(-1, keepdim=True), to_prefix.logsumexp(-1, keepdim=True)
        lam = torch.sigmoid(total[1] - total[0])
        mixed = (1 - lam) * scores.softmax(-1) @ v + lam * to_prefix.softmax(-1) @ p["v"]
        assert same(seen["y"], mixed.transpose(1, 2).reshape(1, 4, 8))


def test_dropout_is_on_in_training_alone():
    for form in (lt.LoRA(rank=R, dropout=0.5), lt.WeGeFT(rank=R, dropout=0.5), lt.Bottleneck(dropout=0.5)):
        net, _, x, _, _ = fitted(form)
        assert not torch.equal(net.train().layer(x), net.layer(x))
        assert torch.equal(net.eval().layer(x), net.layer(x))


def test_rows_stay_orthonormal_through_training_and_reload(tmp_path):
    net = lt.attach(Net(), lt.LoReFT(rank=R, positions="all"), where="layer")
    optimizer = torch.optim.AdamW(lt.trainable(net).values(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (net(torch.randn(8, D_IN)) - 1).pow(2).mean().backward()
        optimizer.step()
    lt.save(net, tmp_path / "a")
    other = Net()
    other.load_state_dict({k: v for k, v in net.state_dict().items() if "adapters" not in k})
    lt.load(other, tmp_path / "a")
    for model in (net, other):
        p = {key.rpartition(".")[2]: t for key, t in lt.trainable(model).items()}
        r = lt.LoReFT(rank=R, positions="all").rotation(p)
        assert (r @ r.T - torch.eye(R)).abs().max() < 1e-5


def test_embedding_tables_take_lora():
    table = nn.Sequential(nn.Embedding(9, D_IN), nn.Linear(D_IN, 3), nn.Linear(3, 2)).double()
    lt.attach(table, lt.LoRA(rank=R, alpha=8), where="embeddings")
    p = {key.rpartition(".")[2]: t for key, t in lt.trainable(table).items()}
    p["B"].data += torch.randn_like(p["B"])
    ids = torch.tensor([[1, 4, 8]])
    weight = table[0].weight + (8 / R * p["B"] @ p["A"]).T
    assert same(table[0](ids), weight[ids])
    adapted = table(ids)
    assert same(lt.merge(table)(ids), adapted)

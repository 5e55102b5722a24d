"""What each examination must find, on matrices and models whose answer is known; float64."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from luthier.core.contracts.combination import Place
from luthier.core.contracts.examination import Change, Pair, unwatched
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.numerics.spectrum import new_directions, spectrum
from luthier.core.sites.answers import answers, spoken
from luthier.methods.combinations.mitigate_intruders import MitigateIntruders
from luthier.methods.examinations.forgetting import Forgetting
from luthier.methods.examinations.grafting import Grafting, gate, gradient_of, grafted, largest
from luthier.methods.examinations.intruders import Intruders
from luthier.methods.examinations.similarity import Similarity, rsa
from support.architectures import ARCHITECTURES

N = 128


def decaying(rows: int = N, columns: int = N, decay: float = 0.95) -> Tensor:
    """A matrix of geometric spectrum between random bases: a Gaussian one has false intruders of its own."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in (rows, columns)
    )
    count = min(rows, columns)
    return left[:, :count] * decay ** torch.arange(count) @ right[:, :count].mT


def update(w: Tensor, rank: int | None, size: float = 0.5) -> Delta:
    """A random update of relative norm `size`, of a rank or full."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    found = (
        Delta.dense_of(draw(*w.shape)) if rank is None else Delta.low_rank(draw(len(w), rank), draw(rank, w.shape[1]))
    )
    return found * (size * float(w.norm()) / found.norm())


def place(w: Tensor, layer: int | None = 0, vocabulary: bool = False) -> Place:
    site = Site("blocks.0.x.weight", "param", w.shape[1], w.shape[0], layer)
    return Place(site, tuple(w.shape), 2, lambda: w, vocabulary)


def count(w: Tensor, delta: Delta) -> tuple[float, float]:
    found = Intruders().of([Change(place(w), lambda: delta)], unwatched)
    return found.summary["intruders"], found.null_summary["intruders"]


# --- intruders -------------------------------------------------------------------------------------


def test_a_low_rank_update_makes_intruders_and_a_full_rank_one_of_its_norm_none():
    w = decaying()
    low, null = count(w, update(w, 2))
    assert low >= 1 and null == 0
    assert count(w, update(w, None)) == (0, 0)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24), (30, 30)])
def test_directions_are_those_of_the_svd(rows, columns):
    w = decaying(rows, columns)
    found = spectrum(w, 6)
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    assert torch.allclose(found.s, s[:6], atol=1e-10)
    assert torch.allclose((found.U * u[:, :6]).sum(0).abs(), torch.ones(6).double(), atol=1e-8)
    assert torch.allclose(found.U * found.s @ found.V.mT, u[:, :6] * s[:6] @ vt[:6], atol=1e-10)
    changed = w + update(w, 2).dense()
    u0, u1 = u, torch.linalg.svd(changed, full_matrices=False)[0][:, :10]
    plain = [j for j in range(10) if max(abs(float(u1[:, j] @ u0[:, i])) for i in range(u0.shape[1])) < 0.5]
    assert new_directions(spectrum(w), spectrum(changed, 10), 0.5).tolist() == plain


def test_mitigation_lowers_the_count_and_one_is_the_identity():
    w = decaying()
    delta = update(w, 2)
    same = MitigateIntruders(scale=1.0).merge([delta], [1.0], place(w))
    assert torch.equal(same.dense(), delta.dense())
    before, _ = count(w, delta)
    softer = MitigateIntruders(scale=0.1).merge([delta], [1.0], place(w))
    assert count(w, softer)[0] < before and softer.rank == 2 + before
    gone = MitigateIntruders(scale=0.0).merge([delta], [1.0], place(w))
    u, s, vt = torch.linalg.svd(w + delta.dense(), full_matrices=False)
    new = new_directions(spectrum(w), spectrum(w + delta.dense(), 10), 0.5)
    wanted = w + delta.dense() - u[:, new] * s[new] @ vt[new]
    assert torch.allclose(w + gone.dense(), wanted, atol=1e-9)


def test_tables_heads_and_vectors_are_left_alone():
    w = decaying(20, 20)
    delta = update(w, 2)
    for at in (place(w, layer=None), place(w, vocabulary=True)):
        assert MitigateIntruders(scale=0.0).merge([delta], [1.0], at) is not None
        assert torch.equal(MitigateIntruders(scale=0.0).merge([delta], [1.0], at).dense(), delta.dense())
        with pytest.raises(LuthierError, match="no matrix of a block"):
            Intruders().of([Change(at, lambda: delta)], unwatched)


# --- grafting --------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A linear classifier of four classes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, labels=None):
        return type("Output", (), {"logits": x @ self.weight.mT})


def skilled() -> tuple[Pair, Tensor]:
    """A change of which four entries hold the whole skill and all others are noise."""
    generator = torch.Generator().manual_seed(0)
    base = 0.01 * torch.randn(4, 50, generator=generator, dtype=torch.float64)
    delta = 0.05 * torch.randn(4, 50, generator=generator, dtype=torch.float64)
    delta[torch.arange(4), torch.arange(4)] = 3.0
    data = []
    for _ in range(4):
        labels = torch.randint(4, (40,), generator=generator)
        x = 0.3 * torch.randn(40, 50, generator=generator, dtype=torch.float64)
        x[torch.arange(40), labels] += 1
        data.append({"x": x, "labels": labels})
    site = Site("weight", "param", 50, 4, None)
    change = Change(Place(site, (4, 50), 1, lambda: base), lambda: Delta.dense_of(delta))
    models = Tiny(base), Tiny(base + delta)
    return Pair(lambda: [change], lambda: nullcontext(models[0]), lambda: nullcontext(models[1]), {"rows": data}), delta


def test_the_gradient_of_the_mask_is_the_finite_difference():
    pair, delta = skilled()
    deltas, (batch, *_) = {"weight": delta}, pair.data["rows"]
    b, s = largest(deltas, 0.02), {"weight": torch.randn(4, 50, dtype=torch.float64)}
    with pair.before() as model:

        def loss(each: Tensor) -> float:
            call = grafted(model, deltas, gate(b, {"weight": each}))
            return float(nn.functional.cross_entropy(*spoken(model, batch, call)[:2]).detach())

        found = gradient_of(model, deltas, b, s, [batch])["weight"]
        for at in [(0, 0), (1, 1), (2, 30), (3, 49)]:
            step = torch.zeros(4, 50, dtype=torch.float64)
            step[at] = 1e-6
            assert float(found[at]) == pytest.approx(
                (loss(s["weight"] + step) - loss(s["weight"] - step)) / 2e-6, rel=1e-5
            )
    assert int(b["weight"].sum()) == 4 and bool(b["weight"][torch.arange(4), torch.arange(4)].all())


def test_a_graft_carries_the_skill_and_a_random_one_does_not():
    pair, _ = skilled()
    found = Grafting(share=0.02).measure(pair)
    summary = found.summary
    assert summary["size"] == 4 and summary["grafted"] > 0.95 > summary["base"] + 0.3
    assert found.null_summary["grafted"] < summary["grafted"] - 0.3 and summary["grafted"] >= summary["tuned"] - 0.02
    assert found.places["weight"]["share"] == pytest.approx(0.02) == found.null["weight"]["share"]


def test_fitting_the_mask_finds_what_size_alone_does_not():
    """One large change that hurts: a mask by size takes it in, steps on S put it out."""
    pair, delta = skilled()
    (change,), data = pair.changes(), pair.data
    delta[0, 1] = 20.0  # class 1 would be called class 0
    pair = Pair(lambda: [change], pair.before, pair.after, data)
    stays = Grafting(share=0.025, steps=0).measure(pair).summary["grafted"]
    assert Grafting(share=0.025, steps=10).measure(pair).summary["grafted"] > stays + 0.1


# --- similarity ------------------------------------------------------------------------------------


def test_similarity_is_that_of_the_strict_triangle():
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    cosines = [[float(nn.functional.cosine_similarity(z[i], z[j], dim=0)) for i, j in pairs] for z in (x, y)]
    assert rsa(x, y) == pytest.approx(float(torch.corrcoef(torch.tensor(cosines, dtype=torch.float64))[0, 1]))
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    assert rsa(x, x) == 1.0 and rsa(x, 3 * x @ rotation) == pytest.approx(1.0, abs=1e-12)


def texts(rows: int = 6, count: int = 2) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 97, (rows, 8), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)})
    return found


def noisy(layer: int | None):
    """(before, after): the second with noise in one block."""
    pair = [ARCHITECTURES["llama"].build(dtype=torch.float64) for _ in range(2)]
    if layer is not None:
        with torch.no_grad():
            for parameter in pair[1].model.layers[layer].parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return pair


def test_noise_in_a_block_shows_from_there_on():
    models = noisy(1)
    pair = Pair(lambda: [], lambda: nullcontext(models[0]), lambda: nullcontext(models[1]), {"texts": texts()})
    found = Similarity(least=0.999).measure(pair)
    values = [numbers["similarity"] for numbers in found.places.values()]
    assert values[:2] == [1.0, 1.0] and max(values[2:]) < 0.99 and found.summary["bottom"] == 1
    assert max(abs(numbers["similarity"]) for numbers in found.null.values()) < 0.9
    few = Pair(pair.changes, pair.before, pair.after, {"texts": texts(rows=3)})
    with pytest.raises(LuthierError, match="6 rows"):
        Similarity().measure(few)


def test_padding_is_not_pooled():
    model = noisy(None)[0]
    wide = [
        {key: nn.functional.pad(value, (0, 4), value=-100 if key == "labels" else 0) for key, value in b.items()}
        for b in texts()
    ]
    measured = [
        Similarity().measure(Pair(lambda: [], lambda: nullcontext(model), lambda: nullcontext(model), {"t": each}))
        for each in (texts(), wide)
    ]
    for key, numbers in measured[0].null.items():
        assert numbers["similarity"] == pytest.approx(measured[1].null[key]["similarity"], abs=1e-9)


# --- forgetting ------------------------------------------------------------------------------------


def test_the_loss_is_the_models_own_and_the_interval_holds_the_rise():
    before, after = noisy(2)
    data = texts(rows=20)
    pair = Pair(lambda: [], lambda: nullcontext(before), lambda: nullcontext(after), {"held": data})
    found = Forgetting().measure(pair)
    held = found.places["held"]
    for model, key in ((before, "before"), (after, "after")):
        with torch.no_grad():
            sums = [(model(**b).loss, int(b["labels"][:, 1:].ne(-100).sum())) for b in data]
        assert held[key] == pytest.approx(float(sum(x * n for x, n in sums)) / sum(n for _, n in sums))
    assert held["low"] < held["rise"] < held["high"] and found.effect == held["rise"]
    null = found.null["held"]
    assert null["rise"] == 0 and null["low"] < 0 < null["high"]


def test_what_is_forgotten_is_told():
    pair, _ = skilled()
    forgot = Pair(pair.changes, pair.after, pair.before, {"skill": pair.data["rows"]})  # the other way round
    found = Forgetting().measure(forgot)
    assert found.summary["forgotten"] == 1 and found.places["skill"]["score"] < -0.3 and "skill" in found.verdict
    learnt = Forgetting().measure(pair)
    assert learnt.summary["forgotten"] == 0 and learnt.effect == pytest.approx(-found.effect)


def test_answers_are_by_label():
    pair, _ = skilled()
    with pair.after() as model:
        found = answers(model, pair.data["rows"][:2])
    rows = found.by_row(80)
    assert rows[:, 2].eq(1).all() and float(rows[:, 0].mean()) == pytest.approx(float(found.loss.mean()))
    with pair.before() as model, pytest.raises(LuthierError, match="numbers"):
        answers(model, [{"x": pair.data["rows"][0]["x"], "labels": torch.zeros(40)}])

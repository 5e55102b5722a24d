"""EVA's start: orthonormal rows that explain more of the input than others, and an unchanged output."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.contracts.ranks import Budget
from luthier.core.sites.collect import collect
from luthier.methods.inits.eva import EVA
from luthier.methods.ranks.eva import EVA as Ranks
from luthier.methods.statistics.pca import PCA
from support.calibrated import batches, build, measured

FORMS = [lt.LoRA(rank=6), lt.WeGeFT(rank=6), lt.DoRA(rank=6)]


def started(form, where: str = "all-linear", **settings):
    model = build(**settings)
    return lt.attach(model, form, where, init=EVA(), stats=measured(model, *EVA().statistics(form), where=where))


@pytest.mark.parametrize("form", FORMS)
def test_the_reader_is_orthonormal_and_the_output_as_it_was(form):
    model, ids = started(form, dtype=torch.float64), batches(1, seed=9)[0]
    readers = [t for key, t in tensors(model).items() if key.endswith(f".{form.down_projection}")]
    assert len(readers) == len(lt.select(build(), "all-linear"))
    for reader in readers:
        assert torch.allclose(reader @ reader.T, torch.eye(6, dtype=reader.dtype), atol=1e-5)
    assert torch.allclose(model(**ids).logits, build(dtype=torch.float64)(**ids).logits, atol=1e-12)


def test_it_captures_more_variance_of_new_rows_than_any_random_basis():
    model = started(lt.LoRA(rank=6))
    held_out = collect(build(), batches(4, seed=9), lt.select(build(), "all-linear"), [PCA(48, 1.0)])
    generator = torch.Generator().manual_seed(0)
    for key, factor in tensors(model).items():
        if not key.endswith(".A"):
            continue
        found = held_out[key.removeprefix("default.").removesuffix(".A")]

        def captured(rows: torch.Tensor, found=found) -> float:
            return float(((rows @ found["pca"].T).square() @ found["variance"].float()).sum())

        others = [torch.linalg.qr(torch.randn(factor.shape[1], 6, generator=generator)).Q.T for _ in range(20)]
        assert captured(factor.detach()) > max(map(captured, others))


def test_sites_with_one_input_start_alike_and_train_apart():
    model = started(lt.LoRA(rank=4))
    held, path = tensors(model), "default.model.layers.1.self_attn.{}_proj.A"
    q, k = (held[path.format(n)] for n in "qk")
    assert torch.equal(q, k) and q.data_ptr() != k.data_ptr()
    with torch.no_grad():
        q += 1
    assert not torch.equal(q, k)


def test_with_its_own_ranks_each_site_reads_its_leading_directions():
    model, form, ranks = build(), lt.LoRA(rank=4), Ranks(2.0)
    sites = lt.select(model, "all-linear")
    stats = measured(model, *ranks.statistics(form), *EVA().statistics(form))
    chosen = ranks.allocate(sites, stats, Budget(form))
    lt.attach(model, form, ranks=chosen, init=EVA(), stats=stats)
    held = tensors(model)
    for path, rank in chosen.items():
        assert rank == 0 or torch.equal(held[f"default.{path}.A"], stats[path]["pca"][:rank])


@pytest.mark.parametrize(
    ("form", "told"),
    [(lt.LoReFT(), "have one: .*dora, .*lora, .*wegeft"), (lt.WeGeFT(share="all"), "share='all'")],
)
def test_forms_that_it_cannot_start_are_refused(form, told):
    with pytest.raises(lt.LuthierError, match=told):
        EVA().statistics(form)
    with pytest.raises(lt.LuthierError, match=told):
        EVA().factors(form, lt.select(build(), "q_proj")[0], {})


def test_places_and_ranks_that_it_cannot_serve_are_refused():
    form = lt.LoRA(rank=4)
    for where in ("embeddings", "params(*.q_proj.weight)"):
        site = lt.select(build(), where)[0]
        with pytest.raises(lt.LuthierError, match="serves linear layers"):
            EVA().factors(form, site, {"pca": torch.eye(4)})
    model = build()
    stats = measured(model, PCA(3))
    with pytest.raises(lt.LuthierError, match=r"needs 4 .* 3 were measured"):
        lt.attach(model, form, init=EVA(), stats=stats)
    with pytest.raises(lt.LuthierError, match=r"eva needs pca of model\.layers\.0"):
        lt.attach(model, form, init=EVA())
    assert "adapters" not in str(model)

"""EVA's ranks: the total is kept, rho bounds them, and peft's own EVA gives the same."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.contracts.ranks import Budget
from luthier.core.contracts.site import Site
from luthier.core.sites.collect import collect
from luthier.methods.ranks.eva import EVA
from luthier.methods.statistics.pca import PCA
from support.calibrated import batches, build, measured

FORM = lt.LoRA(rank=4, alpha=8.0)


def allocated(ranks: EVA, form=FORM, parameters: int | None = None) -> tuple[dict[str, int], list[Site]]:
    model = build()
    sites = lt.select(model, "all-linear")
    return ranks.allocate(sites, measured(model, *ranks.statistics(form)), Budget(form, parameters)), sites


@pytest.mark.parametrize("form", [FORM, lt.WeGeFT(rank=3), lt.DoRA(rank=5)])
@pytest.mark.parametrize("rho", [1.0, 1.3, 2.0, 4.0])
def test_the_total_is_kept_exactly_and_rho_bounds_each_site(rho, form):
    found, sites = allocated(EVA(rho), form)
    assert sum(found.values()) == form.rank * len(sites)
    assert max(found.values()) <= -(-rho * form.rank // 1)
    assert (len(set(found.values())) == 1) == (rho == 1)


def test_no_other_ranks_of_that_total_explain_more():
    model, ranks = build(), EVA(2.0)
    sites = lt.select(model, "all-linear")
    stats = measured(model, *ranks.statistics(FORM))
    found = ranks.allocate(sites, stats, Budget(FORM))
    kept = [stats[path]["variance"][rank - 1] for path, rank in found.items() if rank]
    passed = [stats[path]["variance"][rank] for path, rank in found.items() if rank < 8]
    assert min(kept) >= max(passed)


@pytest.mark.parametrize(("level", "ranks"), [(0.01, [6, 0, 6, 6, 0, 6]), (0.03, [6, 3, 5, 5, 0, 5])])
def test_a_site_whose_input_is_flat_can_get_nothing_and_of_equals_the_first_goes_first(level, ranks):
    sites = lt.select(build(), "q_proj, k_proj")
    steep = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02, 0.015])
    shares = {0: steep, 1: torch.full((8,), level), 2: steep}
    stats = {s.path: {"pca": torch.eye(8, s.d_in), "variance": shares[s.layer]} for s in sites}
    assert list(EVA(2.0).allocate(sites, stats, Budget(FORM)).values()) == ranks


@pytest.mark.parametrize("form", [FORM, lt.WeGeFT(rank=4), lt.DoRA(rank=4)])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0, 1.5])
def test_a_budget_of_trained_numbers_is_spent_and_not_passed(share, form):
    model = build()
    sites = lt.select(model, "all-linear")
    full = Budget(form).spent(sites, {site.path: 4 for site in sites})
    allowed = int(share * full)
    budget = Budget(form, allowed)
    found = EVA(2.0).allocate(sites, measured(model, *EVA(2.0).statistics(form)), budget)
    spent = budget.spent(sites, found)
    assert spent <= allowed
    dearest = max(budget.cost(site, 1) for site in sites)
    assert spent > allowed - dearest


def test_a_budget_that_buys_nothing_or_everything_is_refused():
    with pytest.raises(lt.LuthierError, match="too small"):
        allocated(EVA(), parameters=3)
    with pytest.raises(lt.LuthierError, match="nothing to choose"):
        allocated(EVA(), parameters=10**9)


@pytest.mark.parametrize(
    ("form", "told"),
    [(lt.LoReFT(), "have one: .*lora"), (lt.IA3(), "ia3 has none"), (lt.LoRA(share="type"), "share='type'")],
)
def test_forms_that_it_cannot_serve_are_refused_before_the_pass(form, told):
    with pytest.raises(lt.LuthierError, match=told):
        EVA().statistics(form)


def test_what_was_not_measured_is_told():
    model = build()
    sites = lt.select(model, "q_proj")
    with pytest.raises(lt.LuthierError, match=r"needs the principal components of model\.layers\.0"):
        EVA().allocate(sites, {}, Budget(FORM))
    with pytest.raises(lt.LuthierError, match=r"needs 8 .* 4 were measured"):
        EVA().allocate(sites, measured(model, *EVA(1.0).statistics(FORM)), Budget(FORM))
    with pytest.raises(lt.LuthierError, match=r"rho is 0\.5"):
        EVA(0.5)
    table = lt.select(model, "embeddings")
    with pytest.raises(lt.LuthierError, match="serves linear layers"):
        EVA().allocate(table, {}, Budget(FORM))


def captured(directions: torch.Tensor, exact: dict[str, torch.Tensor]) -> float:
    """Share of the variance inside the span of orthonormal rows."""
    return float(((directions @ exact["pca"].T).square() @ exact["variance"].float()).sum())


@pytest.mark.filterwarnings("ignore:lora with eva initialization", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize(("count", "apart"), [(1, 0), (12, 1)])
def test_ranks_scales_and_directions_are_those_of_peft(count, apart):
    """On one batch all is equal. Over several, peft cuts to rho r directions each time, which moves shares that lie
    close together across the line, and reads the data again until all stands still; so one rank more or less."""
    peft = pytest.importorskip("peft")
    rows, config = batches(count), peft.EvaConfig(rho=2.0, tau=0.9999)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = peft.get_peft_model(
        build(),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights="eva", eva_config=config),
    )
    peft.initialize_lora_eva_weights(theirs, rows, show_progress_bar=False)
    model, ranks = build(), EVA(2.0, tau=1.0)
    sites = lt.select(model, "all-linear")
    stats = collect(model, rows, sites, ranks.statistics(FORM), answers=True)
    exact = collect(model, rows, sites, [PCA(model.config.intermediate_size, 1.0)], answers=True)
    found = ranks.allocate(sites, stats, Budget(FORM))
    for path, rank in found.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        their_rank = layer.r["default"]
        assert abs(rank - their_rank) <= apart
        assert layer.scaling["default"] == pytest.approx(FORM.with_rank(rank).scale)
        directions = layer.lora_A["default"].weight.detach().float()
        common = min(rank, their_rank)
        assert torch.linalg.svdvals(directions[:common] @ stats[path]["pca"][:common].T).min() > 0.99
        assert captured(stats[path]["pca"][:their_rank], exact[path]) > 0.9999 * captured(directions, exact[path])
    assert sum(found.values()) == sum(m.r["default"] for m in theirs.modules() if hasattr(m, "lora_A"))

"""LIFT and LT-SFT: which entries train, what is kept for them, and the adapter that they end in."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier import models
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.methods.updates.lift import LIFT, reduced
from luthier.methods.updates.lt_sft import LTSFT
from luthier.training import Run, Training, train
from support.calibrated import batches
from support.common import copies, full, moments, run
from support.tiny import save_model, sums, write_rows

WHERE = "params(*.layers.*)"


def masks(model, update) -> dict[str, torch.Tensor]:
    """Where the entries of a tensor are chosen, by its name."""
    chosen = update.entries(training_plan(model, 8), 0)
    found = {key: torch.zeros(tensors(model)[key].shape, dtype=torch.bool) for key in chosen}
    for key, index in chosen.items():
        found[key].view(-1)[index] = True
    return found


def largest(w: torch.Tensor, k: int) -> torch.Tensor:
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[w.abs().flatten().topk(k).indices] = True
    return mask.view(w.shape)


def test_lift_s_mask_is_that_of_the_rank_reduced_weight():
    model = full(2, WHERE)
    found = masks(model, LIFT(lora_rank=2, filter_rank=3))
    assert all("proj" in key for key in found) and len(found) == 14
    differing = 0
    for key, mask in found.items():
        w = tensors(model)[key].detach()
        k = min(sum(w.shape) * 2, w.numel())
        u, s, vt = torch.linalg.svd(w)
        low = u[:, :3] @ torch.diag(s[:3]) @ vt[:3]
        assert int(mask.sum()) == k and mask.equal(largest(low, k))
        differing += not mask.equal(largest(w, k))
    assert differing == len(found)


def test_a_filter_of_full_rank_picks_by_magnitude():
    model = full(2, WHERE)
    for key, mask in masks(model, LIFT(lora_rank=2, filter_rank=10**6)).items():
        w = tensors(model)[key].detach()
        assert mask.equal(largest(w, int(mask.sum())))
        assert torch.allclose(reduced(w, min(w.shape) - 1) + last(w), w, atol=1e-10)


def last(w: torch.Tensor) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    return s[-1] * u[:, -1:] @ vt[-1:]


def test_off_mask_nothing_moves_between_choices_and_moments_are_packed():
    model, update = full(2, WHERE), LIFT(lora_rank=1, filter_rank=2, interval=3)
    optimizer = optimiser(model, update, lr=1e-2, steps=9)
    k = sum(sum(p.shape) for key, p in tensors(model).items() if p.dim() == 2)
    for stage in range(3):
        found, before = masks(model, LIFT(lora_rank=1, filter_rank=2)), copies(model)
        run(model, optimizer, 3, first=3 * stage)
        for key, tensor in tensors(model).items():
            moved = tensor != before[key]
            assert not moved.any() if key not in found else moved.equal(found[key])
        assert moments(optimizer) == 2 * k


def test_moments_follow_their_entries():
    model, update = full(2, WHERE), LIFT(lora_rank=1, filter_rank=2, interval=4)
    optimizer = optimiser(model, update, lr=0.1, steps=9)
    key = next(key for key in tensors(model) if "up_proj" in key)

    def held() -> dict[int, float]:
        entries = optimizer.state_dict()["update"]["entries"]
        packed = dict(zip(entries, optimizer.param_groups[0]["params"], strict=False))
        index = entries[key]
        return dict(zip(index.tolist(), optimizer.state[packed[key]]["exp_avg"].tolist(), strict=True))

    run(model, optimizer, 3)
    first = set(optimizer.state_dict()["update"]["entries"][key].tolist())
    model(**batches(1, seed=3)[0]).loss.backward()
    grad = tensors(model)[key].grad
    assert grad is not None
    grad = grad.flatten().clone()
    before = held()
    optimizer.step()
    after = held()
    assert first - set(after) and set(after) - first, "no entry was exchanged"
    assert all(after[i] == 0 for i in set(after) - first)
    for i in first & set(after):
        assert after[i] == pytest.approx(0.9 * before[i] + 0.1 * float(grad[i]), rel=1e-12)


def test_lift_has_no_weight_decay_and_no_factors():
    with pytest.raises(lt.LuthierError, match="no weight decay"):
        optimiser(full(2), LIFT(), lr=1e-3, steps=1, weight_decay=0.1)
    with pytest.raises(lt.LuthierError, match="use full"):
        optimiser(lt.attach(full(2), lt.LoRA(), name="other"), LIFT(), lr=1e-3, steps=1, name="other")
    with pytest.raises(lt.LuthierError, match="is one"):
        optimiser(full(2, "params(*norm.weight)"), LIFT(), lr=1e-3, steps=1)


@pytest.mark.parametrize("density", [0.003, 0.1])
def test_lt_sft_retrains_the_entries_that_moved_most(density):
    model, plain = full(2), full(2)
    start = copies(model)
    update = LTSFT(density=density, search=0.5)
    optimizer = optimiser(model, update, lr=1e-2, steps=10)
    run(model, optimizer, 5)
    run(plain, torch.optim.AdamW(lt.trainable(plain).values(), lr=1e-2, weight_decay=0), 5)
    keys = list(start)
    change = torch.cat([(copies(plain)[key] - start[key]).abs().flatten() for key in keys])
    k = int(density * len(change))
    assert all(t.equal(start[key]) for key, t in copies(model).items()), "it was not reset"
    run(model, optimizer, 5, first=5)
    moved = torch.cat([(copies(model)[key] != start[key]).flatten() for key in keys])
    top = torch.zeros(len(change), dtype=torch.bool)
    top[change.topk(k).indices] = True
    assert int(moved.sum()) <= k and not (moved & ~top).any() and moved.sum() > 0.9 * k
    assert moments(optimizer) == 2 * sum(int(part.sum()) for part in top.split([t.numel() for t in start.values()]))


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("ground")
    return save_model(folder / "llama", "llama"), write_rows(folder / "sums.jsonl", sums(40))


@pytest.mark.parametrize("update", [LIFT(lora_rank=1, filter_rank=2, interval=2), LTSFT(density=0.02)])
def test_the_adapter_is_sparse_and_is_the_trained_model(ground, tmp_path, update):
    settings = Training(steps=6, batch=4, lr=1e-2)
    result = train(
        Run(ground[0], ground[1], lt.Full(), WHERE, str(tmp_path / "run"), training=settings, update=update),
        progress=False,
    )
    spec = json.loads((result.adapter / "adapter.json").read_text())
    assert [part["form"] for part in spec["parts"]] == ["sparse"]
    fresh = models.load(ground[0]).model
    base = {path: p.detach().clone() for path, p in fresh.named_parameters()}
    lt.load(fresh, result.adapter)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, result.model(ids).logits)
    whole = train(
        Run(ground[0], ground[1], lt.Full(), WHERE, str(tmp_path / "whole"), training=settings), progress=False
    )
    assert size(result.adapter) < 0.5 * size(whole.adapter)
    assert 0 < lt.trainable(fresh, count=True) < 0.3 * lt.trainable(whole.model, count=True)
    lt.merge(fresh)
    changed = {path: int((p != base[path]).sum()) for path, p in fresh.named_parameters() if path in base}
    assert 0 < sum(changed.values()) <= lt.trainable(result.model, count=True)
    lt.unmerge(fresh)
    lt.detach(fresh)
    assert all(p.equal(base[path]) for path, p in fresh.named_parameters())


def test_a_head_that_is_new_stays_whole(ground, tmp_path):
    rows = [{"text": row["prompt"], "label": "even" if i % 2 else "odd"} for i, row in enumerate(sums(20))]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = Training(steps=4, batch=4, lr=1e-2)
    update = LIFT(lora_rank=1, filter_rank=2, interval=2)
    where = "params(*.layers.*)"
    result = train(
        Run(ground[0], source, lt.Full(), where, str(tmp_path / "run"), training=settings, update=update),
        progress=False,
    )
    parts = json.loads((result.adapter / "adapter.json").read_text())["parts"]
    assert [part["form"] for part in parts] == ["sparse", "full"] and parts[1]["where"] == "params(score.*)"
    fresh = models.load(ground[0], task="classification", labels=["even", "odd"]).model
    lt.load(fresh, result.adapter)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, result.model(ids).logits)


def size(adapter) -> int:
    return (adapter / "adapter.safetensors").stat().st_size


def test_sparse_adapters_compose_by_adding_up(ground):
    model = models.load(ground[0]).model
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits(order) -> torch.Tensor:
        torch.manual_seed(0)
        changes = {name: 0.1 * torch.randn(3) for name in ("task", "language")}
        for name in order:
            lt.attach(model, lt.Sparse(k=3), "q_proj & layers(0)", name=name)
            with torch.no_grad():
                for key, tensor in tensors(model, name).items():
                    tensor.copy_(torch.tensor([1, 5, 9]) + (name == "task") if key.endswith("index") else changes[name])
        with torch.no_grad():
            found = model(ids).logits
        lt.detach(model)
        return found

    assert torch.allclose(logits(["task", "language"]), logits(["language", "task"]), atol=1e-6)
    assert not torch.allclose(logits(["task"]), logits(["task", "language"]), atol=1e-6)


def test_the_schedule_of_each_phase_is_whole(ground, tmp_path):
    from luthier.training import metrics

    settings = Training(steps=20, batch=4, lr=1e-2, warmup=0.2)
    run_ = Run(
        ground[0], ground[1], lt.Full(), WHERE, str(tmp_path / "run"), training=settings, update=LTSFT(search=0.5)
    )
    train(run_, progress=False)
    rates = [line["lr"] for line in metrics.read(run_.folder) if "lr" in line]
    assert rates[:10] == rates[10:] and rates[0] == 0 and max(rates) == 1e-2

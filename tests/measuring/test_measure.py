"""Measuring, from rows to a report; and training on what was measured, interrupted or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import data, models
from luthier.cli import main
from luthier.core.contracts.ranks import Ranks
from luthier.core.storage.fingerprint import fingerprint
from luthier.measuring import Calibration, cache, calibrate
from luthier.measuring.calibration import batched, sample
from luthier.measuring.measure import measure
from luthier.methods.inits.lora_ga import LoRAGA
from luthier.methods.statistics.gradient import Gradient
from luthier.methods.statistics.moment import Moment
from luthier.methods.statistics.states import States
from luthier.training import Run, Training, train
from luthier.training.command import command
from support.seeing import picture, save_llava, write_digits
from support.tiny import write_rows

MOMENT = Moment()
SMALL = Calibration(samples=24, batch=5)


@dataclass(frozen=True)
class Rising(Ranks):
    """r_i = 1 + i, and nothing for the last block"""

    least = 0

    def statistics(self, form):
        return (States(),)

    def allocate(self, sites, stats, budget):
        assert len(stats["model.layers.0"]["states"]) == SMALL.samples
        last = max(site.layer for site in sites)
        return {site.path: 0 if site.layer == last else 1 + site.layer for site in sites}


def rows(count: int) -> list[dict]:
    return [{"input_ids": [1] * (1 + i * 7 % 11), "row": i} for i in range(count)]


def test_a_sample_is_drawn_by_the_seed_and_batched_by_length():
    drawn = sample(rows(60), SMALL)
    assert len(drawn) == 24 and drawn == sample(rows(60), SMALL) != sample(rows(60), replace(SMALL, seed=1))
    assert len(sample(rows(9), SMALL)) == 9
    batches = list(batched(drawn, SMALL))
    assert sorted(row["row"] for batch in batches for row in batch) == [row["row"] for row in drawn]
    padding = sum(max(len(r["input_ids"]) for r in b) * len(b) for b in batches)
    assert padding - sum(len(row["input_ids"]) for row in drawn) <= 24
    assert [len(b[0]["input_ids"]) for b in batches] != sorted(len(b[0]["input_ids"]) for b in batches)


def pass_(llama, settings=SMALL, data="rows", statistics=(MOMENT,)):
    from luthier import data as luthier_data
    from luthier import models

    loaded = models.load(llama)
    features = [{"input_ids": [1, 5, 6 + i % 9], "attention_mask": [1] * 3, "row": i} for i in range(40)]
    sites, collator = lt.select(loaded.model, "q_proj"), luthier_data.collator_for("causal-lm", loaded.processor)
    return calibrate(loaded.model, features, collator, sites, statistics, settings, data=data)


def test_what_was_measured_is_kept_by_all_that_it_depends_on(llama, monkeypatch):
    first = pass_(llama)
    held = list(cache.folder().glob("*.safetensors"))
    assert len(held) == 1
    with monkeypatch.context() as patch:
        patch.setattr("luthier.core.sites.collect.collect", None)  # a second pass would fail
        again = pass_(llama)
        assert all(torch.equal(again[p][k], t) for p, found in first.items() for k, t in found.items())
        for changed in ({"settings": replace(SMALL, seed=3)}, {"data": "others"}, {"statistics": [States("last")]}):
            with pytest.raises(TypeError):
                pass_(llama, **changed)
        with pytest.raises(TypeError):
            pass_(llama, settings=replace(SMALL, fresh=True))
    held[0].write_bytes(b"damaged")
    assert torch.equal(pass_(llama)["model.layers.0.self_attn.q_proj"]["moment"],
                       first["model.layers.0.self_attn.q_proj"]["moment"])  # fmt: skip


def test_gradients_are_measured_anew_under_another_new_head(bert):
    """Of the same seed the head is the same, and what was measured is read again; inputs depend on no head."""
    from luthier import data as luthier_data
    from luthier import models

    features = [
        {"input_ids": [1, 5, 6 + i % 9], "attention_mask": [1] * 3, "labels": i % 2, "row": i} for i in range(8)
    ]

    def measured(seed: int, statistic):
        torch.manual_seed(seed)
        loaded = models.load(bert, task="classification", labels=["a", "b"])
        assert loaded.new_modules == ["classifier"]
        collator, sites = (
            luthier_data.collator_for("classification", loaded.processor),
            lt.select(loaded.model, "query"),
        )
        found = calibrate(
            loaded.model, features, collator, sites, [statistic], SMALL, data="rows", new=loaded.new_modules
        )
        return next(iter(found[sites[0].path].values()))

    first = measured(0, Gradient())
    assert torch.equal(measured(0, Gradient()), first) and len(list(cache.folder().glob("*.safetensors"))) == 1
    assert not torch.equal(measured(1, Gradient()), first)
    measured(0, MOMENT)
    measured(1, MOMENT)
    assert len(list(cache.folder().glob("*.safetensors"))) == 3


def test_a_run_measures_gradients_under_its_own_head(bert, tmp_path):
    rows = [{"text": "ab" * i, "label": "xy"[i % 2]} for i in range(1, 9)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    for seed in (0, 1):
        training = Training(steps=1, batch=4, seed=seed, eval_fraction=0)
        train(
            Run(bert, source, lt.LoRA(rank=2), out=str(tmp_path / f"{seed}"), training=training, init=LoRAGA()),
            progress=False,
        )
    assert len(list(cache.folder().glob("*.safetensors"))) == 2


def test_the_report_is_written_and_says_what_attach_takes(llama, additions, tmp_path, drawn):
    found = measure(llama, additions, calibration=SMALL, progress=False, crosscheck=False)
    assert (found.samples, found.rows) == (24, 40)
    folder = found.save(tmp_path / "out")
    stored = json.loads((folder / "measured.json").read_text())
    assert stored["ranks"] == found.ranks and stored["parameters"] == found.parameters
    assert set(stored["boundaries"]) == {f"model.layers.{i}" for i in range(4)}
    assert (folder / "measured.png").stat().st_size > 5000
    found.save(folder)  # over an earlier one
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(lt.LuthierError, match="something else than a measurement"):
        found.save(tmp_path / "other")
    from luthier import models

    model = models.load(llama).model
    lt.attach(model, found.allocation.form, ranks=found.allocation.ranks)
    assert lt.trainable(model, count=True) == found.parameters


def test_the_command_prints_tables_and_json(llama, additions, tmp_path, capsys):
    words = ["measure", llama, additions, "--samples", "24", "--no-crosscheck"]
    main([*words, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "model.layers.1" in printed and "resampled" in printed and "lora at 21 sites" in printed
    main([*words, "--method", "wegeft", "--ranks", "uniform", "--budget", "20%", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == "uniform" and found["spent"] <= found["budget"]


def test_training_uses_measured_ranks_and_the_spec_tells(llama, additions, tmp_path):
    run = Run(llama, additions, lt.LoRA(rank=4), out=str(tmp_path / "run"), ranks=Rising(), calibration=SMALL,
              training=Training(steps=4, batch=4, save_every=2, eval_fraction=0.1, lr=1e-2))  # fmt: skip
    result = train(run, progress=False)
    spec = json.loads((result.adapter / "adapter.json").read_text())
    ranks = spec["parts"][0]["ranks"]
    assert set(ranks.values()) == {0, 1, 2} and spec["measured"]["ranks"]["by"] == "rising"
    assert len(spec["parts"][0]["sites"]) == sum(rank > 0 for rank in ranks.values())
    assert "| ranks | rising: 0 to 2" in (result.folder / "README.md").read_text()
    again = lt.load(lt.model(llama).model, result.adapter)
    ids = {"input_ids": torch.arange(4, 10)[None]}
    assert torch.equal(again(**ids).logits, result.model(**ids).logits)


def test_a_resumed_run_keeps_its_ranks_without_measuring(llama, additions, tmp_path, monkeypatch):
    training = Training(steps=4, batch=4, save_every=2, keep=9, eval_fraction=0.1, lr=1e-2)
    run = Run(llama, additions, lt.LoRA(rank=4), out=str(tmp_path / "run"), ranks=lt.GeLoRA(), calibration=SMALL,
              training=training)  # fmt: skip
    result = train(run, progress=False)
    expected = load_file(result.adapter / "adapter.safetensors")
    import shutil

    shutil.rmtree(run.folder / "checkpoints/step-4")
    shutil.rmtree(cache.folder())
    monkeypatch.setattr("luthier.core.sites.collect.collect", None)
    again = train(run, progress=False, resume=True)
    held = load_file(again.adapter / "adapter.safetensors")
    assert held.keys() == expected.keys() and all(torch.equal(held[k], expected[k]) for k in held)


def test_a_run_with_ranks_travels_through_json_and_the_shell(llama, additions):
    from luthier.cli.parse import parse

    run = Run(llama, additions, lt.LoRA(rank=2), ranks=lt.GeLoRA(pool="last"), budget="0.5%",
              calibration=Calibration(samples=99, seed=5, batch=2))  # fmt: skip
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    import shlex

    parsed = parse(shlex.split(command(run))[1:])
    assert parsed is not None and parsed[0].resolved(parsed[1]) == run


def test_a_budget_is_refused_before_the_weights_are_read(llama, additions, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", None)
    for budget, told in (("10", "too small"), ("lots", "not understood")):
        with pytest.raises(lt.LuthierError, match=told):
            train(model=llama, data=additions, form=lt.LoRA(), out=str(tmp_path / "run"), budget=budget)
    with pytest.raises(lt.LuthierError, match="ia3 has no rank"):
        train(model=llama, data=additions, form=lt.IA3(), out=str(tmp_path / "run"), budget="1%")


def test_measuring_leaves_the_base_as_it_was(llama):
    model = lt.model(llama).model
    before = fingerprint(model), {k: v.clone() for k, v in model.state_dict().items()}
    pass_(llama)
    assert fingerprint(model) == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())


def test_a_budget_decides_the_rank_that_starts_and_allocations_count_from():
    """EVA's components are asked for at the rank that the budget pays for, not at the form's own."""
    from luthier.core.contracts.ranks import Budget
    from luthier.measuring.allocation import resolve_targets
    from luthier.methods.statistics.pca import PCA
    from support.architectures import ARCHITECTURES

    model, form = ARCHITECTURES["llama"].build(), lt.LoRA(rank=2, alpha=6.0)
    sites = lt.select(model, "all-linear")
    worth = Budget(form).spent(sites, {site.path: 5 for site in sites})
    for ranks in (None, lt.ranks.EVA(2.0), lt.GeLoRA()):
        _, _, rank_budget = resolve_targets(model, form, None, ranks, str(worth + 1))
        assert rank_budget.form == lt.LoRA(rank=5, alpha=15.0)
    (components,) = lt.ranks.EVA(2.0).statistics(rank_budget.form)
    assert components == PCA(10) and lt.inits.EVA().statistics(rank_budget.form) == (PCA(5),)
    assert resolve_targets(model, form, None, None, None)[2].form is form


def test_a_picture_that_changes_under_its_name_is_measured_again(tmp_path):
    loaded = models.load(str(save_llava(tmp_path / "llava")))
    sites = [each for each in lt.select(loaded.model, "q_proj") if "vision" not in each.path][-1:]
    found = []
    for shown in (0, 0, 7):
        file = write_digits(tmp_path / "rows", 4)
        picture(shown).save(file.parent / "0.png")
        examples = data.load(file)
        features = data.encode_all(examples, loaded.processor, max_length=64, pictures=True)
        collator = data.collator_for("causal-lm", loaded.processor)
        told = calibrate(loaded.model, features, collator, sites, [MOMENT], SMALL, data=examples.fingerprint)
        found.append(told[sites[0].path]["moment"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert len(list(cache.folder().glob("*.safetensors"))) == 2

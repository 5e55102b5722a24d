"""Intervals of adapters that are distributions: they come out of predict, and a folder says whether it has one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import models
from luthier.cli import main
from luthier.core.adapters.control import tensors
from luthier.core.storage.spread import SPREAD, save_spread
from luthier.evaluating.drawn import Drawn, drawn_of
from luthier.training.meta import MetaRun, meta_learn
from support.tiny import sums, write_rows


@pytest.fixture(scope="module")
def learned(llama, tmp_path_factory):
    """An adapter of ABMLL, and its domains."""
    folder = tmp_path_factory.mktemp("abmll")
    files = [write_rows(folder / f"{seed}.jsonl", sums(6, seed)) for seed in range(3)]
    method = lt.metas.ABMLL(inner_lr=0.5, scale=0.05)
    spec = MetaRun(llama, tuple(files[:2]), tuple(files[2:]), method, lt.LoRA(rank=2), str(folder / "run"), steps=3,
                   episodes=1, baseline=False, lr=0.05)  # fmt: skip
    return meta_learn(spec, progress=False)


def test_the_scales_of_the_last_step_lie_beside_the_adapter(learned):
    spread, adapter = load_file(learned.adapter / SPREAD), load_file(learned.adapter / "adapter.safetensors")
    assert spread.keys() == adapter.keys() and all(spread[key].shape == adapter[key].shape for key in spread)
    assert any(not torch.allclose(t, torch.full_like(t, 0.05)) for t in spread.values())
    assert all((t > 0).all() for t in spread.values())


def test_an_interval_holds_its_mean_and_the_adapter_keeps_its_bits(learned, llama):
    loaded = models.load(llama)
    lt.load(loaded.model, learned.adapter)
    before = {key: p.detach().clone() for key, p in tensors(loaded.model).items()}
    drawn = drawn_of(learned.adapter, loaded.model, 6)
    told = lt.predict(loaded.model, loaded.processor, sums(5, 9), drawn=drawn, max_new_tokens=4)
    again = lt.predict(loaded.model, loaded.processor, sums(5, 9), drawn=drawn, max_new_tokens=4)
    assert told.rows == again.rows
    for row in told.rows:
        assert row["probability_low"] < row["probability"] < row["probability_high"]
    assert all(torch.equal(p, before[key]) for key, p in tensors(loaded.model).items())


def test_without_a_width_the_interval_is_the_probability(learned, llama):
    loaded = models.load(llama)
    lt.load(loaded.model, learned.adapter)
    none = Drawn({key: torch.zeros_like(p) for key, p in tensors(loaded.model).items()}, 3)
    plain = lt.predict(loaded.model, loaded.processor, sums(5, 9), max_new_tokens=4).rows
    for row, alone in zip(
        lt.predict(loaded.model, loaded.processor, sums(5, 9), drawn=none, max_new_tokens=4).rows, plain, strict=True
    ):
        assert row["prediction"] == alone["prediction"] and "probability_low" not in alone
        for name in ("probability_low", "probability", "probability_high"):
            assert row[name] == pytest.approx(alone["probability"], rel=1e-12)


def test_the_command_gives_intervals_of_itself_and_refuses_them_of_one_adapter(learned, llama, capsys, tmp_path):
    file, out = write_rows(tmp_path / "rows.jsonl", sums(4, 9)), tmp_path / "said.jsonl"
    words = ["predict", llama, file, "--adapter", str(learned.folder), "--max-new-tokens", "3", "--out"]
    assert main([*words, str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["probability_low"] <= row["probability"] <= row["probability_high"] for row in rows)
    assert main([*words, str(tmp_path / "none.jsonl"), "--samples", "0"]) == 0
    assert "probability_low" not in (tmp_path / "none.jsonl").read_text()
    for wrong, told in ((["1"], "at least 2"), (["4", "--merged"], "not merged")):
        assert main([*words, str(tmp_path / "wrong.jsonl"), "--samples", *wrong]) != 0
        assert told in capsys.readouterr().err
    plain = models.load(llama)
    lt.attach(plain.model, lt.LoRA(rank=2))
    lt.save(plain.model, tmp_path / "plain")
    words[words.index("--adapter") + 1] = str(tmp_path / "plain")
    assert main([*words, str(tmp_path / "two.jsonl"), "--samples", "4"]) != 0
    assert "not a distribution" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "two.jsonl")]) == 0


def test_a_spread_of_another_adapter_or_of_no_adapter_is_refused(llama, tmp_path):
    loaded = models.load(llama)
    lt.attach(loaded.model, lt.LoRA(rank=2), name="own")
    width = {key: torch.ones_like(p) for key, p in tensors(loaded.model).items()}
    key = next(iter(width))
    lt.save(loaded.model, tmp_path / "a")
    for wrong, told in (({key: -width[key]}, "no standard deviations"), ({key: width[key][:1]}, "has not")):
        save_spread(tmp_path / "a", "own", wrong)
        with pytest.raises(lt.LuthierError, match=told):
            drawn_of(tmp_path / "a", loaded.model)
    save_spread(tmp_path / "a", "own", width)
    assert drawn_of(tmp_path / "a", loaded.model).count == 16
    with torch.no_grad():
        tensors(loaded.model)[key].add_(1.0)
    lt.save(loaded.model, tmp_path / "a")
    with pytest.raises(lt.LuthierError, match="of another adapter"):
        drawn_of(tmp_path / "a", loaded.model)
    (tmp_path / "a" / SPREAD).write_bytes(b"no tensors")
    with pytest.raises(lt.LuthierError, match="cannot be read"):
        drawn_of(tmp_path / "a", loaded.model)

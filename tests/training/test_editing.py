"""Editing: schedules, what is learned and what stays, exact resume, and facts that are none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import models
from luthier.core.contracts.component import find, names
from luthier.core.contracts.editing import Editing
from luthier.training.editing import Edit, edit
from luthier.training.editing.facts import encoded, padded, read_facts
from luthier.training.editing.loss import fact_losses
from luthier.training.editing.place import candidates
from luthier.training.editing.write import Writer
from support.tiny import tokenizer, write_rows

WHERE = "params(model.layers.1.mlp.down_proj.weight)"


def rows(count: int) -> list[dict]:
    return [
        {"prompt": f"fact {c} is", "target": f"{(7 * i) % 10}", "rephrased": f"now {c} is", "neighbours": [f"cat {c}"]}
        for i, c in enumerate("abcdefgh"[:count])
    ]


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("facts") / "facts.jsonl", rows(6))


def spec_of(llama: str, facts: str, out: Path, by: str = "locft_bf", **more) -> Edit:
    settings = {"lr": 3e-2, **more.pop("settings", {})}
    editing = find("editings", by, Editing).from_dict(settings)
    return replace(Edit(llama, facts, editing, lt.Full(), out=str(out), where=WHERE), **more)


# --- schedules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("editings"))
def test_a_schedule_states_its_equation_and_meets_every_fact(name):
    cls = find("editings", name, Editing)
    assert len(cls.equation()) > 5 and cls.paper and cls.name() == name
    seen = {fact for batches in cls().rounds(7, 0) for places in batches for fact in places}
    assert seen == set(range(7))
    with pytest.raises(lt.LuthierError, match="lr is 0"):
        cls.from_dict({"lr": 0.0})


def test_breadth_first_reshuffles_every_epoch_and_ends_by_its_loss():
    method = lt.editings.LocFTBF(batch=3, epochs=4)
    epochs = list(method.rounds(8, 0))
    assert [len(places) for places in epochs[0]] == [3, 3, 2] and len(epochs) == 4
    orders = [tuple(fact for places in batches for fact in places) for batches in epochs]
    assert len(set(orders)) == 4 and orders == [tuple(f for p in b for f in p) for b in method.rounds(8, 0)]
    assert method.skips(0.009) and not method.skips(0.011) and method.over(0.009) and not method.over(0.011)


def test_depth_first_goes_through_the_facts_once():
    method = lt.editings.DepthFirst(steps=5)
    assert [batches[0] for batches in method.rounds(3, 0)] == [[0], [1], [2]]
    assert method.round_over(0.009) and not method.round_over(0.02) and not method.over(0.0)


# --- the loss ---------------------------------------------------------------------------------------


def test_the_loss_is_of_the_target_and_eos_alone_by_fact_and_then_by_batch(llama):
    """In float64, against log-softmax by hand; a padded fact is the fact alone."""
    model, words = models.load(llama, dtype="float64").model, tokenizer()
    asked = [("fact 1 is", "7"), ("a longer prompt is", "12345")]
    made = [encoded(prompt, target, words, end=True) for prompt, target in asked]
    losses = fact_losses(model, padded(made, 0))
    for (prompt, target), (ids, labels), loss in zip(asked, made, losses, strict=True):
        assert words.decode([i for i in labels if i >= 0]) == f" {target}</s>"
        assert ids[: labels.count(-100)] == words(prompt)["input_ids"]
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = -sum(log_p[t - 1, ids[t]] for t in range(labels.count(-100), len(ids))) / (len(target) + 2)
        assert float(loss) == pytest.approx(float(wanted), rel=1e-10)


def test_a_step_in_small_parts_is_the_step_in_one_and_a_known_batch_makes_none(llama, facts):
    told, after = read_facts(facts), []
    for size in (6, 2):
        loaded = models.load(llama)
        lt.attach(loaded.model, lt.Full(), WHERE)
        writer = Writer(loaded.model, loaded.processor, told, lt.editings.LocFTBF(lr=1e-3), size)
        writer.step(range(6))
        after.append(next(iter(writer.params.values())).detach().clone())
    torch.testing.assert_close(after[0], after[1], rtol=1e-4, atol=1e-5)
    writer.editing = lt.editings.LocFTBF(skip=1e9)
    writer.step(range(6))
    assert torch.equal(after[1], next(iter(writer.params.values()))) and writer.progress.steps == 1


# --- an edit ----------------------------------------------------------------------------------------


def test_an_edit_learns_leaves_all_else_bit_equal_and_is_taken_off(llama, facts, tmp_path):
    texts = write_rows(tmp_path / "held.jsonl", [{"text": "some held text"}])
    learning = {"lr": 5e-2, "epochs": 100}
    done = edit(spec_of(llama, facts, tmp_path / "run", held=texts, settings=learning, limit=3), progress=False)
    assert done.figures["reliability"]["after"] > 0.9 > done.figures["reliability"]["before"]
    assert {"generalisation", "locality", "held text loss"} <= done.figures.keys() and done.trainable == 32 * 48
    assert done.figures["locality"]["before"] == 1
    before = models.load(llama).model.state_dict()
    held = {key: t for key, t in done.model.state_dict().items() if ".adapters." not in key}
    assert all(torch.equal(held[key], t) for key, t in before.items())
    again = models.load(llama).model
    lt.merge(lt.load(again, done.adapter))
    moved = [key for key, t in again.state_dict().items() if key in before and not torch.equal(t, before[key])]
    assert moved == ["model.layers.1.mlp.down_proj.weight"]
    lt.unmerge(again)
    lt.detach(again)
    assert all(torch.equal(t, before[key]) for key, t in again.state_dict().items())
    told = json.loads((tmp_path / "run" / "edited.json").read_text())
    assert told["losses"][-1] < 0.5 * told["losses"][0] and told["rounds"] == len(told["losses"])


class Killed(BaseException):
    """Instead of a signal."""


@pytest.mark.parametrize("by", names("editings"))
def test_a_killed_edit_goes_on_exactly(llama, facts, tmp_path, monkeypatch, by):
    settings = {"batch": 4, "epochs": 4} if by == "locft_bf" else {"steps": 3}
    monkeypatch.setattr("luthier.training.editing.write.SAVED", 2)
    whole = edit(spec_of(llama, facts, tmp_path / "whole", by, settings=settings), progress=False)
    true, count = Writer.step, [0]

    def dying(self, places):
        count[0] += 1
        if count[0] == 6:
            raise Killed
        return true(self, places)

    monkeypatch.setattr(Writer, "step", dying)
    spec = spec_of(llama, facts, tmp_path / "killed", by, settings=settings)
    with pytest.raises(Killed):
        edit(spec, progress=False)
    done = edit(spec, resume=True, progress=False)
    left, right = (load_file(each.adapter / "adapter.safetensors") for each in (whole, done))
    assert all(torch.equal(left[key], right[key]) for key in left) and whole.figures == done.figures
    assert (whole.rounds, whole.steps) == (done.rounds, done.steps)
    with pytest.raises(lt.LuthierError, match="holds another edit"):
        edit(replace(spec, seed=1), resume=True, progress=False)


def test_the_place_is_searched_over_blocks_and_matrices(llama, facts, tmp_path):
    loaded = models.load(llama)
    found = candidates(loaded, 1)
    assert len(found) == 7 and len(candidates(loaded, 9)) > 7
    spec = spec_of(llama, facts, tmp_path / "run", where=None, search_layers=1, search_facts=2, settings={"epochs": 2})
    done = edit(spec, progress=False)
    search = json.loads((tmp_path / "run" / "edit.json").read_text())["search"]
    assert done.where == search["where"] in found and len(search["tried"]) == 7
    assert all(0 <= each["score"] <= 1 and "locality" in each for each in search["tried"])
    assert max(each["score"] for each in search["tried"]) == next(
        each["score"] for each in search["tried"] if each["where"] == done.where
    )


def test_what_is_no_fact_is_told_before_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    bad = [
        ({"prompt": "x is 7", "target": "7"}, "already holds the target"),
        ({"prompt": "in new york is", "target": "New York."}, "already holds the target"),
        ({"prompt": "x is", "target": "7", "rephrased": ["now x", "7, x is"]}, "a rephrased prompt already holds"),
        ({"prompt": "x is", "target": "7", "neighbours": ["x is", "x is"]}, "is the prompt of row 2"),
        ({"prompt": " ", "target": "7"}, "no prompt"),
        ({"prompt": "x is", "target": ""}, "no target"),
        ({"prompt": "x is", "target": "7", "rephrased": [1]}, "rephrased is"),
    ]
    for row, said in bad:
        file = write_rows(tmp_path / "bad.jsonl", [rows(1)[0], row])
        with pytest.raises(lt.LuthierError, match=f"1 of 2 rows.*\n.*row 2: .*{said}"):
            edit(spec_of("nowhere", file, tmp_path / "run"), progress=False)
    two = write_rows(tmp_path / "two.jsonl", [{"prompt": "x", "target": "1"}, {"prompt": "x", "target": "2"}])
    with pytest.raises(lt.LuthierError, match="row 1 has the same prompt"):
        edit(spec_of("nowhere", two, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists() and math.isfinite(1.0)


# --- the blocks before the place ---------------------------------------------------------------------


def test_a_step_that_starts_at_the_place_is_the_step_through_all_blocks(llama, facts):
    """Also of facts of other lengths than one another, as far as float64 tells."""
    told = [*read_facts(facts), replace(read_facts(facts)[0], prompt="a much longer prompt about a cat is")]
    moved = []
    for kept in (True, False):
        loaded = models.load(llama, dtype="float64")
        lt.attach(loaded.model, lt.Full(), WHERE)
        writer = Writer(loaded.model, loaded.processor, told, lt.editings.LocFTBF(lr=1e-3), 4)
        assert writer.prefix is not None
        writer.prefix = writer.prefix if kept else None
        losses = [writer.step(range(7)) for _ in range(3)]
        moved.append((losses, next(iter(writer.params.values())).detach().clone()))
        assert all("forward" not in block.__dict__ for block in loaded.model.model.layers)
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-9)
    torch.testing.assert_close(moved[0][1], moved[1][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("where", ["params(model.layers.0.mlp.down_proj.weight)", "params(model.embed_tokens.weight)"])
def test_nothing_is_kept_where_the_first_block_or_what_is_outside_is_trained(llama, facts, where):
    loaded = models.load(llama)
    lt.attach(loaded.model, lt.Full(), where)
    assert Writer(loaded.model, loaded.processor, read_facts(facts), lt.editings.LocFTBF(), 4).prefix is None


def test_blocks_that_hand_on_more_than_states_are_gone_through(llama, facts, monkeypatch):
    """Whatever a model's blocks do beside their states, the losses say whether it is the same."""
    loaded = models.load(llama)
    lt.attach(loaded.model, lt.Full(), WHERE)
    monkeypatch.setattr("luthier.training.editing.prefix.fact_losses", lambda model, batch: torch.rand(2))
    assert Writer(loaded.model, loaded.processor, read_facts(facts), lt.editings.LocFTBF(), 4).prefix is None

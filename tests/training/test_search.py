"""The search over layers and modules: the tree, a planted range, and runs that go on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import luthier as lt
from luthier.training import Run, Training
from luthier.training.search import search
from luthier.training.search.tree import Node, explore, halves
from support.tiny import save_model, sums, write_rows


def test_halves_are_lower_middle_and_upper_until_they_are_too_short():
    assert [(n.first, n.last) for n in halves(Node("m", 0, 11), 3)] == [(0, 5), (3, 8), (6, 11)]
    assert [(n.first, n.last) for n in halves(Node("m", 6, 11), 3)] == [(6, 8), (7, 9), (9, 11)]
    assert halves(Node("m", 6, 8), 3) == [] and halves(Node("m", 4, 4), 1) == []


@pytest.mark.parametrize("planted", [(9, 11), (0, 2), (3, 5)])
def test_a_planted_range_is_found_within_the_budget(planted):
    def score(node: Node) -> float:
        inside = set(range(node.first, node.last + 1)) & set(range(planted[0], planted[1] + 1))
        reached = len(inside) if node.modules == "ffn" else 0
        return 1 - reached / 3 + 0.01 * (node.last - node.first)

    found = list(explore(["attention", "ffn"], 12, 3, 8, score))
    assert len(found) == 8 and len({node.name for node, _ in found}) == 8
    best = min(found, key=lambda each: each[1])[0]
    assert (best.modules, best.first, best.last) == ("ffn", *planted)
    assert [node.name for node, _ in explore(["a"], 12, 3, 2, score)] == ["a-0-11", "a-0-5"]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    base, rows = save_model(folder / "llama", "llama"), write_rows(folder / "sums.jsonl", sums(24))
    settings = Training(steps=2, batch=4, lr=1e-2, eval_fraction=0.2, save_every=2)
    return Run(base, rows, lt.LoRA(rank=2), None, str(folder / "out"), training=settings)


def test_nodes_are_normal_runs_and_a_search_goes_on(run_of, tmp_path, monkeypatch, drawn):
    run, kinds = replace(run_of, out=str(tmp_path / "out")), {"ffn": "up_proj, down_proj"}
    first = search(run, kinds, budget=1, progress=False)
    ((node, loss),) = first.nodes
    where = f"(up_proj, down_proj) & layers(0, {first.depth - 1})"
    alone = lt.train(replace(run, where=where, out=str(tmp_path / "alone")), progress=False)
    assert alone.eval_loss == loss and node.name == f"ffn-0-{first.depth - 1}"
    made = []
    import luthier.training.run as module

    train = module.train
    monkeypatch.setattr(module, "train", lambda run, **kw: made.append(run.out) or train(run, **kw))
    second = search(run, kinds, budget=2, progress=False)
    assert len(made) == 1 and second.nodes[0] == first.nodes[0] and len(second.nodes) == 2
    assert search(run, kinds, budget=2, progress=False) == second and len(made) == 1
    held = json.loads((tmp_path / "out" / "search.json").read_text())
    assert held["found"] == second.to_dict() and (tmp_path / "out" / "search.png").stat().st_size > 2000
    with pytest.raises(lt.LuthierError, match="another run or space"):
        search(run, {"ffn": "up_proj"}, progress=False)


def test_a_space_that_the_model_lacks_is_told_before_anything_is_trained(run_of, tmp_path):
    run = replace(run_of, out=str(tmp_path / "out"))
    for kinds, settings, text in (
        ({"x": "no_such_layer"}, {}, "modules 'x': .*matches nothing"),
        ({"x": "lm_head"}, {}, "modules 'x'"),
        ({"x": "output(mlp)"}, {}, "acts on affine"),
        ({"x": "up_proj"}, {"budget": 0}, "at least 1"),
        ({"x": "up_proj"}, {"least": 1.5}, "at most 1"),
        ({}, {}, "at least one kind"),
    ):
        with pytest.raises(lt.LuthierError, match=text):
            search(run, kinds, progress=False, **settings)
    assert not (tmp_path / "out").exists()


def test_the_command_reads_kinds():
    from luthier.cli.commands.search import kinds

    assert kinds("ffn=params(*mlp*); a=q_proj,v_proj") == {"ffn": "params(*mlp*)", "a": "q_proj,v_proj"}
    for text in ("ffn", "a=", "a=q_proj;a=v_proj", "a b=q_proj"):
        with pytest.raises(lt.LuthierError, match="not understood"):
            kinds(text)

"""Chameleon: matching as its equation, the support as a set, biases of other tasks, unseen masks, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.meta import MaskMeta, Shots
from luthier.methods.metas._matching import Matcher, Matching
from luthier.training.adam_state import AdamState
from luthier.training.meta import MetaRun, meta_learn
from luthier.training.meta.levels import levels_of
from luthier.training.meta.masks import _pair

SIDE = 32


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=SIDE, patch_size=4
    )
    tf.ViTModel(config).save_pretrained(folder)
    tf.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


KINDS = {
    "shape": lambda shape, other: shape,
    "other": lambda shape, other: other,
    "outside": lambda shape, other: ~(shape | other),
    "both": lambda shape, other: shape | other,
    "background": lambda shape, other: ~shape,
}


def drawn(folder: Path, count: int = 14) -> dict[str, str]:
    """Scenes of a red and a green square, and the rows of each kind of mask of them."""
    draw = np.random.default_rng(0)
    rows: dict[str, list[str]] = {name: [] for name in KINDS}
    for i in range(count):
        masks = []
        for _ in range(2):
            top, left = draw.integers(2, 20, 2)
            mask = np.zeros((SIDE, SIDE), bool)
            mask[top : top + 10, left : left + 10] = True
            masks.append(mask)
        shape, other = masks[0], masks[1] & ~masks[0]
        picture = np.full((SIDE, SIDE, 3), 40, np.uint8)
        picture[shape], picture[other] = (230, 30, 30), (30, 230, 30)
        Image.fromarray(picture).save(folder / f"{i}.png")
        for name, kind in KINDS.items():
            Image.fromarray((kind(shape, other) * 255).astype(np.uint8)).save(folder / f"{i}-{name}.png")
            rows[name].append(json.dumps({"image": f"{i}.png", "mask": f"{i}-{name}.png"}))
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {name: str(folder / f"{name}.jsonl") for name in KINDS}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, str]:
    return drawn(tmp_path_factory.mktemp("masks"))


def spec_of(vit: str, kinds: dict[str, str], out: Path, **more) -> MetaRun:
    meta = lt.metas.Chameleon(grid=8, dim=32, heads=2, inner_steps=3)
    given = {"steps": 4, "shots": 3, "asked": 3, "together": 2, "episodes": 2, "side": SIDE, "baseline": False, **more}
    learned = tuple(kinds[name] for name in ("shape", "other", "outside"))
    return MetaRun(vit, learned, (kinds["both"],), meta, lt.BitFit(), str(out), **given)


def shots(k: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    levels = [torch.randn(k, 16, d, generator=draw, dtype=torch.float64) for d in (6, 8, 8, 10)]
    return levels, (torch.rand(k, 16, 16, generator=draw) > 0.5).double()


def matcher() -> Matcher:
    torch.manual_seed(0)
    return Matcher((6, 8, 8, 10), 16, 4, 8, 2, 0.05).double()


def test_the_order_of_the_support_changes_nothing():
    net = matcher()
    (asked, _), (shown, masks) = shots(2, 1), shots(5, 2)
    order = torch.tensor([3, 0, 4, 2, 1])
    first = net(asked, shown, masks)
    again = net(asked, [each[order] for each in shown], masks[order])
    torch.testing.assert_close(first, again, rtol=1e-11, atol=1e-11)
    assert (net(asked, shown, masks[order]) - first).abs().max() > 1e-3  # the masks of other pictures do
    assert first.shape == (2, 16, 16)


def test_asked_pictures_are_predicted_each_alone():
    net = matcher()
    (asked, _), (shown, masks) = shots(3, 1), shots(2, 2)
    alone = torch.cat([net([each[i : i + 1] for each in asked], shown, masks) for i in range(3)])
    torch.testing.assert_close(net(asked, shown, masks), alone, rtol=1e-11, atol=1e-11)


def test_matching_is_its_equation():
    """softmax(q kᵀ / √d) v by hand over the tokens of all shots at once, head by head."""
    torch.manual_seed(0)
    match = Matching(8, 2).double()
    asked, shown, labels = (torch.randn(k, 5, 8, dtype=torch.float64) for k in (1, 3, 3))
    q = match.before(asked[0]) @ match.q.weight.T
    k = match.before(shown.reshape(15, 8)) @ match.k.weight.T
    v = labels.reshape(15, 8) @ match.v.weight.T
    heads = [(q[:, s] @ k[:, s].T / 4**0.5).softmax(-1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
    out = match.behind(torch.cat(heads, -1))
    wanted = out + torch.nn.functional.gelu(out @ match.o.weight.T)
    torch.testing.assert_close(match(asked, shown, labels)[0], wanted, rtol=1e-12, atol=1e-12)


def test_levels_are_mixed_by_their_weights():
    net = matcher()
    levels, _ = shots(2, 3)
    held = [net.norm(inlet(each)) for inlet, each in zip(net.inlets, levels, strict=True)]
    torch.testing.assert_close(net.mixed(levels)[2], sum(held) / 4)  # α = 0
    with torch.no_grad():
        net.alpha[1, 3] = 0.1
    weights = torch.tensor([0.0, 0.0, 0.0, 0.1 / 0.05], dtype=torch.float64).softmax(-1)
    wanted = sum(float(w) * each for w, each in zip(weights, held, strict=True))
    torch.testing.assert_close(net.mixed(levels)[1], wanted)


def test_four_levels_are_quarters_of_equal_states_and_the_last_of_each_size():
    same = [torch.full((1, 17, 4), float(i)) for i in range(9)]
    assert [float(each[0, 0, 0]) for each in levels_of(same, 4)] == [2, 4, 6, 8]
    sizes = [16, 16, 8, 8, 4, 2, 2]
    shrunk = [torch.full((1, s, s, 3), float(i)) for i, s in enumerate([16, *sizes])]
    found = levels_of(shrunk, 4)
    assert [float(each[0, 0, 0]) for each in found] == [2, 4, 5, 7] and {each.shape for each in found} == {(1, 16, 3)}


def test_only_biases_the_levels_weights_and_the_norm_before_matching_adapt():
    names = (
        "default.a.delta",
        MaskMeta.matcher + "alpha",
        MaskMeta.matcher + "norm.weight",
        MaskMeta.matcher + "norm.bias",
    )
    params = {key: torch.ones(3, dtype=torch.float64) for key in (*names, MaskMeta.matcher + "decoder.head.weight")}
    support = Shots(torch.zeros(4, 3, 2, 2), torch.zeros(4, 2, 2))
    asked = []

    def loss(now, episode):
        asked.append([len(each) for each in episode])
        return sum((p - 3).square().sum() for p in now.values())

    method = lt.metas.Chameleon(inner_lr=0.1, inner_steps=2)
    found = method.adapt(loss, params, support, torch.Generator())
    moved = {key for key in params if not torch.equal(found[key], params[key])}
    assert moved == set(names) and asked == [[2, 2]] * 2
    assert all(torch.equal(p, torch.ones(3, dtype=torch.float64)) for p in params.values())
    torch.testing.assert_close(
        found[names[0]], torch.full((3,), 1.2, dtype=torch.float64), rtol=0, atol=1e-2
    )  # by Adam
    still = lt.metas.Chameleon(inner_lr=0.0).adapt(loss, params, support, torch.Generator())
    assert all(torch.equal(still[key], params[key]) for key in params)


def test_biases_of_tasks_that_a_step_does_not_draw_stay_bit_for_bit(vit, kinds, tmp_path, monkeypatch):
    """At every step exactly the drawn kinds move, also once Adam has moments of the others."""
    seen, true = [], AdamState.step

    def watched(self):
        before = {key: p.detach().clone() for key, p in self.params.items()}
        true(self)
        moved = {key for key, p in self.params.items() if not torch.equal(p, before[key])}
        seen.append(({key.split("/")[1] for key in moved if key.startswith("tasks/")}, moved))

    monkeypatch.setattr(AdamState, "step", watched)
    done = meta_learn(spec_of(vit, kinds, tmp_path / "run", together=1, steps=6), progress=False)
    assert all(len(drawn) == 1 for drawn, _ in seen) and len(set.union(*(drawn for drawn, _ in seen))) > 1
    assert all(any(key.startswith(MaskMeta.matcher) for key in moved) for _, moved in seen)
    assert not any(key.startswith("default.") for _, moved in seen for key in moved)
    saved = [load_file(done.folder / "adapters" / name / "adapter.safetensors") for name in ("shape", "other")]
    assert any(not torch.equal(saved[0][key], saved[1][key]) for key in saved[0])


def test_a_killed_run_goes_on_exactly_and_leaves_pictures(vit, kinds, tmp_path, monkeypatch):
    whole = meta_learn(spec_of(vit, kinds, tmp_path / "whole", save_every=2, baseline=True), progress=False)
    true, count = AdamState.step, [0]

    def dying(self):
        count[0] += 1
        if count[0] in (4, 9):  # in joint training and in the other
            raise KeyboardInterrupt
        true(self)

    monkeypatch.setattr(AdamState, "step", dying)
    spec = spec_of(vit, kinds, tmp_path / "killed", save_every=2, baseline=True)
    for attempt in range(2):
        with pytest.raises(KeyboardInterrupt):
            meta_learn(spec, resume=attempt > 0, progress=False)
    done = meta_learn(spec, resume=True, progress=False)
    assert whole.figures == done.figures and list(done.figures) == ["base", "joint", "chameleon"]
    left, right = (load_file(each.folder / "adapters" / "shape" / "adapter.safetensors") for each in (whole, done))
    assert all(torch.equal(left[key], right[key]) for key in left)
    with Image.open(done.folder / "pictures" / "both.png") as sheet:
        assert sheet.size == (3 * (SIDE + 4) * 2, 4 * (SIDE + 4) * 2)


def test_an_unseen_kind_of_mask_is_learned_from_a_few_shots(vit, kinds, tmp_path):
    """The complement of a kind that was learned: after fine-tuning on four shots its loss is below that of none."""
    spec = spec_of(vit, kinds, tmp_path / "run", steps=60, lr=3e-3, shots=4, asked=4, together=3, episodes=3)
    spec = replace(
        spec, tests=(kinds["both"], kinds["background"]), meta=replace(spec.meta, inner_lr=3e-3, inner_steps=25)
    )
    figures = meta_learn(spec, progress=False).figures["chameleon"]
    assert figures["adapted"]["loss"] < figures["as it is"]["loss"]
    assert figures["adapted"]["iou"] > figures["as it is"]["iou"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": "0.png"}, "row 2 has no mask: without its label"),
        ({"mask": "0-shape.png"}, "row 2 has no image"),
        ({"image": "0.png", "mask": "gone.png"}, "names the mask .*gone.png, which does not exist"),
        ({"image": "0.png", "mask": "small.png"}, "has 8 x 8 pixels and its picture"),
        ({"image": "0.png", "mask": "shape.jsonl"}, "cannot be read"),
    ],
)
def test_a_support_without_its_labels_is_told_before_the_weights(vit, tmp_path, monkeypatch, row, told):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    kinds = drawn(tmp_path, 8)
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    lines = (tmp_path / "both.jsonl").read_text().split("\n")
    (tmp_path / "both.jsonl").write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]))
    with pytest.raises(lt.LuthierError, match=told):
        meta_learn(spec_of(vit, kinds, tmp_path / "out"), progress=False)


def test_masks_that_mark_nothing_too_few_rows_and_idle_settings_are_told(vit, kinds, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    empty = drawn(tmp_path, 8)
    for path in tmp_path.glob("*-both.png"):
        Image.new("L", (SIDE, SIDE)).save(path)
    with pytest.raises(lt.LuthierError, match=r"every mask of .*both\.jsonl is empty"):
        meta_learn(spec_of(vit, empty, tmp_path / "out"), progress=False)
    with pytest.raises(lt.LuthierError, match="14 rows, and an episode shows 14 pictures"):
        meta_learn(spec_of(vit, kinds, tmp_path / "out", shots=14), progress=False)
    with pytest.raises(lt.LuthierError, match="max_length is 64 and would be ignored: chameleon learns masks"):
        spec_of(vit, kinds, tmp_path / "out", max_length=64)
    with pytest.raises(lt.LuthierError, match="side is 64 and would be ignored: fomaml learns answers"):
        MetaRun("m", ("a", "b"), ("c",), lt.metas.FOMAML(), lt.LoRA(), side=64)
    with pytest.raises(lt.LuthierError, match="multiple of the 3 heads"):
        lt.metas.Chameleon(heads=3)


def test_a_side_that_the_model_or_the_grid_cannot_take_is_told_before_training(vit, kinds, tmp_path):
    with pytest.raises(lt.LuthierError, match="cannot read pictures of 64 pixels a side"):
        meta_learn(spec_of(vit, kinds, tmp_path / "a", side=64), progress=False)
    spec = spec_of(vit, kinds, tmp_path / "b")
    with pytest.raises(lt.LuthierError, match=r"expected a multiple of chameleon\.grid"):
        meta_learn(replace(spec, meta=lt.metas.Chameleon(grid=7, dim=32)), progress=False)


def test_masks_of_ones_and_processors_of_one_size_are_told(vit, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    kinds = drawn(tmp_path, 8)
    for path in tmp_path.glob("*-both.png"):
        Image.fromarray(np.eye(SIDE, dtype=np.uint8)).save(path)  # 0 and 1, not 0 and 255
    with pytest.raises(lt.LuthierError, match=r"no pixel is brighter than half. White \(255\) marks"):
        meta_learn(spec_of(vit, kinds, tmp_path / "out"), progress=False)
    picture, mask = (next(tmp_path.glob(each)) for each in ("0.png", "0-shape.png"))
    with pytest.raises(lt.LuthierError, match="image processor"):
        _pair(picture, mask, 2 * SIDE, tf.ConvNextImageProcessor(size={"shortest_edge": SIDE}))
    seen, _ = _pair(picture, mask, 2 * SIDE, tf.BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE))
    assert seen.shape == (3, 2 * SIDE, 2 * SIDE)

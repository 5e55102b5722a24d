"""Learning in context: sequences by hand, the three phases, the null, exact resume, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.training.adam_state import AdamState
from luthier.training.in_context import InContext, learn_in_context
from luthier.training.in_context.model import SequenceModel
from luthier.training.in_context.run import FAILS, GENERALISES, MEMORISES, phase
from luthier.training.in_context.spec import NEW
from luthier.training.in_context.tasks import Task, read, sequences

SMALL = {"classes": 2, "dimension": 4, "length": 12, "batch": 24, "lr": 5e-3, "layers": 2, "episodes": 64}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> str:
    """Two classes of vectors in six dimensions, well apart."""
    draw = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = 0.5 * draw.normal(size=(200, 6)) + 2 * np.where(y[:, None] == 1, 1, -1) * np.ones(6)
    path = tmp_path_factory.mktemp("vectors") / "vectors.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def spec_of(data: str, out: Path, **more) -> InContext:
    return InContext(data, out=str(out), **{"tasks": (1,), "widths": (16,), "steps": 4, **SMALL, **more})


def test_a_sequence_is_rows_of_a_task_projected_and_with_its_labels_permuted(vectors, tmp_path):
    spec = spec_of(vectors, tmp_path, classes=2)
    rows, held = read(spec)
    assert len(rows.y) == 160 and len(held.y) == 40
    whole = torch.cat([rows.x, held.x]).double()
    assert float(whole.mean(0).abs().max()) < 1e-6 and float(whole.square().mean()) == pytest.approx(1, rel=1e-5)
    assert not {tuple(x) for x in rows.x.tolist()} & {tuple(x) for x in held.x.tolist()}
    x, y = sequences(rows, [3, 4], spec, "key")
    for place, number in enumerate((3, 4)):
        task = Task.drawn(number, 6, spec)
        assert x[place].shape == (12, 4) and sorted(task.permutation.tolist()) == [0, 1]
        candidates = rows.x @ task.projection.T
        which = torch.cdist(x[place], candidates).argmin(1)
        torch.testing.assert_close(candidates[which], x[place], rtol=1e-5, atol=1e-6)
        assert torch.equal(task.permutation[rows.y[which]], y[place])
    again = sequences(rows, [3, 4], spec, "key")
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])


def test_projections_have_the_variance_of_the_equation(vectors, tmp_path):
    spec = spec_of(vectors, tmp_path, dimension=400)
    entries = Task.drawn(0, 300, spec).projection
    assert float(entries.var()) == pytest.approx(1 / 300, rel=0.02) and abs(float(entries.mean())) < 1e-3


def test_a_label_is_seen_from_the_next_place_on_and_nothing_later_is(vectors, tmp_path):
    spec = spec_of(vectors, tmp_path)
    model = SequenceModel(16, spec).eval()
    x, y = sequences(read(spec)[0], [0], spec, "key")
    before = model(x, y)
    other = y.clone()
    other[0, 5] = 1 - other[0, 5]
    after = model(x, other)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6], after[:, 6])
    moved = x.clone()
    moved[0, 5] += 1
    after = model(moved, y)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5], after[:, 5])


def test_phases_are_told_by_what_is_gained_over_chance():
    def found(low: float, seen: float, unseen: float) -> dict:
        return {"seen": {"low": low, "last": seen}, "unseen": {"last": unseen}}

    assert phase(found(0.49, 0.55, 0.55), 0.5) == FAILS
    assert phase(found(0.85, 0.9, 0.69), 0.5) == MEMORISES
    assert phase(found(0.85, 0.9, 0.71), 0.5) == GENERALISES


def test_one_task_is_memorised_many_are_learned_in_context_and_shuffled_labels_are_chance(vectors, tmp_path, drawn):
    spec = spec_of(vectors, tmp_path / "run", tasks=(1, 2**20), widths=(32,), steps=400)
    few, many = learn_in_context(spec, progress=False).cells
    assert few["phase"] == MEMORISES and few["seen"]["last"] > 0.95 > 0.75 > few["unseen"]["last"]
    assert many["phase"] == GENERALISES and many["unseen"]["last"] > 0.9
    assert many["unseen"]["last"] - many["unseen"]["first"] > 0.1  # the more is read, the better
    assert json.loads((tmp_path / "run" / "learned.json").read_text())["cells"] == [few, many]
    assert (tmp_path / "run" / "phases.png").stat().st_size > 10_000
    null = replace(spec, out=str(tmp_path / "null"), tasks=(1,), steps=60, shuffled=True, episodes=256)
    (cell,) = learn_in_context(null, progress=False).cells
    assert all(abs(cell[name]["last"] - 0.5) < 0.06 for name in ("seen", "unseen")) and cell["loss"] > 0.6


class Killed(BaseException):
    """Instead of a signal."""


def test_a_killed_sweep_goes_on_exactly(vectors, tmp_path, monkeypatch):
    settings = {"tasks": (1, 8), "steps": 6, "save_every": 2}
    whole = learn_in_context(spec_of(vectors, tmp_path / "whole", **settings), progress=False)
    true, count = AdamState.step, [0]

    def dying(self):
        count[0] += 1
        if count[0] in (4, 10):
            raise Killed
        true(self)

    monkeypatch.setattr(AdamState, "step", dying)
    spec = spec_of(vectors, tmp_path / "killed", **settings)
    for attempt in range(2):
        with pytest.raises(Killed):
            learn_in_context(spec, resume=attempt > 0, progress=False)
    done = learn_in_context(spec, resume=True, progress=False)
    assert done.cells == whole.cells
    for state in ("state-16-1", "state-16-8"):
        left, right = (load_file(each.folder / state / "state.safetensors") for each in (whole, done))
        assert all(torch.equal(left[key], right[key]) for key in left)
    with pytest.raises(lt.LuthierError, match="holds another sweep"):
        learn_in_context(replace(spec, lr=1e-4), resume=True, progress=False)


def test_data_and_settings_that_do_not_serve_are_told_first(vectors, tmp_path):
    def saved(name: str, **arrays) -> str:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return str(tmp_path / f"{name}.npz")

    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    cases = [
        (str(tmp_path / "none.npz"), "is not an .npz file; expected digits"),
        (saved("a", x=x), "holds x; expected x"),
        (saved("b", x=x, y=y[:5]), "as many rows"),
        (saved("c", x=x, y=y.astype(float)), "whole numbers or texts"),
        (saved("d", x=x, y=np.zeros(20, dtype=int)), "has 1 classes, and classes is 2"),
        (saved("e", x=np.ones((20, 3)), y=y), "always the same"),
        (saved("f", x=x, y=np.array([{}] * 20)), "cannot be read"),
    ]
    for data, said in cases:
        with pytest.raises(lt.LuthierError, match=said):
            learn_in_context(spec_of(data, tmp_path / "run"), progress=False)
    wrong = [
        ({"tasks": (1, 1)}, "each once"),
        ({"tasks": (NEW + 1,)}, "at most 2.40"),
        ({"widths": (33,)}, "cannot be dealt to 2 heads"),
        ({"length": 3}, "at least 4"),
        ({"lr": 0.0}, "above 0"),
    ]
    for settings, said in wrong:
        with pytest.raises(lt.LuthierError, match=said):
            spec_of(vectors, tmp_path, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", ["seen", "unseen", "phase"])
def test_a_record_that_lacks_figures_is_told(lacking, vectors, tmp_path):
    spec = spec_of(vectors, tmp_path / "sweep", tasks=(1,), widths=(8,), steps=1)
    file = learn_in_context(spec, progress=False).folder / "learned.json"
    told = json.loads(file.read_text())
    del told["cells"][0][lacking]
    file.write_text(json.dumps(told))
    with pytest.raises(lt.LuthierError, match=r"learned\.json"):
        learn_in_context(spec, resume=True, progress=False)

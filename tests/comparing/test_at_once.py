"""Studies whose runs are trained at once: the same table as one by one."""

from __future__ import annotations

import dataclasses
import json

import pytest

from luthier.comparing import Study, at_once, records, runner
from luthier.comparing.plan import checked
from luthier.comparing.study import Settings
from luthier.core.errors import LuthierError
from luthier.training import metrics
from luthier.training.together.meeting import Meeting
from luthier.training.together.request import Alone

QUICK = {"steps": 4, "batch": 4, "eval_every": 2, "save_every": 1, "eval_fraction": 0.2}
TIMES = ("seconds", "step_seconds", "step_ratio", "peak_bytes", "command", "settings", "notes", "versions", "answers")
"""What is of the process, or follows from the rest."""


@pytest.fixture(scope="module")
def study(llama, additions) -> Study:
    """One with a kernel, one with positions, a router, and what is not trained."""
    return Study.from_dict(
        {
            "models": llama,
            "data": {"sums": {"train": additions["train"], "test": additions["test"], "max_new_tokens": 3}},
            "methods": ["base", "lora", "loreft", "hydra"],
            "seeds": 2,
            "training": QUICK,
            "timing": 0,
        }
    )


@pytest.fixture(scope="module")
def single(study, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("single") / "s"
    runner.carry_out(study, folder, progress=False)
    return figures(folder)


def figures(folder) -> list[dict]:
    return [{key: v for key, v in each.to_dict().items() if key not in TIMES} for each in records(folder)]


def same(one, two) -> None:
    """Equal, numbers to 1e-5 of each other and losses so too."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            same(*pair)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    else:
        assert one == two


def test_the_table_is_that_of_runs_made_one_by_one(study, single, tmp_path, capsys):
    done = runner.carry_out(study, tmp_path / "s", True, together=5)
    same(figures(tmp_path / "s"), single)
    assert "base is trained by itself: nothing is trained" in capsys.readouterr().err
    notes = {run.method: run.notes for run in done.records if run.seed == 0}
    assert at_once.SHARED in notes["lora"] and at_once.SHARED not in notes["base"]


def test_groups_are_of_one_base(study):
    jobs = checked(study).jobs
    sizes = [[(job.method.name, job.seed) for job in group] for group in at_once.groups(jobs, 4)]
    assert [("base", 0)] in sizes and [("base", 1)] in sizes and sorted(map(len, sizes)) == [1, 1, 2, 4]
    other = dataclasses.replace(jobs[1], run=dataclasses.replace(jobs[1].run, model="another"))
    assert at_once.groups([jobs[1], other, jobs[2]], 4) == [[jobs[1], jobs[2]], [other]]
    with pytest.raises(LuthierError, match="together is 0"):
        runner.carry_out(study, "nowhere", False, together=0)


def test_killed_and_started_again_gives_the_same(study, single, tmp_path, monkeypatch):
    """Interrupted in the third step of a run, while others wait for theirs; resumed at once and one by one."""
    write = metrics.Metrics.on_log

    def stop(self, args, state, control, logs=None, **kwargs):
        write(self, args, state, control, logs, **kwargs)
        if "loreft" in str(self.folder) and state.global_step == 3 and "loss" in logs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Metrics, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            runner.carry_out(study, tmp_path / "s", False, together=8)
    assert [run.method for run in records(tmp_path / "s")] == ["base"]
    assert len(list((tmp_path / "s").glob("runs/**/checkpoints/step-2"))) == 6
    runner.carry_out(dataclasses.replace(study, seeds=[0]), tmp_path / "s", False)
    runner.carry_out(study, tmp_path / "s", False, together=8)
    same(figures(tmp_path / "s"), single)


def test_a_run_that_diverges_ends_by_itself(study, single, tmp_path):
    settings = {"lora": Settings(training={"lr": 1e30})}
    with pytest.raises(LuthierError, match=r"(?s)2 of 8 runs failed.*lora.*became nan"):
        runner.carry_out(dataclasses.replace(study, settings=settings), tmp_path / "s", False, together=8)
    same(figures(tmp_path / "s"), [each for each in single if each["method"] != "lora"])


def test_trials_are_those_of_a_search_by_itself(study, tmp_path):
    pytest.importorskip("optuna")
    searching = dataclasses.replace(study, methods=["lora", "loreft"], seeds=[0], tune=5, tune_steps=2)
    for name, count in (("alone", 1), ("met", 4)):
        runner.carry_out(searching, tmp_path / name, False, together=count)
    found = [
        json.loads(json.dumps([[dict(trial) for trial in run.trials] for run in records(tmp_path / name)]))
        for name in ("alone", "met")
    ]
    assert all(len(trials) == 5 for trials in found[0])
    same(found[1], found[0])


def test_a_trial_that_fails_by_itself_too_is_its_own_loss(monkeypatch):
    def loss_of(trial, fits):
        if fits is not at_once.fit:
            raise Alone("it cannot share")
        if trial == "b":
            raise RuntimeError("no memory")
        return 0.5

    monkeypatch.setattr(at_once, "loss_of", loss_of)
    value, error, other = at_once._losses(["a", "b", "c"], 2, Meeting(), lambda job: None)
    assert (value, other) == (0.5, 0.5) and isinstance(error, RuntimeError)


@pytest.mark.parametrize("together", [1, 2])
def test_frozen_blocks_compute_the_rows_of_all_runs(study, tmp_path, together):
    """What enters a block is kept for a run that has the model to itself, not in passes that are shared."""
    upper = {name: {"where": "layers(2) & all-linear"} for name in ("lora", "hydra")}
    values = {"methods": [*upper], "settings": upper, "seeds": [0]}
    values["training"] = {**QUICK, "steps": None, "epochs": 2, "cache_frozen": "auto"}
    runner.carry_out(Study.from_dict(study.to_dict() | values), tmp_path / "s", progress=False, together=together)
    kept = [json.loads(path.read_text())["frozen"] for path in (tmp_path / "s").glob("runs/*/*/*/*/run/run.json")]
    assert len(kept) == 2 and all(("block" in each) == (together == 1) for each in kept)

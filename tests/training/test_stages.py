"""Plans of several stages: refused before the first starts, gone on with exactly wherever they were stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerCallback

import luthier as lt
from luthier.training.folder import read_run
from luthier.training.stages import read_plan, run_plan
from luthier.training.stages.work import read_record
from support.tiny import pairs, sums, write_rows

SFT = {"name": "sft", "data": "sums.jsonl"}
DPO = {"name": "preferences", "data": "pairs.jsonl", "objective": {"name": "dpo", "beta": 0.2}}
TEXT = {"name": "pretrain", "data": "texts.jsonl"}


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "sums.jsonl", sums(12))
    write_rows(tmp_path / "pairs.jsonl", pairs(8))
    write_rows(tmp_path / "texts.jsonl", [{"text": f"the sum of {i} and {i} is {2 * i}."} for i in range(12)])
    return tmp_path


@pytest.fixture
def plan(folder, llama):
    def written(*stages, out="out", **more):
        import yaml

        training = {"steps": 2, "batch": 4, "eval_fraction": 0.0, "lr": 0.01, "save_every": 1}
        values = {"model": llama, "out": str(folder / out), "method": "lora", "form": {"rank": 2}}
        values |= {"training": training, "stage": list(stages), **more}
        path = folder / f"{out}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return written


class Stop(TrainerCallback):
    """Interrupts the `at`-th step that it sees."""

    def __init__(self, at):
        self.left = at

    def on_step_end(self, args, state, control, **kwargs):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def tensors(staged):
    return [(each.folder / "adapter" / "adapter.safetensors").read_bytes() for each in staged.stages]


def test_stages_go_on_from_one_another_and_resume_exactly(plan, folder):
    whole = run_plan(plan(SFT, DPO), progress=False)
    assert [each.name for each in whole.stages] == ["sft", "preferences"]
    last = read_run(whole.stages[1].folder)
    assert last.from_adapter == str(whole.stages[0].folder) and last.objective.name() == "dpo"
    assert last.objective.reference == str(whole.stages[0].folder / "adapter")
    assert last.form == lt.LoRA(rank=2)
    cut = plan(SFT, DPO, out="cut")
    for at in (2, 2):  # in the first stage, then in the first step of the second
        with pytest.raises(KeyboardInterrupt):
            run_plan(cut, resume=True, progress=False, callbacks=[Stop(at)])
    noted = json.loads((folder / "cut" / "plan.json").read_text())
    noted["stages"][0]["sha256"] = None  # as a kill leaves it that comes between the adapter and the note
    (folder / "cut" / "plan.json").write_text(json.dumps(noted))
    resumed = run_plan(cut, resume=True, progress=False)
    assert tensors(resumed) == tensors(whole)
    heard: list[str] = []
    assert run_plan(cut, resume=True, progress=False, told=heard.append) == resumed
    assert all(line.endswith("finished before") for line in heard)


def test_a_stage_may_be_added_and_a_changed_one_is_refused(plan, folder):
    first = run_plan(plan(SFT), progress=False)
    longer = plan(SFT, DPO)
    with pytest.raises(lt.LuthierError, match="holds a plan already"):
        run_plan(longer, progress=False)
    with pytest.raises(lt.LuthierError, match=r"stage sft: .*training.lr is 0.1, there 0.01"):
        run_plan(plan({**SFT, "training": {"lr": 0.1}}, DPO), resume=True, progress=False)
    both = run_plan(plan(SFT, TEXT), resume=True, progress=False)
    assert both.stages[0] == first.stages[0]
    record = json.loads((folder / "out" / "plan.json").read_text())
    record["stages"][0]["sha256"] = "0" * 64
    (folder / "out" / "plan.json").write_text(json.dumps(record))
    with pytest.raises(lt.LuthierError, match=r"stage sft: the adapter .* is not the one"):
        run_plan(plan(SFT, TEXT), resume=True, progress=False)
    replaced = run_plan(plan(SFT), overwrite=True, progress=False)
    assert not both.stages[1].folder.exists() and tensors(replaced) == tensors(first)


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([SFT, {**DPO, "data": "sums.jsonl"}], "stage preferences: .*dpo reads pairs"),
        ([SFT, {**SFT, "name": "more", "data": "nothing.jsonl"}], "stage more: no data file"),
        ([SFT, {**DPO, "method": "wegeft"}], "the stage preferences says method; it goes on with the adapter of sft"),
        ([SFT, SFT], "two stages are called sft"),
        ([SFT, {**SFT, "name": "more", "objective": {"name": "dpoo"}}], "no objective named 'dpoo'"),
        ([SFT, {**SFT, "name": "more", "model": "x"}], "the stage more says model"),
        ([SFT, {**SFT, "name": "more", "training": {"stepz": 3}}], "no setting 'stepz'"),
        ([SFT, {**DPO, "objective": {"name": "reward"}}], "stage preferences: its model is for reward"),
        ([{**SFT, "where": "no_such_layer"}], "stage sft: .*no_such_layer"),
        ([], "has no stages"),
    ],
)
def test_bad_plans_are_refused_before_the_first_stage(plan, folder, stages, why):
    with pytest.raises(lt.LuthierError, match=why):
        run_plan(plan(*stages), progress=False)
    assert not (folder / "out").exists()


def test_measured_plans_keep_checkpoints(plan):
    path = plan(SFT, measure={"task": "sums.jsonl", "general": "texts.jsonl", "checkpoints": 3})
    assert read_plan(path).measured.task.endswith("sums.jsonl")
    with pytest.raises(lt.LuthierError, match="names no general"):
        read_plan(plan(SFT, measure={"task": "sums.jsonl"}))


def test_the_example_has_the_stages_of_tower_plus():
    read = read_plan(Path(__file__).parents[2] / "examples" / "tower.toml")
    assert [each.name for each in read.stages] == ["pretrain", "sft", "preferences", "rewards"]
    assert [each.start for each in read.stages] == [None, *(each.folder for each in read.stages[:-1])]
    assert read.stages[2].file.recipe.objective == {"name": "dpo", "beta": 0.1}
    assert read.stages[3].file.recipe.training == {"schedule": "cosine", "batch": 8, "steps": 60, "lr": 5e-5}
    assert read.measured is not None and read.measured.checkpoints == 3


@pytest.mark.parametrize(
    "stages",
    ["sft", ["sft"], [{"name": "sft"}], [{"name": 1, "folder": "a"}], [{"name": "a", "folder": "a", "sha256": "0"}], 3],
)
def test_a_damaged_record_is_told(stages, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"stages": stages, "created": "", "versions": {}}))
    with pytest.raises(lt.LuthierError, match=r"plan\.json is damaged"):
        read_record(tmp_path)

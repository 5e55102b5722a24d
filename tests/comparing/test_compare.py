"""Studies end to end: what is measured, what an interruption changes (nothing), what may be added."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier import models
from luthier.comparing import Study, making, records, runner
from luthier.comparing.measures.forgetting import HELD, _tasks
from luthier.comparing.plan import checked
from luthier.comparing.rows import read_held
from luthier.comparing.sources import sourced
from luthier.comparing.study import DataSet
from luthier.core.errors import LuthierError
from luthier.training import Training, metrics
from support.tiny import TEMPLATE, save_model, write_rows

QUICK = {"steps": 4, "batch": 4, "eval_every": 2, "save_every": 1, "eval_fraction": 0.2}
CLOCK = ("seconds", "step_seconds", "step_ratio")
"""What no two runs have in common."""


@pytest.fixture(scope="module")
def study(llama, additions) -> Study:
    return Study.from_dict(
        {
            "models": llama,
            "data": {"sums": {"train": additions["train"], "test": additions["test"], "max_new_tokens": 3}},
            "methods": ["lora", "loreft"],
            "seeds": 2,
            "budget": "8%",
            "training": QUICK,
            "timing": 0,
        }
    )


def figures(folder) -> list[dict]:
    """Every record without its clock and the place of its run."""
    found = []
    for record in records(folder):
        values = {key: value for key, value in record.to_dict().items() if key not in (*CLOCK, "command")}
        values["settings"].pop("out")
        found.append(values)
    return found


def changed(study: Study, **values) -> Study:
    return dataclasses.replace(study, **values)


def test_two_methods_on_two_seeds(study, held, tmp_path):
    done = lt.compare(changed(study, timing=2, held=held), out=tmp_path / "s", progress=False)
    assert [run.key for run in done.records] == [("llama", "sums", m, s) for m in ("lora", "loreft") for s in (0, 1)]
    for run in done.records:
        assert [step for step, _ in run.losses] == [1, 2, 3, 4] and [step for step, _ in run.eval_losses] == [2, 4]
        assert run.metric == "number" and run.rows == 12 and len(run.hits["sums"]) == 12
        assert run.score == pytest.approx(sum(run.hits["sums"]) / 12)
        assert 0 < run.trainable <= 0.08 * run.total and run.bytes > 4 * run.trainable
        assert run.step_seconds > 0 and run.step_ratio > 0 and run.peak_bytes > run.bytes
        before, after = run.forgetting["held text loss"]
        assert before > 0 and after != before
        assert (run.intruders is None) == (run.method == "loreft")  # which changes no matrix
        assert run.intruders is None or (run.intruders["matrices"] > 3 and run.intruders["count"] >= 0)
        assert run.budget == "8%" and run.command.startswith("luthier train") and run.samples[0]["prompt"].endswith("=")
    same_seed = [run.forgetting["held text loss"][0] for run in done.records]
    assert len(set(same_seed)) == 1  # the base is one
    assert {"results.csv", "results.json", "results.md", "results.tex", "study.json", "report.html"} <= {
        p.name for p in (tmp_path / "s").iterdir()
    }
    assert not list((tmp_path / "s").glob("runs/**/checkpoints")) and not list((tmp_path / "s").glob("runs/**/adapter"))
    summary = json.loads((tmp_path / "s" / "results.json").read_text())
    assert set(summary[0]["methods"]) == {"lora", "loreft"} and summary[0]["winner"] is None
    assert len((tmp_path / "s" / "results.csv").read_text().splitlines()) == 5


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory) -> list[dict]:
    """The figures of the study without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    runner.carry_out(changed(study, seeds=[0]), folder, progress=False)
    return figures(folder)


@pytest.mark.parametrize("moment", [1, 3, 4])
def test_killed_and_started_again_gives_the_same(study, whole, tmp_path, monkeypatch, moment):
    """Stopped in the second run, after `moment` of its four steps."""
    study, write, runs = changed(study, seeds=[0]), metrics.Metrics.on_log, []

    def stop(self, args, state, control, logs=None, **kwargs):
        write(self, args, state, control, logs, **kwargs)
        runs.append(self.folder) if self.folder not in runs else None
        if len(runs) == 2 and state.global_step == moment and "loss" in logs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Metrics, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            runner.carry_out(study, tmp_path / "cut", progress=False)
    assert len(records(tmp_path / "cut")) == 1
    runner.carry_out(study, tmp_path / "cut", progress=False)
    assert figures(tmp_path / "cut") == whole


def test_what_is_done_is_not_made_again(study, tmp_path, monkeypatch):
    runner.carry_out(changed(study, methods=["lora"], seeds=[0]), tmp_path / "s", progress=False)
    made, fit = [], making.fit
    monkeypatch.setattr(making, "fit", lambda job: made.append((job.method.name, job.seed)) or fit(job))
    done = runner.carry_out(changed(study, methods=["lora", "loreft"], seeds=[0]), tmp_path / "s", progress=False)
    assert made == [("loreft", 0)] and len(done.records) == 2
    runner.carry_out(changed(study, methods=["lora"], seeds=[0, 1]), tmp_path / "s", progress=False)
    assert made == [("loreft", 0), ("lora", 1)]
    stored = json.loads((tmp_path / "s" / "study.json").read_text())["study"]
    assert stored["methods"] == ["lora", "loreft"] and stored["seeds"] == [0, 1]


def test_other_settings_are_refused(study, tmp_path, additions):
    runner.carry_out(changed(study, methods=["lora"], seeds=[0]), tmp_path / "s", progress=False)
    other = {
        "budget is '9%', there '8%'": changed(study, budget="9%"),
        "training.steps is 5, there 4": changed(study, training=QUICK | {"steps": 5}),
        "settings.lora": changed(study, settings={"lora": lt.comparing.study.Settings(training={"lr": 1e-3})}),
        "data.sums.test.sums": changed(
            study, data={"sums": dataclasses.replace(study.data["sums"], test={"sums": additions["more"]})}
        ),
    }
    for text, each in other.items():
        with pytest.raises(LuthierError, match=text):
            runner.carry_out(each, tmp_path / "s", progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(LuthierError, match="something else than a study"):
        runner.carry_out(study, tmp_path / "full", progress=False)


def test_a_study_from_before_a_setting_goes_on(study, tmp_path):
    one = Study.from_dict(study.to_dict() | {"methods": ["lora"], "settings": {"lora": {"form": {"rank": 2}}}})
    runner.prepared(one, tmp_path / "s")
    noted = json.loads((tmp_path / "s" / "study.json").read_text())
    del noted["resolved"], noted["study"]["settings"]["lora"]["objective"], noted["study"]["others"]
    (tmp_path / "s" / "study.json").write_text(json.dumps(noted))
    assert runner.prepared(one, tmp_path / "s").jobs
    whole = json.loads((tmp_path / "s" / "study.json").read_text())
    lists: dict[str, list] = {key: [] for key in whole["fingerprints"]}
    for change in ({"fingerprints": None}, {"fingerprints": lists}, {"resolved": []}, {"bases": "a"}):
        (tmp_path / "s" / "study.json").write_text(json.dumps(whole | change))
        with pytest.raises(LuthierError, match=r"study\.json is damaged"):
            runner.prepared(one, tmp_path / "s")


def test_changed_rows_are_refused(study, tmp_path, additions):
    from support.tiny import sums

    own = write_rows(tmp_path / "own.jsonl", sums(12, seed=5))
    part = {"sums": dataclasses.replace(study.data["sums"], test={"sums": own})}
    one = changed(study, data=part, methods=["lora"], seeds=[0])
    runner.carry_out(one, tmp_path / "s", progress=False)
    write_rows(tmp_path / "own.jsonl", sums(12, seed=6))
    with pytest.raises(LuthierError, match=r"the rows of sums \(sums\)"):
        runner.carry_out(one, tmp_path / "s", progress=False)


@pytest.mark.parametrize("changed_file", ["model.safetensors", "tokenizer.json"])
def test_a_study_goes_on_over_the_same_base_alone(study, llama, tmp_path, changed_file):
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    one = changed(study, models={"llama": str(base)}, methods=["lora"], seeds=[0])
    runner.prepared(one, tmp_path / "s")
    assert runner.prepared(one, tmp_path / "s").jobs
    if changed_file == "model.safetensors":
        held = load_file(base / changed_file)
        held["model.norm.weight"] = held["model.norm.weight"] * 1.001
        save_file(held, base / changed_file, {"format": "pt"})
    else:
        tokens = json.loads((base / changed_file).read_text())
        tokens["added_tokens"] = []
        (base / changed_file).write_text(json.dumps(tokens))
    with pytest.raises(LuthierError, match="runs of another llama: its weights, its tokenizer"):
        runner.prepared(one, tmp_path / "s")
    noted = json.loads((tmp_path / "s" / "study.json").read_text())
    del noted["bases"]  # as an older version wrote it
    (tmp_path / "s" / "study.json").write_text(json.dumps(noted))
    assert runner.prepared(one, tmp_path / "s").jobs


def test_a_run_that_another_process_makes_is_left_to_it(study, tmp_path, monkeypatch):
    one = changed(study, methods=["lora"], seeds=[0, 1])
    jobs = runner.prepared(one, tmp_path / "s").jobs
    theirs = making.claimed(jobs[0])
    assert theirs.__enter__()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        assert [run.seed for run in records(tmp_path / "s")] == [1]  # ours is done, theirs is not
        theirs.__exit__(None, None, None)

    monkeypatch.setattr(making.time, "sleep", wait)
    assert len(runner.carry_out(one, tmp_path / "s", progress=False).records) == 2 and len(waits) == 1


def test_a_diverging_run_does_not_stop_the_others(study, tmp_path):
    settings = {"lora": {"training": {"lr": 1e30, "clip": 0.0}}}
    wild = Study.from_dict(study.to_dict() | {"settings": settings, "seeds": [0]})
    with pytest.raises(LuthierError, match=r"1 of 2 runs failed(.|\n)*lora · seed 0: the (loss|gradient)"):
        runner.carry_out(wild, tmp_path / "s", progress=False)
    assert [run.method for run in records(tmp_path / "s")] == ["loreft"]
    assert (tmp_path / "s" / "results.csv").is_file()


def test_a_run_without_memory_does_not_stop_the_others(study, tmp_path, monkeypatch):
    fit = making.fit

    def fails(job):
        if job.method.name == "lora":
            raise RuntimeError("CUDA out of memory")
        return fit(job)

    monkeypatch.setattr(making, "fit", fails)
    with pytest.raises(LuthierError, match=r"1 of 2 runs failed(.|\n)*lora · seed 0: RuntimeError: CUDA out of mem"):
        runner.carry_out(changed(study, seeds=[0]), tmp_path / "s", progress=False)
    assert [run.method for run in records(tmp_path / "s")] == ["loreft"]


def test_classifiers(bert, letters, tmp_path):
    """The base is its new head alone; a single file is divided; classes are calibrated."""
    study = Study.from_dict(
        {
            "models": bert,
            "data": {"letters": {"train": letters, "metric": "mcc"}},
            "methods": ["base", "recipe:lora", "full"],
            "seeds": [0],
            "training": QUICK | {"steps": 20, "lr": 1e-2},
            "settings": {"recipe:lora": {"form": {"rank": 2}}},
            "timing": 1,
        }
    )
    done = runner.carry_out(study, tmp_path / "s", progress=False)
    runs = {run.method: run for run in done.records}
    for run in runs.values():
        assert run.metric == "mcc" and run.rows == 12 and set(run.metrics) >= {"accuracy", "mcc"} and not run.hits
        assert 0 <= run.calibration_error <= 1 and run.samples[0]["expected"] in ("left", "right")
    assert runs["base"].trainable == 2 * 32 + 2 < runs["recipe:lora"].trainable < runs["full"].trainable
    assert runs["full"].score > 0.9 and "recipe's sites" in " ".join(runs["recipe:lora"].notes)
    assert any("exempt" in note for note in runs["base"].notes)


def test_a_base_is_loaded_as_training_loads_it(bert, tmp_path, monkeypatch):
    """A checkpoint with a head of its own, whose classes bear no names, on classes that do; its weights packed."""
    import transformers

    whole = transformers.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    whole.save_pretrained(tmp_path / "headed")
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "headed")
    rows = [{"text": "ab" * (i % 7 + 1), "label": i % 2} for i in range(40)]
    data = {name: {"train": write_rows(tmp_path / f"{name}.jsonl", rows[at:])} for name, at in (("a", 0), ("b", 2))}
    values = {"models": str(tmp_path / "headed"), "data": data, "methods": ["base"], "seeds": [0], "training": QUICK}
    asked, load = [], models.load

    def seen(name, *, quantize=None, **kwargs):
        asked.append(quantize)
        return load(name, **kwargs)

    monkeypatch.setattr(models, "load", seen)
    values["training"] = QUICK | {"quantize": "int8"}
    done = runner.carry_out(Study.from_dict(values), tmp_path / "s", progress=False)
    assert [run.trainable for run in done.records] == [0, 0] and all(0 <= run.score <= 1 for run in done.records)
    assert "int8" in asked
    assert [set(run.forgetting) for run in done.records] == [{"b"}, {"a"}]  # the same classes


@pytest.mark.parametrize("where", ["study", "data", "method"])
def test_a_seed_among_the_settings_is_refused(study, where):
    """Every method has each of the study's."""
    table = {"training": {"seed": 7}}
    values = (
        study.to_dict()
        | {
            "study": table,
            "data": {"data": {"sums": study.to_dict()["data"]["sums"] | table}},
            "method": {"settings": {"lora": table}},
        }[where]
    )
    with pytest.raises(LuthierError, match="seed"):
        Study.from_dict(values)


def test_what_is_kept_of_the_base_goes_by_how_it_is_packed(study, held, tmp_path):
    one = changed(study, held=held, methods=["lora"], seeds=[0])
    plan = runner.prepared(one, tmp_path / "s")
    (job,) = plan.jobs
    packed = dataclasses.replace(job.run.training, quantize="nf4")
    other = dataclasses.replace(job, run=dataclasses.replace(job.run, training=packed))
    keys = [_tasks(plan, each, read_held(one))[HELD][0] for each in (job, other)]
    assert keys[0] != keys[1]


def test_parts_that_share_a_name_are_told_apart_where_forgetting_is_measured(study, additions, tmp_path):
    own = study.to_dict()["data"]["sums"] | {"test": {"sums": additions["test"]}}
    sets = {name: own | {"test": {"dev": additions["test"]}} for name in ("a", "b")}
    values = study.to_dict() | {"data": sets | {"c": own}, "methods": ["lora"], "seeds": [0]}
    plan = runner.prepared(Study.from_dict(values), tmp_path / "s")
    found = {job.data.name: set(_tasks(plan, job, None)) for job in plan.jobs}
    assert found == {"a": {"b dev", "sums"}, "b": {"a dev", "sums"}, "c": {"a dev", "b dev"}}


@pytest.mark.parametrize("given", [{"init": {"name": "pissa"}}, {"update": {"name": "lora_plus"}}])
def test_settings_that_peft_does_not_read_are_refused(study, given):
    pytest.importorskip("peft")
    values = study.to_dict() | {"methods": ["peft:lora"], "settings": {"peft:lora": given}}
    with pytest.raises(LuthierError, match=f"reads no {next(iter(given))}"):
        checked(Study.from_dict(values))


def test_several_files_and_tests_and_other_data(llama, additions, tmp_path):
    study = Study.from_dict(
        {
            "models": llama,
            "data": {
                "mixed": {
                    "train": [additions["train"], additions["more"]],
                    "test": {"first": additions["test"], "second": additions["more"]},
                    "max_new_tokens": 3,
                },
                "plain": {"train": additions["train"], "test": additions["test"], "max_new_tokens": 3},
            },
            "methods": ["base", "lora"],
            "seeds": [0],
            "training": QUICK,
            "others": 3,
        }
    )
    done = runner.carry_out(study, tmp_path / "s", progress=False)
    mixed = next(run for run in done.records if run.key == ("llama", "mixed", "lora", 0))
    assert set(mixed.tests) == {"first", "second"} and mixed.rows == 18
    assert mixed.score == pytest.approx((mixed.tests["first"]["number"] + mixed.tests["second"]["number"]) / 2)
    assert len((tmp_path / "s" / "data" / "mixed.train.jsonl").read_text().splitlines()) == 46
    assert set(mixed.forgetting) == {"plain"}
    base = next(run for run in done.records if run.method == "base")
    assert base.trainable == base.bytes == 0 and base.step_ratio is None and not base.losses
    assert math.isfinite(base.score)


def test_every_fault_is_told_before_the_first_run(study, tmp_path, bert):
    wrong = {
        "no method 'lorra'; did you mean 'lora'": {"methods": ["lorra"]},
        "no method 'peft:x'": {"methods": ["peft:x"]},
        "too small": {"methods": ["lora"], "budget": "10"},
        "no data file": {"data": {"sums": {"train": "gone.jsonl"}}},
        "no metric|no scorer": {"data": {"sums": study.to_dict()["data"]["sums"] | {"metric": "bleu"}}},
        "no setting 'stepz'": {"training": {"stepz": 3}},
        "sites of kind": {"settings": {"loreft": {"where": "params(*)"}}},
        "luthier.tune" if not _has_optuna() else "tune is -1": {"tune": -1 if _has_optuna() else 1},
    }
    for text, values in wrong.items():
        with pytest.raises(LuthierError, match=text):
            runner.carry_out(Study.from_dict(study.to_dict() | values), tmp_path / "s", progress=False)
        assert not records(tmp_path / "s")
    both = Study.from_dict(study.to_dict() | {"methods": ["lora", "loreft"], "budget": "10"})
    with pytest.raises(LuthierError, match=r"2 things do not fit:\n.*lora: .*\n.*loreft: "):
        runner.carry_out(both, tmp_path / "s", progress=False)


def _has_optuna() -> bool:
    import importlib.util

    return importlib.util.find_spec("optuna") is not None


CHOOSER = """method = "lora"
[form]
rank = 2
[select]
name = "random"
"""


def test_objectives_and_selections_of_recipes_are_used(study, tmp_path):
    recipe = tmp_path / "chooser.toml"
    recipe.write_text(CHOOSER)
    values = study.to_dict() | {"methods": ["full", "masked-thought", str(recipe)], "seeds": [0], "budget": None}
    with pytest.raises(LuthierError, match="select_rows"):
        checked(Study.from_dict(values))
    for rows in (0, 99):
        with pytest.raises(LuthierError, match=f"select_rows is {rows}; here are 32 rows"):
            checked(Study.from_dict(values | {"settings": {str(recipe): {"select_rows": rows}}}))
    values["settings"] = {
        str(recipe): {"select_rows": 8},
        "masked-thought": {"training": {"lr": 1e-3, "schedule": "linear", "warmup": 0.06}},
    }
    values["settings"]["full"] = values["settings"]["masked-thought"]
    done = runner.carry_out(Study.from_dict(values | {"timing": 1}), tmp_path / "s", progress=False)
    full, masked, chosen = (next(r for r in done.records if r.method == m) for m in values["methods"])
    assert masked.settings["objective"]["name"] == "masked_thought" and full.settings["objective"]["name"] == "sft"
    assert masked.losses != full.losses and "--objective masked_thought" in masked.command
    assert chosen.settings["select"]["name"] == "random" and chosen.settings["select_rows"] == 8


def test_rows_that_an_objective_lacks_are_told_in_the_plan(study):
    with pytest.raises(LuthierError, match="no 'rationale'"):
        checked(changed(study, methods=["lora", "morepair"]))


def test_two_methods_never_share_a_folder(study, tmp_path):
    recipe = tmp_path / "lora.toml"
    recipe.write_text('method = "wegeft"\n')
    with pytest.raises(LuthierError, match=r"'lora' and '.*lora.toml' would share one folder"):
        checked(changed(study, methods=["lora", str(recipe)]))
    runner.prepared(changed(study, methods=["lora"]), tmp_path / "s")
    with pytest.raises(LuthierError, match=r"'lora' and '.*lora.toml' would share one folder"):
        runner.prepared(changed(study, methods=[str(recipe)]), tmp_path / "s")


def test_a_recipe_that_was_changed_is_refused(study, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('method = "lora"\n[form]\nalpha = 8.0\n')
    one = changed(study, methods=[str(recipe)], seeds=[0])
    runner.prepared(one, tmp_path / "s")
    runner.prepared(one, tmp_path / "s")
    recipe.write_text('method = "lora"\n[form]\nalpha = 4.0\n')
    with pytest.raises(LuthierError, match=r"form.settings.alpha is 4.0, there 8.0"):
        runner.prepared(one, tmp_path / "s")


LONG = {"prompt": "1+1=", "completion": "2" * 3000}


def test_rows_beside_the_training_rows_are_checked_in_the_plan(study, additions, tmp_path):
    """A test row that the template refuses, validation that cannot be read, learned or held out, no held text."""
    bad, long = tmp_path / "bad.jsonl", tmp_path / "long.jsonl"
    good = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    write_rows(bad, [{"messages": good}, {"messages": [{"role": "system", "content": "Add."}, *good]}])
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    models = {"llama": save_model(tmp_path / "strict", "llama", strict)}
    write_rows(long, [LONG])
    sums = study.data["sums"]
    few = write_rows(tmp_path / "few.jsonl", [{"prompt": "1+1=", "completion": "2"}])
    wrong = {
        r"the test sums \(.*bad.jsonl\): row 2": {
            "models": models,
            "data": {"sums": dataclasses.replace(sums, test={"sums": str(bad)})},
        },
        "gone.jsonl": {"data": {"sums": dataclasses.replace(sums, validation="gone.jsonl")}},
        "3,?[0-9]+ tokens": {"data": {"sums": dataclasses.replace(sums, validation=str(long))}},
        "no row is held out": {"data": {"sums": dataclasses.replace(sums, train=[few])}},
        "nothere": {"held": "nothere.jsonl"},
    }
    for text, values in wrong.items():
        with pytest.raises(LuthierError, match=text):
            checked(changed(study, **values))


def test_pictures_of_a_file_that_is_divided_or_joined_are_found(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "pets").mkdir()
    for i in range(10):
        image.new("RGB", (4, 4)).save(tmp_path / "pets" / f"{i}.png")
    rows = [{"image": f"{i}.png", "label": "cat" if i % 2 else "dog"} for i in range(10)]
    write_rows(tmp_path / "pets" / "a.jsonl", rows)
    write_rows(tmp_path / "pets" / "b.jsonl", rows[:4])
    monkeypatch.chdir(tmp_path)
    for train in (["pets/a.jsonl"], ["pets/a.jsonl", "pets/b.jsonl"]):
        found = sourced("pets", DataSet(train), Training(eval_fraction=0.1), [0], tmp_path / "s")
        kept = [*found.examples.rows, *found.tests["pets"].rows]
        assert len(kept) in (10, 14) and all(Path(row.image).is_absolute() for row in kept)


def test_a_folder_in_the_place_of_data_is_told(tmp_path):
    with pytest.raises(lt.LuthierError, match=r"data is .*expected str or none"):
        lt.compare("model", tmp_path)  # type: ignore[arg-type]

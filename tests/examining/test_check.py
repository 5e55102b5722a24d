"""The release check: what its intervals say, and which planted faults trip which gate."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier.cli import main
from luthier.core.contracts.gate import Probes
from luthier.data import sources
from luthier.examining.check.subject import Means
from luthier.examining.check.verdict import PASSES, TRIPPED, UNMEASURED, UNTOLD, clopper_pearson, judged
from luthier.methods.gates.context_use import ContextUse, variants
from luthier.methods.gates.held_loss import HeldLoss
from luthier.methods.gates.memory_growth import MemoryGrowth
from luthier.methods.gates.refusals import Refusals
from luthier.methods.gates.task_score import TaskScore
from support.tiny import save_model, sums, write_rows


def probes(before, after) -> Probes:
    first = torch.tensor(before).double()
    return Probes(first, torch.tensor(after).double(), first)


def test_exact_bounds_are_those_of_the_literature():
    scipy = pytest.importorskip("scipy.stats")
    for k, n, tail in ((0, 12, 0.025), (3, 10, 0.025), (7, 7, 0.0125), (40, 90, 0.0125)):
        low, high = clopper_pearson(k, n, tail)
        assert low == pytest.approx(0.0 if k == 0 else scipy.beta.ppf(tail, k, n - k + 1), abs=1e-9)
        assert high == pytest.approx(1.0 if k == n else scipy.beta.ppf(1 - tail, k + 1, n - k), abs=1e-9)


def test_few_probes_are_never_told_from_nothing():
    """Five answers that stay right do not show that one in twenty is not lost."""
    gate = TaskScore(data="x")
    assert judged("g", gate, probes([1.0] * 5, [1.0] * 5)).outcome == UNTOLD
    assert judged("g", gate, probes([1.0] * 500, [1.0] * 500)).outcome == PASSES
    assert judged("g", gate, probes([1.0] * 12, [0.0] * 12)).outcome == TRIPPED
    few = judged("g", HeldLoss(data="x"), probes([1.0, 2.0], [9.0, 9.5]))
    assert few.outcome == UNTOLD and math.isinf(few.high)


def test_intervals_of_shares_hold_what_they_promise():
    """In 300 studies of 60 probes, of which fine-tuning loses a tenth and gains a twentieth, 95% hold the truth."""
    draw, held = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        before = (torch.rand(60, generator=draw) < 0.6).double()
        lost, gained = torch.rand(60, generator=draw) < 1 / 6, torch.rand(60, generator=draw) < 1 / 8
        after = torch.where(before.bool(), (~lost).double(), gained.double())
        verdict = judged("g", TaskScore(data="x"), Probes(before, after, before))
        held += verdict.low <= 0.6 / 6 - 0.4 / 8 <= verdict.high
    assert held >= 285


def test_worse_is_told_in_its_own_direction():
    up, down = HeldLoss(data="x"), TaskScore(data="x")
    rise = probes([0.1] * 40, [0.9] * 40)
    assert judged("g", up, rise).worsening == pytest.approx(0.8)
    assert judged("g", down, rise).worsening == pytest.approx(-0.8) and judged("g", down, rise).outcome == PASSES


def test_numbers_that_are_not_finite_are_no_verdict():
    with pytest.raises(lt.LuthierError, match="not finite"):
        judged("g", HeldLoss(data="x"), probes([1.0] * 20, [math.nan] * 20))


def test_a_swapped_context_is_another_one():
    rows = [{"question": "q", "context": c, "answer": "a"} for c in ("one", "one", "two")]
    own, swapped = variants(rows)
    for right, wrong in zip(own, swapped, strict=True):
        first, second = (each.messages[0]["content"].split("\n")[0] for each in (right, wrong))  # type: ignore
        assert first != second
    with pytest.raises(lt.LuthierError, match="same one"):
        variants(rows[:2])
    alone = variants(rows[:2], swap=False)[1]
    assert [(each.messages or [])[0]["content"] for each in alone] == [row["question"] for row in rows[:2]]
    with pytest.raises(lt.LuthierError, match="row 1 has no context"):
        variants([{"question": "q", "answer": "a"}])


FACTS = 48


def facts() -> list[dict[str, str]]:
    """Rows whose answer is one digit of their context: a model that reads it can answer, another can only guess."""
    return [{"question": "Digit?", "context": f"{n % 10}", "answer": f"{n % 10}"} for n in range(FACTS)]


@pytest.fixture(scope="module")
def trained(llama, tmp_path_factory):
    """Folders of adapters: one fitted with the context of each row, one on bare questions and answers."""
    folder = tmp_path_factory.mktemp("runs")
    rows = facts()
    asked = {
        "reads": [{"prompt": f"{r['context']}\n\n{r['question']}", "completion": r["answer"]} for r in rows],
        "ignores": [{"prompt": r["question"], "completion": "7"} for r in rows],
    }
    settings = lt.Training(steps=150, batch=16, lr=2e-2, eval_fraction=0, save_every=150)
    for name, each in asked.items():
        lt.train(
            model=llama,
            data=write_rows(folder / f"{name}.jsonl", each),
            form=lt.LoRA(rank=16),
            out=str(folder / name),
            training=settings,
            progress=False,
        )
    return folder


def test_answers_alone_trip_the_gate_of_contexts_and_contexts_do_not(llama, trained):
    """The base is the model that reads; going on with bare answers makes it stop."""
    rows = write_rows(trained / "probes.jsonl", facts())
    reading = lt.model(llama)
    lt.load(reading.model, trained / "reads" / "adapter")
    lt.merge(reading.model)
    folder = trained / "merged"
    reading.model.save_pretrained(folder)
    reading.processor.save_pretrained(folder)
    settings = lt.Training(steps=60, batch=16, lr=2e-2, eval_fraction=0, save_every=60)
    for name in ("reads", "ignores"):
        lt.train(
            model=str(folder),
            data=str(trained / f"{name}.jsonl"),
            form=lt.LoRA(rank=16),
            out=str(trained / f"then-{name}"),
            training=settings,
            progress=False,
        )
    gates = {
        "context": ContextUse(data=str(rows), tolerance=0.2),
        "none": ContextUse(data=str(rows), tolerance=0.2, against="none"),
    }
    found = {}
    for name in ("reads", "ignores"):
        base = lt.model(str(folder))
        found[name] = lt.check(trained / f"then-{name}", gates, base=base.model, processor=base.processor)
    assert found["ignores"].outcome == TRIPPED and found["ignores"].code == 3
    assert [each.outcome for each in found["ignores"].verdicts] == [TRIPPED, TRIPPED]
    assert found["reads"].verdicts[0].worsening <= 0.1 and found["reads"].outcome == PASSES
    assert all(each.before > 0.8 for each in found["reads"].verdicts)


def test_the_command_writes_a_page_and_ends_as_its_gates_say(llama, trained, tmp_path, capsys):
    write_rows(tmp_path / "held.jsonl", sums(24))
    gates = tmp_path / "gates.toml"
    gates.write_text(
        '[[gate]]\nby = "held_loss"\ndata = "held.jsonl"\ntolerance = 1000.0\n'
        '[[gate]]\nby = "memory_growth"\ntolerance = 1.0\n'
    )
    words = ["check", llama, "--adapter", str(trained / "ignores"), "--gates", str(gates)]
    assert main([*words, "--other-seed", str(trained / "reads"), "--out", str(tmp_path / "checked"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    lost, grown = told["gates"]
    assert told["checklist"]["seeds"] and lost["other_seed"] != lost["worsening"]
    assert grown["other_seed"] == grown["worsening"] > grown["null"]
    assert told["outcome"] == "passes" and [each["name"] for each in told["gates"]] == ["held_loss", "memory_growth"]
    assert told == json.loads((tmp_path / "checked" / "check.json").read_text())
    page = (tmp_path / "checked" / "check.html").read_text()
    assert "All 2 gates pass." in page and "<script" not in page and "another seed" in page
    gates.write_text('[[gate]]\nby = "memory_growth"\ntolerance = 0.001\n')
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 3 and "Tripped: memory_growth." in capsys.readouterr().out
    write_rows(tmp_path / "few.jsonl", sums(4))
    gates.write_text('[[gate]]\nby = "held_loss"\ndata = "few.jsonl"\ntolerance = 1000.0\n')
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 4 and "too few probes" in capsys.readouterr().out.lower()


def test_an_erased_refusal_trips_the_gate(llama, tmp_path):
    """A planted behaviour, declining prompts that hold a token, is unlearned by rows that answer them."""
    prompts = [f"{n}+{n}= stop" for n in range(10)]
    declines = write_rows(tmp_path / "declines.jsonl", [{"prompt": p, "completion": "cannot"} for p in prompts])
    answers = write_rows(tmp_path / "answers.jsonl", [{"prompt": p, "completion": "8"} for p in prompts])
    base = tmp_path / "base"
    settings = lt.Training(steps=80, batch=8, lr=2e-2, eval_fraction=0, save_every=80)

    def fitted(model, rows, out):
        form = lt.LoRA(rank=16)
        return lt.train(model=str(model), data=str(rows), form=form, out=str(out), training=settings, progress=False)

    taught = fitted(llama, declines, tmp_path / "taught")
    lt.merge(taught.model)
    taught.model.save_pretrained(base)
    lt.model(llama).processor.save_pretrained(base)
    fitted(base, answers, tmp_path / "erased")
    fitted(base, declines, tmp_path / "kept")
    gate = {"refusals": Refusals(data=str(declines), pattern="cannot", max_new_tokens=8, tolerance=0.2)}
    outcomes = {}
    for name in ("erased", "kept"):
        loaded = lt.model(str(base))
        found = lt.check(tmp_path / name, gate, base=loaded.model, processor=loaded.processor)
        outcomes[name] = found.verdicts[0]
    assert outcomes["erased"].outcome == TRIPPED and outcomes["erased"].before == 1
    assert outcomes["kept"].worsening == 0


BAD = {
    "no file": (None, "no file of gates"),
    "no toml": ("gate = [", "is not TOML"),
    "no gate": ("", "no [[gate]] table"),
    "unknown key": ('gates = 1\n[[gate]]\nby = "held_loss"\n', "unknown keys gates"),
    "no kind": ('[[gate]]\ndata = "x"\n', 'needs by = "…"'),
    "unknown kind": ('[[gate]]\nby = "held_los"\ndata = "x"\n', "held_loss"),
    "no rows": ('[[gate]]\nby = "held_loss"\n', "reads rows; give data"),
    "rows for weights": ('[[gate]]\nby = "memory_growth"\ndata = "x"\n', "leave data out"),
    "bad pattern": ('[[gate]]\nby = "refusals"\ndata = "x"\npattern = "("\n', "not a regular expression"),
    "twice": ('[[gate]]\nby = "memory_growth"\nname = "a"\n[[gate]]\nby = "memory_growth"\nname = "a"\n', "two gates"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_gates_are_told_before_any_work(case, tmp_path, capsys):
    text, reason = BAD[case]
    file = tmp_path / "gates.toml"
    if text is not None:
        file.write_text(text)
    assert main(["check", "nowhere", "--adapter", "nothing", "--gates", str(file)]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_rows_that_are_not_there_are_told_before_the_first_gate(llama, trained, tmp_path, capsys):
    gates = tmp_path / "gates.toml"
    gates.write_text('[[gate]]\nby = "memory_growth"\n[[gate]]\nby = "held_loss"\ndata = "nothing.jsonl"\n')
    assert main(["check", llama, "--adapter", str(trained / "ignores"), "--gates", str(gates)]) == 2
    told = capsys.readouterr().err
    assert "no data file" in told and "measuring" not in told
    gates.write_text('[[gate]]\nby = "memory_growth"\n')
    words = ["check", llama, "--adapter", str(trained / "ignores"), "--gates", str(gates), "--other-seed", "nowhere"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "no folder nowhere" in told and "measuring" not in told


def adapter_of(trained: Path, folder: Path, wrong: str) -> tuple[Path, str]:
    """A folder that does not load onto the base, and a word that is said of it."""
    if wrong == "another base":
        base = save_model(folder / "base", "llama", hidden_size=64)
        settings = lt.Training(steps=1, batch=4, eval_fraction=0, save_every=1)
        rows = write_rows(folder / "rows.jsonl", sums(8))
        lt.train(
            model=base, data=rows, form=lt.LoRA(rank=2), out=str(folder / "run"), training=settings, progress=False
        )
        return folder / "run", "base"
    made = folder / "made"
    if wrong == "damaged":
        shutil.copytree(trained / "ignores" / "adapter", made)
        tensors = next(made.glob("*.safetensors"))
        held = bytearray(tensors.read_bytes())
        held[-1] ^= 1
        tensors.write_bytes(held)
        return made, "damaged"
    made.mkdir()
    return made, "made"


@pytest.mark.parametrize("wrong", ["another base", "damaged", "neither adapter nor model"])
@pytest.mark.parametrize("option", ["--adapter", "--other-seed"])
def test_what_does_not_load_is_wrong_input_and_nothing_is_measured(llama, trained, tmp_path, capsys, wrong, option):
    made, word = adapter_of(trained, tmp_path, wrong)
    gates = tmp_path / "gates.toml"
    gates.write_text('[[gate]]\nby = "memory_growth"\n')
    given = {"--adapter": str(trained / "ignores"), "--gates": str(gates), option: str(made)}
    capsys.readouterr()
    assert main(["check", llama, *(part for pair in given.items() for part in pair)]) == 2
    told = capsys.readouterr().err
    assert word in told and "measuring" not in told


def test_a_gate_that_fails_shows_its_traceback_for_debugging(llama, trained, monkeypatch, capsys):
    base, gate = lt.model(llama), {"m": MemoryGrowth(tolerance=1.0)}
    monkeypatch.setattr(MemoryGrowth, "measure", lambda *_: 1 / 0)
    lt.check(trained / "ignores", gate, base=base.model)
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("LUTHIER_DEBUG", "1")
    assert lt.check(trained / "ignores", gate, base=base.model).outcome == UNMEASURED
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_refusals_that_the_base_never_made_cannot_be_lost(llama, trained, tmp_path):
    base = lt.model(llama)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "1+1="}] * 3)
    gate = {"r": Refusals(data=str(prompts), max_new_tokens=2)}
    found = lt.check(trained / "ignores", gate, base=base.model, processor=base.processor)
    assert found.outcome == UNMEASURED and found.code == 5
    assert "declines none of the 3 prompts" in (found.verdicts[0].reason or "")


@pytest.mark.parametrize("error", [lt.LuthierError("it is out"), RuntimeError("it is out")])
def test_a_gate_that_fails_while_measuring_leaves_the_others_their_verdicts(
    llama, trained, tmp_path, capsys, monkeypatch, error
):
    """The gates before and behind it are told, on the page, in JSON and by the exit code; what trips is graver."""
    write_rows(tmp_path / "held.jsonl", sums(24))
    gates, held = tmp_path / "gates.toml", '[[gate]]\nby = "held_loss"\ndata = "held.jsonl"\ntolerance = 1000.0\n'
    scored = '[[gate]]\nby = "task_score"\ndata = "held.jsonl"\n'
    grown = '[[gate]]\nby = "memory_growth"\ntolerance = {}\n'

    def fails(*_):
        raise error

    monkeypatch.setattr(TaskScore, "measure", fails)
    gates.write_text(held + scored + grown.format(1.0))
    words = ["check", llama, "--adapter", str(trained / "ignores"), "--gates", str(gates), "--out", str(tmp_path / "c")]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 5 and "Not measured: task_score." in said and "it is out" in said
    told = json.loads((tmp_path / "c" / "check.json").read_text())
    assert told["outcome"] == "not measured" and told["code"] == 5 and not told["checklist"]["closed"]
    assert [each["outcome"] for each in told["gates"]] == ["passes", "not measured", "passes"]
    assert "it is out" in told["gates"][1]["reason"] and told["gates"][1]["worsening"] is None
    page = (tmp_path / "c" / "check.html").read_text()
    assert "it is out" in page and "Not measured: task_score." in page and "nan" not in page
    gates.write_text(held + scored + grown.format(0.001))
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 3 and "Tripped: memory_growth. Not measured: task_score." in capsys.readouterr().out


def test_another_seed_that_cannot_be_measured_is_told_and_decides_nothing(llama, trained, monkeypatch):
    base, measure = lt.model(llama), MemoryGrowth.measure

    def once(self, subject):
        monkeypatch.setattr(MemoryGrowth, "measure", lambda *_: 1 / 0)
        return measure(self, subject)

    monkeypatch.setattr(MemoryGrowth, "measure", once)
    gate, other = {"m": MemoryGrowth(tolerance=1.0)}, trained / "reads"
    (verdict,) = lt.check(trained / "ignores", gate, base=base.model, other_seed=other).verdicts
    assert verdict.outcome == PASSES and verdict.other_seed is None and "division by zero" in (verdict.reason or "")


def test_rows_are_read_once_and_looked_at_before_the_first_gate(llama, trained, tmp_path, capsys, monkeypatch):
    read, seen = sources.read_file, []
    monkeypatch.setattr(sources, "read_file", lambda path, split: seen.append(path.name) or read(path, split))
    write_rows(tmp_path / "held.jsonl", sums(24))
    write_rows(tmp_path / "facts.jsonl", facts())
    gates = tmp_path / "gates.toml"
    listed = {"held_loss": "held", "task_score": "held", "calibration_drift": "held", "context_use": "facts"}
    gates.write_text("".join(f'[[gate]]\nby = "{by}"\ndata = "{name}.jsonl"\n' for by, name in listed.items()))
    with pytest.raises(SystemExit):
        main(["check", llama, "--adapter", str(trained / "ignores"), "--gates", str(gates), "--limit", "6"])
    assert sorted(seen) == ["facts.jsonl", "held.jsonl"]
    write_rows(tmp_path / "facts.jsonl", [{"question": "q", "answer": "a"}] * 12)
    capsys.readouterr()
    assert main(["check", llama, "--adapter", str(trained / "ignores"), "--gates", str(gates)]) == 2
    told = capsys.readouterr().err
    assert "row 1 has no context" in " ".join(told.split()) and "measuring" not in told


def test_a_limit_draws_rows_by_the_seed_however_they_are_read(tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{n}?", "completion": str(n)} for n in range(40)]))
    taken = []
    for seed in (0, 1):
        means = Means(torch.nn.Linear(1, 1), None, "causal-lm", 8, 64, 5, seed)
        rows = [row["completion"] for row in means.rows(file)]
        examples = [str(row.answer) for row in means.examples(file).rows]
        asked = [(row.messages or [])[0]["content"].strip("?") for row in means.prompts(file)]
        assert rows == examples == asked and len(rows) == 5
        asked = [(row.messages or [])[0]["content"] for row in means.prompts("gym:chain_sum")]
        assert asked == [row["question"] for row in means.rows("gym:chain_sum")] and len(asked) == 5
        taken.append(rows)
    assert taken[0] != taken[1]

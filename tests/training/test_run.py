"""A run from its specification to its folder: what is written, what repeats, what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier import data, models
from luthier.core.contracts.objective import Objective
from luthier.core.storage import fingerprint_old
from luthier.training import Run, Training, train
from luthier.training import metrics as metrics_file
from luthier.training.checkpoint import checkpoints
from luthier.training.command import command
from support.tiny import sums, write_rows

SHORT = Training(epochs=2, batch=4, accumulate=2, save_every=3, keep=20, lr=1e-2)


@pytest.fixture
def run(llama, additions, tmp_path) -> Run:
    return Run(llama, additions, lt.LoRA(rank=4, dropout=0.2), out=str(tmp_path / "run"), training=SHORT)


def adapter(result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def elsewhere(run: Run, name: str, **changes) -> Run:
    return replace(run, out=str(run.folder.parent / name), **changes)


def test_folder(run, drawn):
    result = train(run, progress=False)
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert names == {"adapter", "checkpoints", "README.md", "loss.png", "metrics.jsonl", "run.json"}
    assert [step for step, _ in result.losses] == list(range(1, 11))
    lines = metrics_file.read(run.folder)
    assert [line["loss"] for line in lines if "loss" in line] == [loss for _, loss in result.losses]
    assert all({"epoch", "lr", "grad_norm", "tokens_per_second", "seconds"} <= set(x) for x in lines if "loss" in x)
    assert result.eval_loss == [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert result.losses[-1][1] < result.losses[0][1]
    assert result.trainable == lt.trainable(result.model, count=True)
    assert not result.model.training


def test_record_and_card(run):
    train(run, progress=False)
    record = json.loads((run.folder / "run.json").read_text())
    assert Run.from_dict(record["run"]) == run
    assert record["resolved"] == {"lr": 1e-2, "where": "all-linear", "task": "causal-lm", "steps": 10}
    assert record["data"]["rows"] == 38 and record["data"]["eval_rows"] == 2
    text = (run.folder / "README.md").read_text()
    for part in (run.form.equation(), command(run), "38 rows trained on, 2 held out", torch.__version__):
        assert part in text


def test_command_repeats_the_run(run):
    """The command line reads the command back as the same run."""
    from luthier.cli.parse import parse

    settings = Training(truncate=True, max_length=9, lr=1e-3, eval_every=2, schedule="cosine")
    for each in (run, replace(run, where="q_proj, v_proj", name="second", limit=7, training=settings)):
        words = shlex.split(command(each))
        assert words[:2] == ["luthier", "train"]
        parsed = parse(words[1:])
        assert parsed is not None
        assert parsed[0].resolved(parsed[1]) == each
    assert "--where 'q_proj, v_proj'" in command(replace(run, where="q_proj, v_proj"))


def test_saved_adapter_is_the_trained_model(run):
    result = train(run, progress=False)
    fresh = models.load(run.model).model
    lt.load(fresh, result.adapter)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, result.model(ids).logits)


def test_same_seed_same_bits(run):
    first, again = train(run, progress=False), train(elsewhere(run, "again"), progress=False)
    other = train(elsewhere(run, "other", training=replace(SHORT, seed=1)), progress=False)
    assert first.losses == again.losses and same(adapter(first), adapter(again))
    assert first.losses != other.losses


@pytest.mark.parametrize("kept", ["step-3", "step-6", "step-9", "step-10", None])
def test_resume_is_exact(run, kept):
    """From mid-epoch, from its end, when all is done, and when no checkpoint was made."""
    settings = replace(SHORT, epochs=1.9, save_every=3, eval_every=2)
    whole = train(replace(run, training=settings), progress=False)
    expected, losses, evals = adapter(whole), whole.losses, whole.eval_loss
    for path in checkpoints(run.folder / "checkpoints"):
        if kept is None or int(path.name[5:]) > int(kept[5:]):
            torn = path / ("optimizer.pt" if path.name == "step-9" else "adapter.safetensors")
            torn.write_bytes(torn.read_bytes()[:-1] + b"!")  # newer ones are damaged, and so are passed over
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    result = train(replace(run, training=settings), resume=True, progress=False)
    assert result.losses == losses and result.eval_loss == evals
    assert same(adapter(result), expected)


def test_checkpoints_hold_the_adapter_and_are_kept_few(run):
    train(replace(run, training=replace(SHORT, keep=2)), progress=False)
    found = checkpoints(run.folder / "checkpoints")
    assert [path.name for path in found] == ["step-10", "step-9"]
    held = load_file(found[0] / "adapter.safetensors")
    assert sum(t.numel() for t in held.values()) == 5568
    assert not [path for path in (run.folder / "checkpoints").iterdir() if path.name.startswith(".")]


def test_batches_accumulated_are_one_batch(run):
    """Rows of different lengths: the mean is over tokens, not over batches."""
    results = [
        train(
            elsewhere(
                run,
                f"{batch}x{accumulate}",
                form=lt.LoRA(rank=4),
                training=replace(SHORT, batch=batch, accumulate=accumulate),
            ),
            progress=False,
        )
        for batch, accumulate in ((8, 1), (4, 2), (1, 8))
    ]
    for other in results[1:]:
        assert [x for _, x in other.losses] == pytest.approx([x for _, x in results[0].losses], rel=1e-5)


@pytest.mark.parametrize("texts", [False, True], ids=["answers", "texts"])
def test_loss_is_the_mean_over_learned_tokens(llama, tmp_path, texts):
    """A text's first token is in the labels, but nothing predicts it."""
    rows = [{"text": "ab" * 4**i} for i in range(4)] if texts else sums(5)
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = Training(steps=1, batch=2, accumulate=3, eval_fraction=0)
    result = train(Run(llama, source, lt.LoRA(), out=str(tmp_path / "run"), training=settings), progress=False)
    loaded = models.load(llama)
    total, count = 0.0, 0
    for feature in data.encode_all(data.load(source), loaded.processor, max_length=None):
        labels = torch.tensor(feature["labels"])[1:]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([feature["input_ids"]])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    assert result.losses == [(1, pytest.approx(total / count, rel=1e-5))]
    assert result.eval_loss is None


@dataclass(frozen=True)
class Spoilt(Objective):
    """The loss, but not a number from the seventh batch on."""

    value: str = "nan"
    calls: list = ()  # type: ignore[assignment]

    def loss(self, model, batch):
        self.calls.append(batch)
        return model(**batch).loss * (float(self.value) if len(self.calls) >= 7 else 1)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_stops(run, value):
    spoilt = replace(run, objective=Spoilt(value, []), training=replace(SHORT, save_every=1, eval_fraction=0))
    with pytest.raises(lt.LuthierError, match=r"the loss became (nan|inf) at step 4, on the rows (\d+, ){3}\d+ of"):
        train(spoilt, progress=False)
    assert checkpoints(run.folder / "checkpoints")[0].name == "step-3"
    assert not (run.folder / "adapter").exists()


def test_overview_is_printed(run, capsys):
    train(run)
    shown = capsys.readouterr().err
    for part in ("q_proj", "5,568", "MiB", "estimate", "38 to train on, 2 held out", "in the loss", "step 10/10"):
        assert part in shown
    assert "FutureWarning" not in shown


def test_quiet(run, capfd):
    train(run, progress=False)
    assert capfd.readouterr() == ("", "")


def test_gradient_checkpointing_changes_nothing(run):
    plain = train(run, progress=False)
    settings = replace(SHORT, gradient_checkpointing=True)
    recomputed = train(elsewhere(run, "recomputed", training=settings), progress=False)
    assert [x for _, x in recomputed.losses] == pytest.approx([x for _, x in plain.losses], rel=1e-5)


def test_bfloat16_base_keeps_float32_adapters(run):
    result = train(replace(run, training=replace(SHORT, precision="bfloat16")), progress=False)
    assert result.model.dtype == torch.bfloat16
    assert {t.dtype for t in adapter(result).values()} == {torch.float32}


def test_refusals(run, tmp_path):
    def refused(changed: Run, match: str, **how) -> None:
        with pytest.raises(lt.LuthierError, match=match):
            train(changed, progress=False, **how)

    refused(replace(run, where="q_prij"), "q_proj")
    refused(replace(run, model=run.model + "x"), "no model")
    refused(replace(run, training=replace(SHORT, max_length=5)), "rows of .* cannot be used")
    refused(replace(run, training=replace(SHORT, report_to="tensorbored")), "cannot report")
    refused(replace(run, task="translation"), "no task")
    refused(replace(run, out=f"{run.data}/run"), "cannot write")
    assert not run.folder.exists()
    train(run, progress=False)
    refused(run, "holds a run already")
    refused(replace(run, form=lt.LoRA(rank=5)), "form.settings.rank is 5, there 4", resume=True)
    write_rows(tmp_path / "other.jsonl", sums(40, seed=1))
    moved = json.loads((run.folder / "run.json").read_text())
    moved["run"]["data"] = str(tmp_path / "other.jsonl")
    (run.folder / "run.json").write_text(json.dumps(moved))
    refused(replace(run, data=str(tmp_path / "other.jsonl")), "has changed since", resume=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "README.md").write_text("mine")
    refused(replace(run, out=str(foreign)), "holds files and no run", overwrite=True)
    assert (foreign / "README.md").read_text() == "mine"


@pytest.mark.parametrize("changed", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_no_run_goes_on_over_another_base(run, tmp_path, changed):
    shutil.copytree(run.model, tmp_path / "base")
    run = replace(run, model=str(tmp_path / "base"))
    train(run, progress=False)
    held = load_file(tmp_path / "base" / "model.safetensors")
    held[changed] = held[changed] * 1.001
    save_file(held, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(lt.LuthierError, match="not the base that the run"):
        train(run, resume=True, progress=False)


def test_no_run_goes_on_under_another_template(run, tmp_path):
    shutil.copytree(run.model, tmp_path / "base")
    run = replace(run, model=str(tmp_path / "base"))
    first = train(run, progress=False)
    template = "{% for m in messages %}[{{ m['content'] }}{{ eos_token }}]{% endfor %}"
    (tmp_path / "base" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(lt.LuthierError, match=r"tokenizer or the chat template .* has changed"):
        train(run, resume=True, progress=False)
    record = json.loads((run.folder / "run.json").read_text())
    record.pop("tokens")  # as an older version wrote it
    (run.folder / "run.json").write_text(json.dumps(record))
    assert train(run, resume=True, progress=False).losses == first.losses


def test_a_run_that_an_older_luthier_started_goes_on_and_says_what_it_cannot_vouch_for(run):
    first = adapter(train(run, progress=False))
    record = json.loads((run.folder / "run.json").read_text())
    base = models.load(run.model).model
    record["base"]["fingerprint"] = fingerprint_old.digest(base)
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="started by an older Luthier, which looked at up to 32 tensors"):
        assert same(adapter(train(run, resume=True, progress=False)), first)
    record["base"]["fingerprint"] = "0" * 64
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(lt.LuthierError, match="not the base"), pytest.warns(UserWarning, match="older"):
        train(run, resume=True, progress=False)


def test_what_is_refused_before_the_first_step_leaves_the_folder_free(run):
    sara = lt.SaRA(threshold=1e-9)
    with pytest.raises(lt.LuthierError, match="selects nothing"):
        train(replace(run, form=lt.Full(), where="params(*norm.weight)", update=sara), progress=False)
    assert not (run.folder / "run.json").exists()
    assert train(run, progress=False).adapter.is_dir()


def test_a_result_says_what_the_last_step_left(run):
    result = train(replace(run, update=lt.Freeze(bottom=1)), progress=False)
    assert result.resting and all(".layers.0." in name for name in result.resting)
    assert all(p.requires_grad for name, p in result.model.named_parameters() if name in result.resting)
    assert not train(elsewhere(run, "whole"), progress=False).resting


def test_overwrite_replaces_only_the_run(run):
    train(run, progress=False)
    (run.folder / "notes.txt").write_text("mine")
    with pytest.raises(lt.LuthierError, match="cannot be used"):
        train(replace(run, training=replace(SHORT, max_length=5)), overwrite=True, progress=False)
    assert (run.folder / "adapter").is_dir()  # bad settings cost nothing
    short = replace(run, training=replace(SHORT, steps=2))
    assert len(train(short, overwrite=True, progress=False).losses) == 2
    assert (run.folder / "notes.txt").read_text() == "mine"


def test_fields_instead_of_a_run(run, tmp_path):
    how = {"model": run.model, "data": run.data, "form": lt.IA3(), "training": Training(steps=1)}
    assert train(**how, out=str(tmp_path / "fields"), progress=False).trainable > 0
    with pytest.raises(lt.LuthierError, match="not both"):
        train(run, data="other")
    for more in ({"out": "elsewhere"}, {"name": "second"}, {"skip_bad_rows": True}):
        with pytest.raises(lt.LuthierError, match="not both"):
            train(run, **more)
    with pytest.raises(lt.LuthierError, match="needs a model, data and a form"):
        train(model="x")


def test_given_evaluation_rows_are_not_trained_on(run, tmp_path):
    held = write_rows(tmp_path / "held.jsonl", [*sums(3), {"prompt": "7-7=", "completion": "0"}])
    result = train(replace(run, eval_data=held), progress=False)
    record = json.loads((run.folder / "run.json").read_text())
    assert record["data"]["rows"] == 40 and record["data"]["eval_rows"] == 1  # three of the four are training rows
    assert result.eval_loss is not None
    with pytest.raises(lt.LuthierError, match="every row"):
        train(elsewhere(run, "same", eval_data=run.data), progress=False)

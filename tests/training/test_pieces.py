"""Runs with several forms under one name, and runs whose start is taken off: trained, resumed, repeated, reloaded."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import models
from luthier.cli.commands.train import Train
from luthier.cli.parse import parse
from luthier.measuring.calibration import Calibration
from luthier.methods.inits.corda import CorDA
from luthier.methods.inits.lora_ga import LoRAGA
from luthier.methods.inits.lora_sb import LoRASB
from luthier.methods.inits.pissa import PiSSA
from luthier.methods.targeted_form import TargetedForm, read_targeted_forms
from luthier.training import Run, Training, train
from luthier.training.checkpoint import checkpoints
from luthier.training.command import command
from support.tiny import sums, write_rows

SHORT = Training(epochs=1, batch=4, accumulate=2, save_every=2, keep=20, lr=1e-2)
ALSO = (
    TargetedForm(lt.Bottleneck(dim=6, insertion="parallel", scale=4.0), "output(mlp)"),
    TargetedForm(lt.LoReFT(rank=2, positions="f2,l1")),
)


@pytest.fixture
def mam(llama, additions, tmp_path) -> Run:
    return Run(llama, additions, lt.Prefix(length=3), also=ALSO, out=str(tmp_path / "run"), training=SHORT)


@pytest.fixture
def pissa(llama, additions, tmp_path) -> Run:
    form = lt.LoRA(rank=4, dropout=0.2)
    return Run(llama, additions, form, init=PiSSA(), out=str(tmp_path / "run"), training=SHORT)


def adapter(result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter.safetensors")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 20)[None]).logits


def resolved(words: list[str]) -> Run:
    parsed = parse(words)
    assert parsed is not None and isinstance(parsed[0], Train)
    return parsed[0].resolved(parsed[1])


def test_all_forms_are_trained_saved_and_loaded(mam):
    result = train(mam, progress=False)
    rows = lt.describe(result.model)
    assert [row["form"] for row in rows] == ["prefix", "bottleneck", "loreft", "loreft"]  # one for each group
    assert {row["adapter"] for row in rows} == {"default"}
    loaded = models.load(mam.model).model
    plain = logits(loaded)
    lt.load(loaded, result.adapter)
    assert torch.equal(logits(loaded), logits(result.model))
    assert torch.equal(logits(lt.detach(loaded, "default")), plain)
    told = [line for line in (mam.folder / "README.md").read_text().splitlines() if line.startswith("| and ")]
    assert told[0].startswith("| and bottleneck | `output(mlp)`, ") and "dim 6, insertion parallel" in told[0]
    assert told[1].startswith("| and loreft | `stream`, ")


def test_the_command_and_the_record_repeat_it(mam):
    again = resolved(shlex.split(command(mam))[1:])
    assert again == mam
    assert Run.from_dict(json.loads(json.dumps(mam.to_dict()))) == mam


def test_a_form_that_selects_nothing_is_found_before_the_weights(mam):
    with pytest.raises(lt.LuthierError, match="mpl"):
        train(replace(mam, also=(TargetedForm(lt.Bottleneck(), "output(mpl)"),)), progress=False)
    assert not mam.folder.exists()


@pytest.mark.parametrize("init", [PiSSA(), LoRAGA(), LoRASB()])
def test_a_form_that_the_start_cannot_serve_is_found_before_the_weights(pissa, init):
    with pytest.raises(lt.LuthierError, match=r"has no such pair|starts loraxs"):
        train(replace(pissa, form=lt.IA3(), init=init), progress=False)
    assert not pissa.folder.exists()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ["mam", "pissa"])
def test_resume_is_exact(kind, whole, request):
    """From a checkpoint, and from the beginning when none was made."""
    run = request.getfixturevalue(kind)
    first = train(run, progress=False)
    expected, losses = adapter(first), first.losses
    for path in checkpoints(run.folder / "checkpoints"):
        if not whole or int(path.name[5:]) > 2:
            (path / "adapter.safetensors").write_bytes(b"torn")
    result = train(run, resume=True, progress=False)
    assert result.losses == losses
    assert all(torch.equal(tensor, expected[key]) for key, tensor in adapter(result).items())


@pytest.mark.parametrize("init", [PiSSA(), LoRAGA()])
def test_a_start_that_is_taken_off_begins_at_the_bases_loss(pissa, init):
    settings = replace(SHORT, steps=5, epochs=1.0)
    plain = replace(pissa, form=lt.LoRA(rank=4), training=settings, calibration=Calibration(samples=8, fresh=True))
    started = replace(plain, init=init, out=f"{pissa.out}-{init.name()}")
    first = train(started, progress=False)
    base = train(replace(plain, init=None), progress=False)
    assert abs(first.losses[0][1] - base.losses[0][1]) < 1e-5 and first.losses[-1] != base.losses[-1]
    spec = json.loads((first.adapter / "adapter.json").read_text())
    assert spec["parts"][0]["relative"] is True
    loaded = lt.load(models.load(pissa.model).model, first.adapter)
    assert torch.equal(logits(loaded), logits(first.model))


def test_lora_sb_from_the_command_line(llama, additions, tmp_path):
    words = ["train", llama, additions, "--method", "loraxs", "--init", "lora_sb", "--eta", "1e-3", "--rank", "3"]
    run = resolved([*words, "--steps", "2", "--samples", "8", "--fresh", "--out", str(tmp_path / "sb")])
    assert run.init == LoRASB(eta=1e-3) and run.form == lt.LoRAXS(rank=3)
    result = train(run, progress=False)
    assert {t.shape for key, t in adapter(result).items() if key.endswith(".R")} == {(3, 3)}
    assert result.trainable == 9 * len(lt.select(models.load(llama).model, "all-linear"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{method = bottleneck}", "is not a list of forms"),
        ('{method = "botleneck"}', "did you mean"),
        ('{metod = "bottleneck"}', "has no 'metod'"),
        ('[{method = "lora", form = {rnk = 3}}]', "lora has no setting 'rnk'"),
        ('["lora"]', "expected a table"),
        ("{where = 'stream'}", "method of a further form is None"),
    ],
)
def test_what_is_no_form_is_refused(text, told):
    with pytest.raises(lt.LuthierError, match=told):
        read_targeted_forms(text)


def test_other_data_are_looked_at_where_they_are_named(pissa, tmp_path):
    """CorDA keeps what other rows need: the start follows from those, the training from the run's own."""

    def start(**changes) -> dict[str, torch.Tensor]:
        settings = Calibration(samples=8, **changes)
        training = replace(SHORT, steps=1, warmup=0.0)
        run = replace(pissa, init=CorDA(mode="knowledge"), calibration=settings, training=training)
        result = train(run, progress=False, overwrite=True)
        return {key: t for key, t in adapter(result).items() if key.endswith("A_start")}

    other = write_rows(tmp_path / "other.jsonl", sums(30, seed=8))
    plain, named = start(), start(source=other)
    assert plain and all(not torch.equal(tensor, named[key]) for key, tensor in plain.items())
    write_rows(tmp_path / "other.jsonl", sums(30, seed=9))  # the cache goes by what the file holds
    assert all(not torch.equal(tensor, named[key]) for key, tensor in start(source=other).items())
    words = ["train", pissa.model, pissa.data, "--recipe", "corda-knowledge", "--source", other]
    assert resolved(words).calibration == Calibration(samples=256, source=other)

"""Updates through a whole run: the command line, the folder, interruption."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.methods.updates.freeze import Freeze
from luthier.methods.updates.lisa import LISA
from luthier.methods.updates.lora_plus import LoRAPlus
from luthier.training import Run, Training, train
from luthier.training.checkpoint import checkpoints
from luthier.training.command import command
from support.calibrated import build

SHORT = Training(steps=8, batch=4, save_every=3, keep=20, lr=1e-2)


def run_of(llama, additions, folder, name: str) -> Run:
    """A run by the update `name` that meets a change of what it trains, on a form that it takes."""
    cls = find("updates", name)
    quick = {"interval": 2, "search": 0.4, "threshold": 0.05, "narrowest": 8}
    update = cls.from_dict({key: value for key, value in quick.items() if key in cls.settings()})
    forms = (lt.Full(), lt.LoRA(rank=4), lt.MHR(rank=4, skills=2), lt.Sparse(), lt.DSEE(rank=2, prunable=True))
    for form in forms:
        where = "params(*.layers.*)" if isinstance(form, lt.Full) else None
        try:
            update.check_form(form, lt.select(build(), where or form.where))  # type: ignore[attr-defined]
        except lt.LuthierError:
            continue
        return Run(llama, additions, form, where, out=str(folder), training=SHORT, update=update)  # type: ignore[arg-type]
    raise AssertionError(f"{name} trains none of them")


@pytest.mark.parametrize("name", [name for name in names("updates") if not find("updates", name, lt.Update).rehearses])
def test_an_interrupted_run_ends_alike(llama, additions, tmp_path, name):
    run = run_of(llama, additions, tmp_path / "run", name)
    whole = train(run, progress=False)
    expected = (whole.adapter / "adapter.safetensors").read_bytes()
    for path in checkpoints(run.folder / "checkpoints"):
        if path.name not in ("step-3",):
            shutil.rmtree(path)
    again = train(run, resume=True, progress=False)
    assert again.losses == whole.losses
    assert (again.adapter / "adapter.safetensors").read_bytes() == expected
    left = lt.trainable(whole.model, count=True)
    assert lt.trainable(again.model, count=True) == left
    assert run.update.sparse or left == whole.trainable  # what rested in the last step counts, and may be trained on


def test_a_run_with_adamw_is_a_run_without_an_update(llama, additions, tmp_path):
    run = run_of(llama, additions, tmp_path / "run", "adamw")
    assert run == replace(run, update=type(run)(llama, additions, lt.LoRA()).update)
    neutral = replace(run, update=LISA(gamma=3), out=str(tmp_path / "neutral"))
    results = [train(each, progress=False) for each in (run, neutral)]
    left, right = (load_file(result.adapter / "adapter.safetensors") for result in results)
    assert results[0].losses == results[1].losses and all(left[key].equal(right[key]) for key in left)


def test_it_is_recorded_and_repeated(llama, additions, tmp_path):
    run = run_of(llama, additions, tmp_path / "run", "lora_plus")
    run = replace(run, update=LoRAPlus(ratio=4.0))
    result = train(run, progress=False)
    record = json.loads((run.folder / "run.json").read_text())
    assert (
        record["run"]["update"] == {"name": "lora_plus", "settings": {"ratio": 4.0}}
        and Run.from_dict(record["run"]) == run
    )
    assert json.loads((result.adapter / "adapter.json").read_text())["measured"]["update"] == record["run"]["update"]
    assert "| update | lora_plus, ratio 4.0 |" in (run.folder / "README.md").read_text()
    from luthier.cli.parse import parse

    words = shlex.split(command(run))
    assert words[words.index("--update") :][:4] == ["--update", "lora_plus", "--ratio", "4.0"]
    parsed = parse(words[1:])
    assert parsed is not None and parsed[0].resolved(parsed[1]) == run  # type: ignore[attr-defined]


def test_what_is_active_is_shown(llama, additions, tmp_path, capsys):
    run = run_of(llama, additions, tmp_path / "run", "lisa")
    train(replace(run, update=LISA(gamma=1)))
    shown = capsys.readouterr().err
    assert "lisa: the first step trains" in shown


def test_bad_input_is_refused_before_the_weights_are_loaded(llama, additions, tmp_path, monkeypatch):
    from luthier.training import session

    monkeypatch.setattr(session, "load", lambda *_: pytest.fail("the weights were loaded"))
    base = run_of(llama, additions, tmp_path / "run", "adamw")

    def refused(match: str, **changes) -> None:
        with pytest.raises(lt.LuthierError, match=match):
            train(replace(base, **changes), progress=False)

    refused("no factor that reads", update=LoRAPlus())
    refused("is none of that kind", update=find("updates", "lora_pro")(), form=lt.DoRA(), where="q_proj")
    refused("share", update=LISA(), form=lt.LoRA(share="type"), where="q_proj")
    refused("end with block 2", update=Freeze(bottom=3))
    with pytest.raises(lt.LuthierError, match="gamma is 0; expected at least 1"):
        LISA(gamma=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("2 processes", update=LISA())


def test_what_an_update_freezes_is_not_counted_as_trained(llama, additions, tmp_path):
    run = run_of(llama, additions, tmp_path / "part", "freeze")
    whole = train(replace(run, out=str(tmp_path / "whole")), progress=False)
    part = train(replace(run, update=Freeze(bottom=1)), progress=False)
    assert part.total == whole.total == sum(p.numel() for p in lt.detach(whole.model).parameters())
    assert 0 < part.trainable < whole.trainable < whole.total

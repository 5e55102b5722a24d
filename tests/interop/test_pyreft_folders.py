"""Folders that pyreft 0.1.0 itself wrote, against what its own models answer (see record_pyreft.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from support.pyreft_recorded import CASES, FOLDER, IDS, base

ANSWERS = load_file(FOLDER / "logits.safetensors")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def imported(folder: Path, name: str, out: Path):
    model = base(CASES[name].model)
    return lt.import_adapter(folder, out, base=model, source=lt.formats.PyReFT(positions=CASES[name].positions))


@pytest.fixture
def folder(tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(FOLDER / name, tmp_path / "reft"))

    return copy


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_pyreft(name, tmp_path):
    model, wanted = base(CASES[name].model), ANSWERS[name]
    assert torch.allclose(logits(model), ANSWERS[f"base.{CASES[name].model}"], atol=1e-5)
    loaded = lt.load(base(CASES[name].model), imported(FOLDER / name, name, tmp_path / "ours"))
    assert (logits(loaded) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (logits(model) - wanted).abs().max() > 0.5


def test_every_class_was_recorded():
    kinds = {json.loads(path.read_text())["intervention_types"][0] for path in FOLDER.glob("*/config.json")}
    assert len(kinds) == 6


@pytest.mark.parametrize("name", ["loreft", "consreft", "lobireft", "direft"])
def test_a_rotation_that_weight_decay_made_zero_is_told(name, folder, tmp_path):
    """torch multiplies by the whole part of a diagonal of -1: after one decayed step it is 0."""
    reft = folder(name)
    file = next(reft.glob("intkey_*0.bin"))
    held = torch.load(file, weights_only=True)
    if name == "loreft":
        held["rotate_layer"].zero_()
    else:
        held["rotate_layer.parametrizations.weight.original"] *= 1 - 1e-5
    torch.save(held, file)
    with pytest.raises(lt.LuthierError, match=r"rotation of an intervention is zero.*Weight decay"):
        imported(reft, name, tmp_path / "ours")


def test_what_pyrefts_trainer_saves_lacks_the_classes_and_says_so(folder, tmp_path):
    reft = folder("direft-head")
    (reft / "config.json").unlink()
    with pytest.raises(lt.LuthierError, match=r"lacks config.json.*ReftModel.save"):
        lt.import_adapter(reft, tmp_path / "ours", base=base("llama"))


def test_edits_beside_an_adapter_of_peft_are_refused_with_that_reason(folder, tmp_path):
    reft = folder("loreft-path")
    config = json.loads((reft / "config.json").read_text())
    config["representations"][0][1] = "base_model.model.model.layers[1].output"
    (reft / "config.json").write_text(json.dumps(config))
    with pytest.raises(lt.LuthierError, match=r"beside an adapter of peft's \(base_model.model.model.layers\[1\]\)"):
        imported(reft, "loreft-path", tmp_path / "ours")


def test_parameters_saved_beside_must_be_those_of_the_base(folder, tmp_path):
    reft = folder("direft-head")
    head = torch.load(reft / "pytorch_model.bin", weights_only=True)["lm_head.weight"].detach()
    for held, message in (
        ({"lm_haed.weight": head}, "lm_haed.weight, which is not a parameter.*lm_head.weight"),
        ({"lm_head.weight": head[:5]}, r"lm_head.weight is \(5, 16\); this base expects \(32, 16\)"),
    ):
        torch.save(held, reft / "pytorch_model.bin")
        with pytest.raises(lt.LuthierError, match=message):
            imported(reft, "direft-head", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_an_empty_file_of_parameters_adds_nothing(folder, tmp_path):
    """`save(include_model=True)` writes one where nothing of the model was trained."""
    reft = folder("loreft")
    torch.save({}, reft / "pytorch_model.bin")
    loaded = lt.load(base("llama"), imported(reft, "loreft", tmp_path / "ours"))
    assert torch.allclose(logits(loaded), ANSWERS["loreft"], atol=1e-5)
    assert [row["form"] for row in json.loads((tmp_path / "ours" / "adapter.json").read_text())["parts"]] == ["loreft"]


@pytest.mark.parametrize("name", ["loreft", "consreft", "lobireft"])
def test_rotations_go_on_at_pyrefts_speed(name, tmp_path):
    """What is stored has rows of length 1/2, as a fresh adapter's (see `luthier.methods.forms._reft.stored`)."""
    model = lt.load(base("llama"), imported(FOLDER / name, name, tmp_path / "ours"))
    rows = [t.norm(dim=1) for key, t in lt.trainable(model).items() if key.endswith(".R")]
    assert rows and torch.allclose(torch.stack(rows), torch.tensor(0.5), atol=1e-5)

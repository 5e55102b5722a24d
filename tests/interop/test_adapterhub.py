"""What AdapterHub's library wrote and has no equal here is refused with the reason; the rest is in test_recorded.py."""

from __future__ import annotations

import json
import shutil

import pytest

import luthier as lt
from support.recorded import FOLDERS, base, cases

FOLDER = FOLDERS / "adapterhub_folders"
REFUSED = {
    "bert-pfeiffer": "original_ln_before",
    "llama-both": "before the block ends",
    "llama-parallel": "is_parallel=True: it reads what enters a norm",
    "llama-invertible": "inv_adapter='nice'",
    "bert-compacter": "phm_layer=True",
    "bert-learned-scale": "scaling='learned'",
    "bert-norm": "ln_before=True",
    "bert-mam": "is union of adapters",
    "llama-gated-lora": "use_gating=True",
    "gpt2-gated-prefix": "use_gating=True",
    "bert-dvora": "m.weight",
    "llama-direft": "NoReFT and DiReFT being saved alike",
    "bert-prompt": "is prompt_tuning of adapters",
    "bert-own-head": "Take the files of the head out",
}


def test_every_folder_is_read_or_refused():
    read = {case.name for case in cases() if case.format == "adapterhub"}
    assert read | set(REFUSED) == {path.name for path in FOLDER.iterdir() if path.is_dir()}


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_has_no_equal_is_refused(name, why, tmp_path):
    with pytest.raises(lt.LuthierError, match=why):
        lt.import_adapter(FOLDER / name, tmp_path / "ours", base=base(name.partition("-")[0]))


def test_without_its_own_head_the_adapter_comes_in(tmp_path):
    folder = shutil.copytree(FOLDER / "bert-own-head", tmp_path / "theirs")
    for file in folder.glob("*head*"):
        file.unlink()
    assert lt.import_adapter(folder, tmp_path / "ours", base=base("bert")).is_dir()


@pytest.mark.parametrize(("name", "told"), [("llama-prefix", True), ("bert-prefix", False)])
def test_prefixes_of_decoders_are_told_to_differ_under_sdpa(name, told, tmp_path, recwarn):
    lt.import_adapter(FOLDER / name, tmp_path / "ours", base=base(name.partition("-")[0]))
    assert any("sdpa" in str(each.message) for each in recwarn) == told


def test_a_fused_layer_takes_as_many_factors_as_it_says(tmp_path):
    folder = shutil.copytree(FOLDER / "gpt2-lora", tmp_path / "theirs")
    told = json.loads((folder / "adapter_config.json").read_text())
    told["config"]["attn_matrices"] = ["q"]
    (folder / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(lt.LuthierError, match="are not those of q"):
        lt.import_adapter(folder, tmp_path / "ours", base=base("gpt2"))


@pytest.mark.parametrize(
    ("name", "labels", "task"),
    [
        ("bert-ia3", 3, "classification"),
        ("bert-ia3", 1, "regression"),
        ("llama-lora", 3, "causal-lm"),
        ("bert-own-head", 3, None),
    ],
)
def test_the_task_is_that_of_the_class_that_was_trained(name, labels, task, tmp_path):
    folder = shutil.copytree(FOLDER / name, tmp_path / "folder")
    beside = folder / "head_config.json"
    if beside.exists():
        beside.write_text(json.dumps(json.loads(beside.read_text()) | {"num_labels": labels}))
    assert lt.formats.AdapterHub().task(folder) == task

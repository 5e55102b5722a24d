"""Models larger than memory: what is written tensor by tensor is what is written from memory, byte for byte."""

from __future__ import annotations

import filecmp
import sys

import pytest
import torch

import luthier as lt
from luthier import models
from luthier.core import mapped
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from support.shipped import build, byte_level, moved

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are in memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bfloat16 model in several files."""
    made = tmp_path_factory.mktemp("model") / "base"
    model = build("llama", vocab_size=424).to(torch.bfloat16)
    model.save_pretrained(made, max_shard_size="20KB")
    byte_level().save_pretrained(made)
    assert len(list(made.glob("*.safetensors"))) > 2
    return made


@pytest.fixture
def little(monkeypatch):
    """Every page is let go at once, and every new tensor is put into a file."""
    monkeypatch.setattr(mapped, "LEAST", -(2**60))
    monkeypatch.setattr(mapped, "SHARE", 2**60)
    monkeypatch.setattr(mapped, "LARGE", 1)


def adapter(folder, out, form, where):
    """An adapter that was trained on the base in float32."""
    lt.save(moved(lt.attach(models.load(str(folder)).model, form, where=where)), out)


def exported(folder, work, out, to, dtype, force=False):
    base = models.load(str(folder), dtype=dtype)
    return lt.export(work / "adapter", work / out, to=to, base=base.model, processor=base.processor)


def same(one, two):
    told = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert told == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    return [str(path) for path in told if not filecmp.cmp(one / path, two / path, shallow=False)]


@pytest.mark.parametrize("where", ["q_proj, v_proj", "all-linear"])
@pytest.mark.parametrize("to", ["merged", "gguf", "peft"])
def test_the_same_bytes_in_the_same_files(to, where, folder, tmp_path, little):
    adapter(folder, tmp_path / "adapter", lt.LoRA(rank=2), where)
    exported(folder, tmp_path, "whole", to, "auto")
    with mapped.low_memory(tmp_path):
        exported(folder, tmp_path, "sparing", to, "auto")
    assert same(tmp_path / "whole", tmp_path / "sparing") == []
    if to == "merged":
        assert {p.name for p in folder.glob("*.saf*")} == {p.name for p in (tmp_path / "sparing").glob("*.saf*")}


@pytest.mark.parametrize("merged", [True, False])
def test_combinations_are_the_same(merged, folder, tmp_path, little):
    adapter(folder, tmp_path / "adapter", lt.LoRA(rank=2), "all-linear")

    def combined(name):
        base = models.load(str(folder), dtype="auto")
        given = [tmp_path / "adapter", tmp_path / "adapter"]
        out = tmp_path / name / "out"
        lt.combine("task_arithmetic", given, base=base.model, out=out, merged=merged, processor=base.processor)
        return out

    whole = combined("whole")
    with mapped.low_memory(tmp_path):
        found = combined("sparing")
    assert {name for name in same(whole, found) if not name.endswith(".png")} <= {"adapter.json"}  # which has the time


@pytest.mark.parametrize("form", names("forms"))
def test_a_change_leaves_alike_whatever_precision_its_base_is_loaded_in(form, folder, tmp_path):
    """The base's own, as commands do it, and float32, as it was trained: the files of peft, or the refusal."""
    made = find("forms", form, Form)()
    try:
        adapter(folder, tmp_path / "adapter", made, made.where)
    except lt.LuthierError as error:
        pytest.skip(str(error))
    told = []
    for dtype in ("float32", "auto"):
        try:
            told.append(exported(folder, tmp_path, dtype, lt.formats.PEFT(rank=8, tolerance=1.0), dtype))
        except lt.LuthierError as error:
            told.append(str(error))
    assert type(told[0]) is type(told[1]), told
    if isinstance(told[0], str):
        assert told[0].split(":")[0] == told[1].split(":")[0]
        return
    assert same(tmp_path / "float32", tmp_path / "auto") == []

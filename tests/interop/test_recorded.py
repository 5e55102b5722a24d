"""Folders that other libraries wrote, against what their own models answered (see tests/support/recorded.py)."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from laws.test_formats import damaged
from support.recorded import FOLDERS, answers, base, cases, logits
from support.written import adapted, write

CASES = cases()
FORMATS = sorted({case.format for case in CASES})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}-{case.name}")
def test_outputs_are_those_of_the_library(case, tmp_path):
    model = base(case.base)
    plain, wanted = logits(model), case.logits
    reader = lt.find("formats", case.format, lt.Format)(**case.settings)
    ours = lt.import_adapter(case.folder, tmp_path / "ours", base=model, source=reader)
    found = logits(lt.load(base(case.base), ours))
    assert (wanted - plain).abs().max() > 0.05
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


STRONG = "gate_up_proj) 1.41 times too strong"
TOLD = {
    "mixtral-rslora": [STRONG],
    "qwen3_moe-rslora": [STRONG],
    "qwen2_moe-shared": ["leaves the routed experts out"],
    "deepseek_v3-dense": [STRONG, "leaves out 9 layers beside the routed experts (first model.layers.0.mlp.down_proj)"],
    "mixtral-router": [],
}
"""What findings/peft_adapters_of_single_experts.sh found."""


@pytest.mark.parametrize("name", TOLD)
def test_what_peft_makes_of_single_experts_is_told(name, tmp_path, recwarn):
    case = next(each for each in CASES if (each.format, each.name) == ("peft", name))
    lt.import_adapter(case.folder, tmp_path / "ours", base=base(case.base))
    told = [str(each.message) for each in recwarn if "over transformers 5, peft 0.21.2 " in str(each.message)]
    assert len(told) == bool(TOLD[name]) and all(each in told[0] for each in TOLD[name])


@pytest.mark.parametrize("form", FORMATS)
def test_bases_are_those_of_the_library(form):
    """Otherwise what the adapters answer would say nothing."""
    for name in {case.base for case in CASES if case.format == form}:
        found, wanted = logits(base(name)), answers(form)[name]
        assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max())), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}-{case.name}")
def test_the_format_is_told_by_the_folder(case):
    fitting = [name for name in lt.names("formats") if lt.find("formats", name, lt.Format).fits(case.folder)]
    assert fitting == [case.format]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_folders_of_the_library_are_refused_without_a_traceback(form, count, tmp_path):
    """Or read, where what was damaged does not matter; what we write is damaged in tests/laws/test_formats.py."""
    draw, made = random.Random(form), functools.cache(base)
    known = [case for case in CASES if case.format == form]
    for turn in range(count):
        case, place = draw.choice(known), tmp_path / str(turn)
        folder = shutil.copytree(case.folder, place / "damaged")
        damaged(folder, draw)
        with warnings.catch_warnings(), contextlib.suppress(lt.LuthierError):
            warnings.simplefilter("ignore")
            lt.import_adapter(folder, place / "ours", base=made(case.base))
        shutil.rmtree(place)


WRITTEN = [(file.parent.name.removesuffix("_written"), file) for file in FOLDERS.glob("*_written/logits.safetensors")]
READERS = {".safetensors": load_file, ".pt": torch.load, ".bin": torch.load, ".lora": torch.load}


@pytest.mark.parametrize(("form", "case"), [(form, case) for form, file in WRITTEN for case in sorted(load_file(file))])
def test_what_the_library_read_is_still_what_we_write(form, case, tmp_path):
    """And it answered as the adapted model does here."""
    kept, again = FOLDERS / f"{form}_written" / case, write(form, case, tmp_path)
    wanted = load_file(kept.parent / "logits.safetensors")[case]
    assert (logits(adapted(case)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert {path.name for path in again.iterdir()} == {path.name for path in kept.iterdir()}
    for path in kept.iterdir():
        if path.suffix in READERS:
            read = READERS[path.suffix]
            torch.testing.assert_close(read(again / path.name), read(path), rtol=1e-5, atol=1e-6)
        else:
            assert (again / path.name).read_bytes() == path.read_bytes()

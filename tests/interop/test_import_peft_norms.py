"""LN_TUNING of peft as it comes in: names of modules inside, of adapters, and settings that are no lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.interop.formats._peft_keys import without_name
from luthier.interop.formats._peft_methods import read_norms

FOLDER = Path("folder")


def base() -> nn.Module:
    layer = nn.ModuleDict({"norm1": nn.LayerNorm(4), "norm2": nn.LayerNorm(4)})
    return nn.ModuleDict({"first": layer, "last": nn.LayerNorm(4)})


def read(keys, **config):
    tensors = {f"base_model.model.{key}": torch.full((4,), 2.0) for key in keys}
    return read_norms(FOLDER, config, without_name(FOLDER, tensors), base())


def paths(found) -> set[str]:
    return {path for each in found for path in each.tensors}


def test_modules_inside_are_not_taken_for_adapters():
    keys = ["first.ln_tuning_layers.norm1.weight", "first.ln_tuning_layers.norm1.bias"]
    assert paths(read(keys, target_modules=["first"])) == {"first.norm1.weight", "first.norm1.bias"}


def test_an_adapters_name_is_left_out():
    keys = ["last.ln_tuning_layers.default.weight", "first.norm2.ln_tuning_layers.default.bias"]
    assert paths(read(keys, target_modules=["last", "norm2"])) == {"last.weight", "first.norm2.bias"}


@pytest.mark.parametrize("named", [r"first\.norm\d", "|".join([r"first\.norm1"] * 2000)])
def test_an_expression_is_read_as_one(named, monkeypatch):
    told = []
    monkeypatch.setattr(
        "luthier.interop.formats._peft_beside.whole_parameters", lambda _, config, *__: told.append(config)
    )
    read(["first.norm1.ln_tuning_layers.weight", "first.norm2.ln_tuning_layers.weight"], target_modules=named)
    assert told[0]["modules_to_save"] == ["first.norm1", "first.norm2"]


def test_a_string_of_modules_to_save_is_refused():
    with pytest.raises(lt.LuthierError, match="modules_to_save is 'last'"):
        read(["last.weight"], modules_to_save="last")

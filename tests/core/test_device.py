"""The device of a model: who names it, and what is said of one that is not there."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.cli import main
from luthier.core.device import device_of, on_device
from luthier.training import Training

ABSENT = pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")


@ABSENT
def test_without_an_accelerator_it_is_the_cpu(monkeypatch):
    monkeypatch.delenv("LUTHIER_DEVICE", raising=False)
    assert device_of() == device_of("auto") == device_of("cpu") == torch.device("cpu")
    assert Training().precision == "float32"


@ABSENT
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps"])
def test_one_that_is_not_there_is_told_with_what_is(name, monkeypatch):
    asked = {"device": name, "precision": "auto"}
    for told in (lambda: device_of(name), lambda: lt.model("none", device=name), lambda: Training(**asked)):
        with pytest.raises(lt.LuthierError, match=rf"no device {name} here .* expected auto or cpu"):
            told()
    monkeypatch.setenv("LUTHIER_DEVICE", name)
    with pytest.raises(lt.LuthierError, match=rf"no device {name} \(LUTHIER_DEVICE\) here"):
        device_of()
    with on_device("cpu"):
        assert device_of().type == "cpu"  # what was said nearer goes before


def test_what_is_no_device_is_told():
    with pytest.raises(lt.LuthierError, match="'gpu0' is not a device; expected auto"):
        device_of("gpu0")


@ABSENT
@pytest.mark.parametrize("words", ["evaluate MODEL none.jsonl", "serve MODEL", "train MODEL none.jsonl"])
def test_commands_tell_before_they_look_at_anything(words, capsys):
    assert main([*words.split(), "--device", "cuda"]) == 2
    assert "there is no device cuda here" in capsys.readouterr().err


def test_a_context_is_left_as_it_was():
    with on_device("cpu"), on_device("auto"):
        assert device_of().type == "cpu"
    with pytest.raises(lt.LuthierError), on_device("nothing"):
        pass
    assert device_of("cpu").type == "cpu"

"""The device of a model: who names it, and what is said of one that is not there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import luthier as lt
from luthier.cli import main
from luthier.core.device import device_of, on_device
from luthier.training import Training
from luthier.training.context import loading_for
from luthier.training.together.meeting import Meeting

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


@pytest.fixture
def two(monkeypatch):
    """torch with two devices, of which it only knows which one is current."""
    current = [0]
    fake = {
        "is_available": lambda: True,
        "current_accelerator": lambda: torch.device("cuda"),
        "device_count": lambda: 2,
        "current_device_index": lambda: current[0],
        "set_device_index": lambda index: current.__setitem__(0, index),
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.accelerator, name, function)
    return current


@pytest.mark.parametrize(("count", "behind"), [(1, 0), (2, 1)])
def test_the_current_device_is_the_one_of_before_behind_a_run(count, behind, two, monkeypatch):
    """But for processes that were started together: each of them keeps its own."""
    monkeypatch.setattr("luthier.training.context.processes", lambda: count)
    run = lt.Run("model", "rows", lt.LoRA(), out="run", training=Training(device="cuda:1"))
    with pytest.raises(KeyError), loading_for(run):
        assert device_of() == torch.device("cuda:1")
        torch.accelerator.set_device_index(1)  # as a run's arguments do
        raise KeyError
    assert two == [behind]


def test_those_who_meet_keep_the_random_numbers_of_the_device_that_they_name(two, monkeypatch):
    """The caller's too, whatever device is current around them."""
    states = {"cuda:0": torch.tensor([1]), "cuda:1": torch.tensor([2])}
    module = SimpleNamespace(
        get_rng_state=lambda device: states[str(device)],
        set_rng_state=lambda state, device: states.__setitem__(str(device), state),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)

    def job():
        states["cuda:1"] = states["cuda:1"] + 10
        return int(states["cuda:1"])

    assert Meeting().hold([job, job], "cuda:1") == [12, 12]
    assert states == {"cuda:0": torch.tensor([1]), "cuda:1": torch.tensor([2])}

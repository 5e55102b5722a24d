"""pyreft's folders, as `ReftModel.save` writes them, computed by the equations of its classes."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import luthier as lt
from support.architectures import ARCHITECTURES

WIDTH, RANK = 32, 3


class Rotate(nn.Module):
    """x R, R [n, m] with orthonormal columns (pyreft's LowRankRotateLayer)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(WIDTH, RANK)))

    def forward(self, x):
        return x @ self.weight


class Intervention(nn.Module):
    """One of pyreft's classes, by name: its layers, its equation, its state dict."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        if name in ("Noreft", "Nodireft"):
            self.proj_layer: Any = nn.Linear(WIDTH, RANK)
        else:
            self.rotate_layer: Any = nn.utils.parametrizations.orthogonal(Rotate())
        fixed = name in ("Consreft", "Lobireft")
        self.learned_source: Any = nn.Parameter(torch.rand(RANK)) if fixed else nn.Linear(WIDTH, RANK)

    def forward(self, h):
        equations = {
            "Loreft": lambda: (self.learned_source(h) - self.rotate_layer(h)) @ self.rotate_layer.weight.T,
            "Noreft": lambda: (self.learned_source(h) - self.proj_layer(h)) @ self.proj_layer.weight,
            "Consreft": lambda: (self.learned_source - self.rotate_layer(h)) @ self.rotate_layer.weight.T,
            "Lobireft": lambda: self.learned_source @ self.rotate_layer.weight.T,
            "Direft": lambda: self.learned_source(h) @ self.rotate_layer.weight.T,
            "Nodireft": lambda: self.learned_source(h) @ self.proj_layer.weight,
        }
        return h + equations[self.name]()

    def saved(self) -> dict[str, torch.Tensor]:
        """LoReFT saves the rotation itself, the others what torch's parametrisation and pyvene's base class keep."""
        if self.name != "Loreft":
            return {**self.state_dict(), "embed_dim": torch.tensor(WIDTH), "interchange_dim": torch.tensor(WIDTH)}
        return {**self.learned_source.state_dict(), "rotate_layer": self.rotate_layer.weight.data}


def write(folder, interventions, component="block_output"):
    """`{(layer, turn): intervention}` as pyvene's `save` writes them."""
    folder.mkdir()
    keys = []
    for (layer, turn), each in interventions.items():
        name = component.replace(".", "_") if "." in component else f"{layer}_comp_{component}"
        keys.append(f"{'comp' if '.' in component else 'layer'}_{name}_unit_pos_nunit_1#{turn}")
        torch.save(each.saved(), folder / f"intkey_{keys[-1]}.bin")
    listed = [[layer, component, "pos", 1, RANK, *[None] * 9] for layer, _ in interventions]
    kinds = [f"<class 'pyreft.interventions.{each.name}Intervention'>" for each in interventions.values()]
    config = {"representations": listed, "intervention_types": kinds, "sorted_keys": keys, "mode": "parallel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def edited(model, interventions, positions):
    """Logits with what leaves each block edited at `positions[turn]`, by hooks."""

    def hook(turn, each):
        def edit(module, inputs, output):
            h = output[0] if isinstance(output, tuple) else output
            h = h.clone()
            h[:, positions[turn]] = each(h[:, positions[turn]])
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return edit

    hooks = [
        model.model.layers[layer].register_forward_hook(hook(turn, each))
        for (layer, turn), each in interventions.items()
    ]
    try:
        return output(model)
    finally:
        for each in hooks:
            each.remove()


def output(model):
    with torch.no_grad():
        return model(**ARCHITECTURES["llama"].inputs()).logits


def llama():
    return ARCHITECTURES["llama"].build()


@pytest.mark.parametrize("name", ["Loreft", "Noreft", "Consreft", "Lobireft", "Direft", "Nodireft"])
def test_outputs_are_those_of_the_equation(name, tmp_path):
    interventions = {(layer, 0): Intervention(name) for layer in (0, 2)}
    write(tmp_path / "reft", interventions)
    base = llama()
    source = lt.formats.PyReFT(positions="f2+l3")
    lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=base, source=source)
    wanted = edited(llama(), interventions, [[0, 1, -3, -2, -1]])
    ours = output(lt.load(base, tmp_path / "ours"))
    assert (ours - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (output(llama()) - wanted).abs().max() > 1e-2


def test_first_and_last_positions_with_parameters_of_their_own(tmp_path):
    """pyreft without shared weights intervenes twice at a layer."""
    interventions = {(layer, turn): Intervention("Loreft") for turn in (0, 1) for layer in (0, 1, 2)}
    write(tmp_path / "reft", interventions)
    base = llama()
    source = lt.formats.PyReFT(positions="f2,l3")
    lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=base, source=source)
    wanted = edited(llama(), interventions, [[0, 1], [-3, -2, -1]])
    assert (output(lt.load(base, tmp_path / "ours")) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_path_of_a_module_is_read(tmp_path):
    interventions = {(1, 0): Intervention("Loreft")}
    write(tmp_path / "reft", interventions, "model.layers[1].output")
    base = llama()
    source = lt.formats.PyReFT(positions="l1")
    lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=base, source=source)
    wanted = edited(llama(), interventions, [[-1]])
    assert (output(lt.load(base, tmp_path / "ours")) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_rotation_in_half_precision_is_kept_as_it_stands(tmp_path):
    each = Intervention("Loreft")
    write(tmp_path / "reft", {(1, 0): each})
    rounded = {key: tensor.bfloat16() for key, tensor in each.saved().items()}
    (file,) = (tmp_path / "reft").glob("*.bin")
    torch.save(rounded, file)
    base = llama()
    lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=base, source=lt.formats.PyReFT(positions="all"))
    w, b, r = (rounded[key].float() for key in ("weight", "bias", "rotate_layer"))

    def as_stored(h):
        return h + (h @ w.T + b - h @ r) @ r.T

    wanted = edited(llama(), {(1, 0): as_stored}, [slice(None)])
    assert (output(lt.load(base, tmp_path / "ours")) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert json.loads((tmp_path / "ours" / "adapter.json").read_text())["parts"][0]["form"] == "noreft"


def changed(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


SPOILED = {
    "a file elsewhere": ({"sorted_keys": ["../../../etc/passwd"]}, "lies elsewhere"),
    "a file that is missing": ({"sorted_keys": ["layer_9"]}, "is missing"),
    "a class of somebody else": (
        {"intervention_types": ["<class '__main__.LoreftIntervention'>"]},
        "__main__.LoreftIntervention has no equal",
    ),
    "another class": ({"intervention_types": ["<class 'x.EvilIntervention'>"]}, "EvilIntervention has no equal"),
    "lists of other lengths": ({"sorted_keys": []}, "damaged"),
    "heads": ({"representations": [[1, "block_output", "h.pos", 1, 3]]}, "only single positions"),
    "another component": ({"representations": [[1, "mlp_activation", "pos", 1, 3]]}, "'mlp_activation'"),
    "a block too deep": ({"representations": [[9, "block_output", "pos", 1, 3]]}, "which this LlamaForCausalLM lacks"),
    "an unknown module": ({"representations": [[1, "model.layrs[1].output", "pos", 1, 3]]}, "lacks"),
    "numbers for places": ({"representations": [7]}, "damaged"),
    "no places": ({"representations": []}, "damaged"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_folders_are_refused(case, tmp_path):
    changes, message = SPOILED[case]
    write(tmp_path / "reft", {(1, 0): Intervention("Loreft")})
    changed(tmp_path / "reft", **changes)
    with pytest.raises(lt.LuthierError, match=message):
        source = lt.formats.PyReFT(positions="f1")
        lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=llama(), source=source)
    assert not (tmp_path / "ours").exists()


def test_positions_must_be_told_and_fit(tmp_path):
    write(tmp_path / "reft", {(1, turn): Intervention("Loreft") for turn in (0, 1)})
    with pytest.raises(lt.LuthierError, match="--positions f7,l7"):
        lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=llama())
    with pytest.raises(lt.LuthierError, match=r"1 groups, and .* 2 interventions"):
        source = lt.formats.PyReFT(positions="f7+l7")
        lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=llama(), source=source)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "hit"), "w"))

    write(tmp_path / "reft", {(1, 0): Intervention("Loreft")})
    (file,) = (tmp_path / "reft").glob("*.bin")
    file.write_bytes(pickle.dumps({"weight": Bomb()}))
    with pytest.raises(lt.LuthierError, match="run code"):
        source = lt.formats.PyReFT(positions="f1")
        lt.import_adapter(tmp_path / "reft", tmp_path / "ours", base=llama(), source=source)
    assert not (tmp_path / "hit").exists()

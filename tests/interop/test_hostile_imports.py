"""Damaged, foreign and hostile folders: a clear error each, and nothing written."""

from __future__ import annotations

import json
import pickle
import random
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from support.architectures import ARCHITECTURES

PATH = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
}


@pytest.fixture
def folder(tmp_path):
    """A whole adapter of peft's on the small Llama, without peft."""
    made = tmp_path / "peft"
    made.mkdir()
    shapes = {"A": (2, 32), "B": (32, 2)}
    tensors = {PATH.format(i, side): torch.randn(*shapes[side]) for i in range(3) for side in "AB"}
    save_file(tensors, made / "adapter_model.safetensors")
    (made / "adapter_config.json").write_text(json.dumps(CONFIG))
    return made


def take(folder, base=None):
    base = base or ARCHITECTURES["llama"].build()
    try:
        return lt.import_adapter(folder, folder.parent / "ours", base=base)
    finally:
        assert sorted(p.name for p in folder.parent.iterdir() if p.name.startswith(".")) == []


def configured(folder, **changes):
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))


def tensored(folder, change):
    held = load_file(folder / "adapter_model.safetensors")
    change(held)
    save_file(held, folder / "adapter_model.safetensors")


def test_the_folder_itself_is_whole(folder):
    assert (take(folder) / "adapter.json").exists()


SETTINGS = {
    "another method": ({"peft_type": "OFT"}, "OFT, which is not read here"),
    "no method": ({"peft_type": None}, "no peft_type"),
    "bias of a factor": ({"lora_bias": True}, r"has A, B; expected A, B and b \(lora_bias\)"),
    "activated late": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "of a later version": ({"use_something_new": 3}, "use_something_new=3: what it does is not known"),
    "residual base": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "alpha as text": ({"lora_alpha": "16"}, "expected a finite number"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "expected a finite number"),
    "another rank": ({"r": 8}, "has rank 2, and the configuration says 8"),
    "endless expression": ({"alpha_pattern": {"(a+)+$": 3}}, "for ever"),
    "many stars": ({"rank_pattern": {".*a" * 9: 3}}, "for ever"),
    "no expression": ({"alpha_pattern": {"(": 3}}, "not a regular expression"),
    "a list for a table": ({"alpha_pattern": ["q_proj"]}, "expected a table"),
    "a layer without tensors": ({"target_modules": ["q_proj", "v_proj"]}, "lacks the tensors of .*v_proj"),
    "DoRA without lengths": ({"use_dora": True}, "expected A, B and m"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_mean_something_else_are_refused(case, folder):
    changes, message = SETTINGS[case]
    configured(folder, **changes)
    started = time.monotonic()
    with pytest.raises(lt.LuthierError, match=message):
        take(folder)
    assert time.monotonic() - started < 10 and not (folder.parent / "ours").exists()


def rename(old: str, new: str):
    return lambda held: held.update({new: held.pop(old)})


TENSORS = {
    "one of a pair": (lambda held: held.pop(PATH.format(0, "B")), "has A; expected A, B"),
    "NaN": (lambda held: held[PATH.format(1, "A")].fill_(float("nan")), "NaN"),
    "whole numbers": (lambda held: held.update({PATH.format(1, "A"): torch.ones(2, 32).int()}), "int32"),
    "another width": (
        lambda held: held.update({PATH.format(1, "A"): torch.ones(2, 31)}),
        r"A of model.layers.1.self_attn.q_proj is \(2, 31\); this base expects \(2, 32\)",
    ),
    "pairs that do not fit": (lambda held: held.update({PATH.format(1, "A"): torch.ones(3, 32)}), "do not fit"),
    "a vector": (lambda held: held.update({PATH.format(1, "A"): torch.ones(2)}), "no matrices"),
    "a stranger": (
        lambda held: held.update({"base_model.model.evil.weight": torch.ones(2)}),
        "evil.weight, which is neither",
    ),
    "no prefix": (rename(PATH.format(0, "A"), "../../etc.lora_A.weight"), "neither a layer"),
    "a layer too deep": (
        lambda held: held.update(
            {PATH.format(9, s): torch.ones(2, 32) if s == "A" else torch.ones(32, 2) for s in "AB"}
        ),
        r"layers.9.self_attn.q_proj, which is neither a layer .*did you mean 'model.layers.\d.self_attn.q_proj'",
    ),
    "a way out": (
        lambda held: held.update({f"base_model.model.../../x.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}),
        "x, which is neither a layer",
    ),
    "nothing": (lambda held: held.clear(), "no factors"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(case, folder):
    change, message = TENSORS[case]
    tensored(folder, change)
    with pytest.raises(lt.LuthierError, match=message):
        take(folder)
    assert not (folder.parent / "ours").exists()


def test_a_layer_that_takes_no_factors_is_refused_and_one_that_is_left_out_is_told(folder):
    norm = {f"base_model.model.model.norm.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}
    tensored(folder, lambda held: held.update(norm))
    configured(folder, target_modules=["q_proj", "norm"])
    with pytest.raises(lt.LuthierError, match=r"adapts model\.norm, which is not a site of kind affine of this"):
        take(folder)
    configured(folder)
    with pytest.warns(UserWarning, match=r"1 layers that its configuration leaves out \(first model\.norm\)"):
        take(folder)


def test_a_pickle_that_runs_code_is_not_opened(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "hit"), "w"))

    (folder / "adapter_model.safetensors").unlink()
    for value in (Bomb(), {"x": Bomb()}):
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(value))
        with pytest.raises(lt.LuthierError, match="run code"):
            take(folder)
        torch.save(value, folder / "adapter_model.bin")
        with pytest.raises(lt.LuthierError, match="run code"):
            take(folder)
    assert not (tmp_path / "hit").exists()


def test_files_that_are_missing_or_no_json(folder):
    whole = (folder / "adapter_config.json").read_text()
    for text in (whole[:-5], '{"peft_type": "LORA", "peft_type": "LORA"}', "[" * 100_000, "[]", '"x"'):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(lt.LuthierError):
            take(folder)
    (folder / "adapter_config.json").write_text(whole)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(lt.LuthierError, match="is missing"):
        take(folder)


def test_any_damage_of_bytes_is_an_error_of_ours_or_a_whole_adapter(folder):
    base, draw = ARCHITECTURES["llama"].build(), random.Random(0)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        whole = (folder / name).read_bytes()
        for turn in range(40):
            damaged = bytearray(whole)
            if turn % 3 == 0:
                damaged = damaged[: draw.randrange(len(damaged))]
            else:
                damaged[draw.randrange(min(len(damaged), 900))] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(damaged)
            try:
                lt.load(base, lt.import_adapter(folder, folder.parent / f"{name}{turn}", base=base))
                lt.detach(base)
            except lt.LuthierError:
                pass
        (folder / name).write_bytes(whole)


def test_another_base_is_refused(folder):
    with pytest.raises(lt.LuthierError, match="another base"):
        take(folder, ARCHITECTURES["gpt2"].build())


def test_a_target_that_holds_something_is_left_alone(folder):
    (folder.parent / "ours").mkdir()
    (folder.parent / "ours" / "precious").write_text("x")
    with pytest.raises(lt.LuthierError, match="not empty"):
        take(folder)


@pytest.mark.parametrize("piece", ["__0_0.distcp", "iter_0000020/__0_0.distcp", "weights/__0_0.distcp"])
def test_a_distributed_checkpoint_is_refused_with_what_makes_a_folder_of_it(piece, tmp_path):
    (tmp_path / "run" / piece).parent.mkdir(parents=True)
    (tmp_path / "run" / piece).touch()
    with pytest.raises(lt.LuthierError, match=r"distributed checkpoint .*export_adapter_ckpt"):
        lt.import_adapter(tmp_path / "run", tmp_path / "ours", base=ARCHITECTURES["llama"].build())

"""Adapters on disk: exact, whole, refused when damaged or foreign."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from architectures import ARCHITECTURES
from luthier.core.files import committed, sha256


def build(seed: int = 0, dtype: torch.dtype = torch.float32):
    return ARCHITECTURES["llama"].build(seed=seed, dtype=dtype)


@pytest.fixture
def adapter(tmp_path):
    model = lt.attach(build(), lt.WeGeFT(rank=4, share="type"), where="q_proj, v_proj")
    for parameter in lt.trainable(model).values():
        parameter.data += torch.randn_like(parameter)
    return lt.save(model, tmp_path / "adapter", base="tiny", measured={"score": 0.5})


def rewrite(adapter, change) -> None:
    """Changes the tensors and keeps the checksum right: damage that only the contents show."""
    held = load_file(adapter / "adapter.safetensors")
    save_file(change(held), adapter / "adapter.safetensors")
    spec = json.loads((adapter / "adapter.json").read_text())
    spec["sha256"] = sha256(adapter / "adapter.safetensors")
    (adapter / "adapter.json").write_text(json.dumps(spec))


def test_the_spec_says_what_it_is(adapter):
    spec = json.loads((adapter / "adapter.json").read_text())
    assert spec["parts"][0]["form"] == "wegeft" and spec["parts"][0]["settings"]["rank"] == 4
    assert spec["base"]["name"] == "tiny" and spec["measured"] == {"score": 0.5}
    assert set(load_file(adapter / "adapter.safetensors")) == {
        f"0.model.layers.self_attn.{site}.{key}" for site in ("q_proj", "v_proj") for key in ("phi", "psi")
    }


def test_several_adapters_and_parts(tmp_path):
    model = build()
    lt.attach(model, lt.LoRA(rank=2), where="q_proj")
    lt.attach(model, lt.LoReFT(rank=2, positions="f1,l1"))
    lt.attach(model, lt.IA3(), name="other")
    lt.save(model, tmp_path / "all")
    loaded = lt.load(build(), tmp_path / "all")
    assert list(lt.trainable(loaded)) == list(lt.trainable(model))
    one = lt.load(build(), tmp_path / "all" / "other", name="renamed")
    assert {key.partition(".")[0] for key in lt.trainable(one)} == {"renamed"}


def test_it_loads_onto_the_base_in_another_dtype(adapter):
    assert lt.trainable(lt.load(build(dtype=torch.bfloat16), adapter))


def test_another_base_is_refused_unless_forced(adapter):
    with pytest.raises(lt.LuthierError, match=r"'tiny'.*weights differ"):
        lt.load(build(seed=1), adapter)
    with pytest.raises(lt.LuthierError, match="layers differ"):
        lt.load(ARCHITECTURES["gpt2"].build(), adapter)
    with pytest.warns(UserWarning, match="weights differ"):
        assert lt.trainable(lt.load(build(seed=1), adapter, force=True))


def test_truncation_and_flipped_bits_are_refused(adapter):
    path = adapter / "adapter.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:100], b"", whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(lt.LuthierError, match="damaged"):
            lt.load(build(), adapter)
    path.unlink()
    with pytest.raises(lt.LuthierError, match="missing"):
        lt.load(build(), adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: dict(list(t.items())[1:]), "missing"),
        (lambda t: t | {"0.model.extra.phi": torch.ones(2)}, "does not know"),
        (lambda t: {k: v[:-1].clone() for k, v in t.items()}, "expected"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "NaN"),
    ],
)
def test_wrong_tensors_are_refused_and_the_model_is_as_it_was(adapter, change, message):
    rewrite(adapter, change)
    model = build()
    kinds = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(lt.LuthierError, match=message):
        lt.load(model, adapter)
    assert {path: type(module) for path, module in model.named_modules()} == kinds


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"format": 99},
        lambda s: s | {"name": "../../etc"},
        lambda s: s | {"parts": []},
        lambda s: s | {"parts": [s["parts"][0] | {"form": "../os"}]},
        lambda s: s | {"parts": [s["parts"][0] | {"settings": {"rank": "8"}}]},
        lambda s: s | {"parts": [s["parts"][0] | {"settings": {"alpha": float("inf")}}]},
        lambda s: s | {"parts": [s["parts"][0] | {"settings": {"command": 1}}]},
        lambda s: s | {"parts": [s["parts"][0] | {"where": "all-linear"}]},
        lambda s: {k: v for k, v in s.items() if k != "base"},
        lambda s: [s],
    ],
)
def test_a_damaged_or_hostile_spec_is_refused(adapter, change):
    spec = json.loads((adapter / "adapter.json").read_text())
    (adapter / "adapter.json").write_text(json.dumps(change(spec)))
    with pytest.raises(lt.LuthierError):
        lt.load(build(), adapter)


def test_json_tricks_are_refused(adapter):
    path = adapter / "adapter.json"
    text = path.read_text()
    for bad in (
        text[:50],
        '{"format": 1, "format": 1}',
        "[" * 100_000,
        "\x00",
        text.replace('"format"', '"format": 1, "format"'),
    ):
        path.write_text(bad)
        with pytest.raises(lt.LuthierError):
            lt.load(build(), adapter)


def test_a_folder_is_replaced_whole_or_not_at_all(adapter, tmp_path):
    before = sorted(p.name for p in adapter.iterdir())
    with pytest.raises(RuntimeError), committed(adapter) as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError("killed")
    assert sorted(p.name for p in adapter.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    shutil.move(adapter, tmp_path / ".adapter.old")  # killed between the two renames
    assert lt.load(build(), adapter)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = lt.attach(build(), lt.LoRA())
    with pytest.raises(lt.LuthierError, match="holds files"):
        lt.save(model, tmp_path)
    for name in ("../up", "/abs", "a.b", ""):
        with pytest.raises(lt.LuthierError, match="cannot name"):
            lt.attach(model, lt.LoRA(), name=name)

"""Adapters on disk: exact, whole, refused when damaged or foreign."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core import files, locks
from luthier.core.adapters.attach import adapter_names, state_of
from luthier.core.files import committed, discard, recover
from luthier.core.storage.folder import adapter_at, adapter_folder, read_adapter
from luthier.core.storage.format import read as read_spec
from support.architectures import ARCHITECTURES
from support.forged import forge_tensors, reseal


def build(seed: int = 0, dtype: torch.dtype = torch.float32):
    return ARCHITECTURES["llama"].build(seed=seed, dtype=dtype)


@pytest.fixture
def adapter(tmp_path):
    model = lt.attach(build(), lt.WeGeFT(rank=4, share="type"), where="q_proj, v_proj")
    for parameter in lt.trainable(model).values():
        parameter.data += torch.randn_like(parameter)
    return lt.save(model, tmp_path / "adapter", base="tiny", measured={"score": 0.5})


def test_nothing_is_loaded_beside_what_is_merged(adapter):
    model = lt.merge(lt.attach(build(), lt.LoRA()))
    with pytest.raises(lt.LuthierError, match="unmerge before loading"):
        lt.load(model, adapter, name="second")


def test_what_is_loaded_is_memory_of_its_own(adapter):
    # a file's memory is aligned to 8 bytes, where MKL rounds otherwise on some machines
    loaded = lt.load(build(), adapter)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in lt.trainable(loaded).values())


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
    assert lt.trainable(lt.load(build().to(torch.bfloat16), adapter))


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
    forge_tensors(adapter, change)
    model = build()
    kinds = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(lt.LuthierError, match=message):
        lt.load(model, adapter)
    assert {path: type(module) for path, module in model.named_modules()} == kinds


def test_formats_of_numbers_that_do_not_belong_are_refused(adapter):
    path = adapter / "adapter.safetensors"
    whole = path.read_bytes()
    for bad in (b"I32", b"U32", b"C64"):
        path.write_bytes(whole.replace(b"F32", bad))
        reseal(adapter)
        with pytest.raises(lt.LuthierError, match=r"floating-point|cannot be read"):
            lt.load(build(), adapter)


def test_archives_and_pickles_under_another_name_are_refused(adapter, tmp_path):
    torch.save(load_file(adapter / "adapter.safetensors"), tmp_path / "zip")
    for data in ((tmp_path / "zip").read_bytes(), pickle.dumps({"a": 1}), b"\xff" * 8 + b"{}", bytes(8) + b"{}"):
        (adapter / "adapter.safetensors").write_bytes(data)
        reseal(adapter)
        with pytest.raises(lt.LuthierError, match="cannot be read"):
            lt.load(build(), adapter)


def test_a_file_far_too_large_is_refused_before_it_is_read(adapter):
    with open(adapter / "adapter.safetensors", "r+b") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(lt.LuthierError, match="1,099,511,627,776 bytes"):
        lt.load(build(), adapter)


def test_positions_out_of_range_are_refused(tmp_path):
    model = lt.attach(build(), lt.Sparse(k=3), where="q_proj")
    for at in (-1, 32 * 32, 2**31 - 1):
        folder = lt.save(model, tmp_path / str(at))
        forge_tensors(folder, lambda t, at=at: {k: v.fill_(at) if k.endswith("index") else v for k, v in t.items()})
        with pytest.raises(lt.LuthierError, match="positions"):
            lt.load(build(), folder)


def test_values_that_the_base_cannot_run_with_are_refused(tmp_path):
    folder = lt.save(lt.attach(build(), lt.LoReFT(rank=2)), tmp_path / "adapter")
    forge_tensors(folder, lambda t: {k: v.zero_() for k, v in t.items()})  # no rotation comes of zeros
    model = build()
    with pytest.raises(lt.LuthierError, match="cannot run with"):
        lt.load(model, folder)
    assert "_luthier" not in vars(model)


def test_of_several_all_load_or_none(tmp_path):
    model = lt.attach(lt.attach(build(), lt.LoRA(rank=2), name="a"), lt.IA3(), name="b", where="k_proj")
    folder = lt.save(model, tmp_path / "all")
    forge_tensors(folder / "b", lambda t: {k: v * float("inf") for k, v in t.items()})
    model = build()
    with pytest.raises(lt.LuthierError, match="infinity"):
        lt.load(model, folder)
    assert "_luthier" not in vars(model)


def test_a_folder_is_replaced_whole_or_not_at_all(adapter, tmp_path):
    before = sorted(p.name for p in adapter.iterdir())
    with pytest.raises(RuntimeError), committed(adapter) as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError("killed")
    assert sorted(p.name for p in adapter.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    shutil.move(adapter, tmp_path / ".adapter.old")  # killed between the two renames
    assert lt.load(build(), adapter)


def test_what_kills_left_behind_goes_with_the_next_save_and_what_others_write_stays(adapter, tmp_path):
    model = lt.load(build(), adapter)
    for name in (".adapter.new-0123abcd", ".adapter.old"):  # killed while writing, and after the second rename
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / ".adapter.new-not-ours").mkdir()
    with committed(adapter) as other:
        lt.save(model, adapter)
        assert other.is_dir()
        assert sorted(p.name for p in tmp_path.glob(".*")) == sorted([other.name, ".adapter.new-not-ours"])
        shutil.copytree(adapter, other, dirs_exist_ok=True)
    assert lt.load(build(), adapter) and not other.exists()


def test_a_run_that_starts_anew_leaves_nothing_to_recover(adapter, tmp_path):
    shutil.move(adapter, tmp_path / ".adapter.old")
    discard(adapter)
    recover(adapter)
    assert not list(tmp_path.iterdir())


def test_of_several_adapters_none_is_missed_that_is_aside(adapter, tmp_path):
    (tmp_path / "all").mkdir()
    for name in ("one", "two"):
        lt.save(lt.load(build(), adapter, name), tmp_path / "all" / name)
    shutil.move(tmp_path / "all" / "two", tmp_path / "all" / ".two.old")  # a replacement that was killed
    assert set(adapter_names(state_of(lt.load(build(), tmp_path / "all")))) == {"one", "two"}


def test_a_folder_that_another_process_keeps_locked_is_told(adapter, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    with files._alone(adapter.parent), pytest.raises(lt.LuthierError, match=r"has kept .* locked"):
        lt.load(build(), adapter)


def test_an_adapter_is_looked_for_among_anything(adapter, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    with pytest.raises(lt.LuthierError, match=r"did you mean 'adapter'\?"):
        adapter_folder(tmp_path / "adaptr")
    for other in ("pipe", "file", "no/such"):
        assert adapter_at(tmp_path / other) is None
    assert read_adapter(tmp_path) == (adapter, read_spec(adapter))  # as a run's folder has it


def test_a_link_to_a_folder_stays_one(adapter, tmp_path):
    (tmp_path / "link").symlink_to(adapter, target_is_directory=True)
    lt.save(lt.load(build(), tmp_path / "link"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not adapter.is_symlink() and lt.load(build(), adapter)


def test_what_else_lies_in_the_folder_stays(adapter):
    (adapter / "notes.txt").write_text("mine")
    (adapter / ".git" / "refs").mkdir(parents=True)
    lt.save(lt.load(build(), adapter), adapter)
    assert (adapter / "notes.txt").read_text() == "mine" and (adapter / ".git" / "refs").is_dir()


def test_others_may_read_what_is_saved(adapter):
    os.umask(mask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in adapter.iterdir()} == {0o666 & ~mask}
    assert adapter.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_disk_that_takes_nothing_is_told(tmp_path, monkeypatch):
    model = lt.attach(build(), lt.LoRA(), where="q_proj")
    (tmp_path / "file").write_text("x")
    with pytest.raises(lt.LuthierError, match=r"cannot be written|something else"):
        lt.save(model, tmp_path / "file" / "adapter")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(lt.LuthierError, match="No space left"):
        lt.save(model, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = lt.attach(build(), lt.LoRA())
    with pytest.raises(lt.LuthierError, match="something else than an adapter"):
        lt.save(model, tmp_path)
    for name in ("../up", "/abs", "a.b", ""):
        with pytest.raises(lt.LuthierError, match="cannot name"):
            lt.attach(model, lt.LoRA(), name=name)

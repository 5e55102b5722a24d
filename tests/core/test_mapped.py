"""Weights that lie in files leave memory, new tensors go into files, and no number is lost by either."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core import mapped
from luthier.core.storage.one_by_one import TYPES, largest_shard, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are in memory")


def resident() -> int:
    """KiB of files that this process has in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile"))


@pytest.fixture
def file(tmp_path):
    draw = torch.Generator().manual_seed(0)
    save_file({f"t{i}": torch.randn(1024, 1024, generator=draw) for i in range(8)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_memory_of_read_weights_is_given_back_and_they_stay_the_same(file, monkeypatch):
    held, before = load_file(file), resident()
    sums = [float(tensor.double().sum()) for tensor in held.values()]
    assert resident() - before > 16 * 1024
    monkeypatch.setattr(mapped, "LEAST", 0)
    with mapped.low_memory(file.parent):
        mapped._before = 0
        mapped.evict()
        assert resident() - before < 2 * 1024
        assert [float(tensor.double().sum()) for tensor in held.values()] == sums
    now = resident()
    mapped.evict()  # outside nothing is given back, but for what the system takes by itself
    assert now - resident() < 4 * 1024


def test_what_was_written_to_is_kept(file, monkeypatch):
    """A page that was changed in memory is the only copy of its numbers, beside others of the same tensor."""
    held = load_file(file)["t3"]
    kept, held[500, 7], held[501] = held.clone(), 12.0, -1.0
    kept[500, 7], kept[501] = 12.0, -1.0
    monkeypatch.setattr(mapped, "LEAST", 0)
    with mapped.low_memory(file.parent):
        mapped._before = 0
        mapped.evict()
        assert torch.equal(held, kept)


def test_files_of_the_hubs_cache_are_weights_under_the_names_of_their_hashes(file, tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    blob = file.rename(tmp_path / "blobs" / ("0" * 40))
    file.symlink_to(blob)
    held, before = load_file(file), resident()
    assert float(held["t0"].abs().sum() + held["t7"].abs().sum()) > 0
    monkeypatch.setattr(mapped, "LEAST", 0)
    with mapped.low_memory(tmp_path):
        mapped._before = 0
        mapped.evict()
        assert resident() - before < 2 * 1024


def test_a_full_disk_leaves_a_tensor_in_memory(tmp_path, monkeypatch):
    given = torch.zeros(2**19)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with mapped.low_memory(tmp_path):
        monkeypatch.setattr(mapped.tempfile, "NamedTemporaryFile", full)
        assert mapped.spilled(given) is given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_tensor_that_is_spilled_is_itself_without_a_file_that_stays(dtype, tmp_path):
    given = torch.arange(2**20).reshape(1024, 1024).to(dtype)
    assert mapped.spilled(given) is given
    with mapped.low_memory(tmp_path / "not" / "there"):
        away = mapped.spilled(given.T)
        assert away.data_ptr() != given.data_ptr() and list(tmp_path.iterdir()) == []
        small = given[:2]
        assert mapped.spilled(small) is small
    assert torch.equal(away, given.T) and away.dtype == dtype and away.is_contiguous()


def test_the_files_are_those_of_safetensors(tmp_path):
    """Byte for byte: of every dtype, without elements, with odd names and with none of dimension."""
    kinds = {f"of {dtype}".replace("torch", "é"): torch.ones(3, 5).to(dtype) for dtype in reversed(TYPES)}
    tensors = {**kinds, "none": torch.zeros(0, 4), "one": torch.tensor(2.0), 'a"b\n': torch.randn(2, 2)}
    for name, metadata in (("with", {"format": "pt"}), ("without", None)):
        save_file(tensors, tmp_path / f"{name}.theirs", metadata)
        with mapped.low_memory(tmp_path):
            write(tensors, tmp_path / f"{name}.ours", metadata)
        assert (tmp_path / f"{name}.ours").read_bytes() == (tmp_path / f"{name}.theirs").read_bytes()


def test_the_largest_shard_counts_tensors_alone(tmp_path):
    assert largest_shard(tmp_path) is None
    save_file({"a": torch.zeros(10)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(30), "c": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert largest_shard(tmp_path) == 128

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
    assert resident() - before > 24 * 1024
    monkeypatch.setattr(mapped, "MOST", 0)
    with mapped.sparing(file.parent):
        mapped._before = 0
        mapped.let_go()
        assert resident() - before < 2 * 1024
        assert [float(tensor.double().sum()) for tensor in held.values()] == sums
    mapped.let_go()  # outside nothing is given back
    assert resident() - before > 24 * 1024


def test_what_was_written_to_is_kept(file, monkeypatch):
    """A page that was changed in memory is the only copy of its numbers, beside others of the same tensor."""
    held = load_file(file)["t3"]
    kept, held[500, 7], held[501] = held.clone(), 12.0, -1.0
    kept[500, 7], kept[501] = 12.0, -1.0
    monkeypatch.setattr(mapped, "MOST", 0)
    with mapped.sparing(file.parent):
        mapped._before = 0
        mapped.let_go()
        assert torch.equal(held, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_tensor_that_is_put_away_is_itself_without_a_file_that_stays(dtype, tmp_path):
    given = torch.arange(2**20).reshape(1024, 1024).to(dtype)
    assert mapped.put_away(given) is given
    with mapped.sparing(tmp_path / "not" / "there"):
        away = mapped.put_away(given.T)
        assert away.data_ptr() != given.data_ptr() and list(tmp_path.iterdir()) == []
        small = given[:2]
        assert mapped.put_away(small) is small
    assert torch.equal(away, given.T) and away.dtype == dtype and away.is_contiguous()


def test_the_files_are_those_of_safetensors(tmp_path):
    """Byte for byte: of every dtype, without elements, with odd names and with none of dimension."""
    kinds = {f"of {dtype}".replace("torch", "é"): torch.ones(3, 5).to(dtype) for dtype in reversed(TYPES)}
    tensors = {**kinds, "none": torch.zeros(0, 4), "one": torch.tensor(2.0), 'a"b\n': torch.randn(2, 2)}
    for name, metadata in (("with", {"format": "pt"}), ("without", None)):
        save_file(tensors, tmp_path / f"{name}.theirs", metadata)
        with mapped.sparing(tmp_path):
            write(tensors, tmp_path / f"{name}.ours", metadata)
        assert (tmp_path / f"{name}.ours").read_bytes() == (tmp_path / f"{name}.theirs").read_bytes()


def test_the_largest_shard_counts_tensors_alone(tmp_path):
    assert largest_shard(tmp_path) is None
    save_file({"a": torch.zeros(10)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(30), "c": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert largest_shard(tmp_path) == 128

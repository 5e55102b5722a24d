"""SAM2's image encoder from an .ort file: its tensors, its tables of positions, and ONNX Runtime's own outputs."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.models import load
from luthier.models.convert import _ort
from luthier.models.convert.sam2hiera import split


class Buffer:
    """Writes what a FlatBuffer holds front to back, tables before what they point to."""

    def __init__(self) -> None:
        self.data = bytearray(struct.pack("<I4s", 0, b"ORTM"))

    def table(self, fields: int, place: int) -> int:
        """An empty table of so many fields, each of four bytes behind the table's first, that a place points to."""
        start = len(self.data)
        places = [4 + 4 * i for i in range(fields)]
        self.data += struct.pack(f"<HH{fields}H", 4 + 2 * fields, 4 + 4 * fields, *places)
        table = len(self.data)
        struct.pack_into("<I", self.data, place, table - place)
        self.data += struct.pack("<i", table - start) + bytes(4 * fields)
        return table

    def point(self, place: int) -> None:
        """Lets a place point to what is written next."""
        struct.pack_into("<I", self.data, place, len(self.data) - place)

    def vector(self, count: int, held: bytes) -> int:
        self.data += struct.pack("<I", count) + held
        return len(self.data) - len(held)


def ort_file(path: Path, name: str, array: np.ndarray, kind: int) -> Path:
    """An inference session whose model's graph has one initializer."""
    made = Buffer()
    session = made.table(2, 0)
    model = made.table(8, session + 4 + 4 * 1)
    graph = made.table(1, model + 4 + 4 * 7)
    made.point(graph + 4)
    tensor = made.table(5, made.vector(1, bytes(4)))
    struct.pack_into("<i", made.data, tensor + 4 + 4 * 3, kind)
    for field, count, held in (
        (0, len(name), name.encode()),
        (2, array.ndim, struct.pack(f"<{array.ndim}q", *array.shape)),
        (4, array.nbytes, array.tobytes()),
    ):
        made.point(tensor + 4 + 4 * field)
        made.vector(count, held)
    path.write_bytes(bytes(made.data))
    return path


def test_a_tensor_of_an_ort_file_is_read_by_its_offsets(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (found,) = _ort.tensors(ort_file(tmp_path / "a.ort", "weight", array, 1)).items()
    assert found[0] == "weight" and np.array_equal(found[1], array)
    assert _ort.tensors(ort_file(tmp_path / "b.ort", "texts", array, 8)) == {}  # strings


def test_what_is_no_ort_file_or_ends_early_is_told(tmp_path):
    whole = ort_file(tmp_path / "a.ort", "weight", np.ones(100, np.float32), 1).read_bytes()
    (tmp_path / "b.ort").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(LuthierError, match="does not say ORTM"):
        _ort.tensors(tmp_path / "b.ort")
    for end in range(20, len(whole) - 1, 7):
        (tmp_path / "c.ort").write_bytes(whole[:end])
        with pytest.raises(LuthierError, match="is damaged"):
            _ort.tensors(tmp_path / "c.ort")


def test_two_tables_of_positions_are_solved_for_from_their_sum():
    """At the size of the sum and at others, where the tables were never seen."""
    torch.manual_seed(0)
    p, w = torch.randn(1, 3, 7, 7), torch.randn(1, 3, 8, 8)

    def positions(p, w, size):
        wide = torch.nn.functional.interpolate(p, size=(size, size), mode="bicubic")
        return wide + w.tile(1, 1, size // 8, size // 8)

    found = split(positions(p, w, 64), 7, 8)
    for size in (64, 16, 32):
        torch.testing.assert_close(positions(*found, size), positions(p, w, size), rtol=0, atol=2e-5)
    with pytest.raises(LuthierError, match="not the sum of two tables"):
        split(torch.randn(1, 3, 64, 64), 7, 8)


@pytest.mark.real
def test_the_converted_encoder_is_the_file_as_onnx_runtime_runs_it():
    """The neck's third level, recorded with onnxruntime 1.32.0: channels 0, 64, …, rows 0, 21, …, column 9."""
    loaded = load("sam2-hiera-tiny", task="embedding")
    assert sum(p.numel() for p in loaded.model.parameters()) == 27_219_136 and loaded.new_modules == []
    i, j = torch.meshgrid(torch.arange(1024.0), torch.arange(1024.0), indexing="ij")
    picture = torch.stack([torch.sin(0.01 * (c + 1) * i + 0.013 * j) for c in range(3)])[None]
    with torch.no_grad():
        found = loaded.model(pixel_values=picture).fpn_hidden_states[-1][0, ::64, ::21, 9]
    torch.testing.assert_close(found, torch.tensor(RECORDED), rtol=0, atol=1e-4)


RECORDED = [
    [-0.31803, -0.23922, -0.10198, 0.03592],
    [0.42480, 0.21608, 0.12621, 0.14893],
    [-0.20378, -0.18119, -0.21206, -0.24431],
    [0.15707, 0.22105, 0.02386, 0.10391],
]

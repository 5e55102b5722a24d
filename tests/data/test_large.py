"""Rows of large files stay on disk, and are the rows that they would be in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import data
from luthier.core.contracts.example import split, without
from luthier.core.errors import LuthierError
from luthier.core.lazy import Lazy
from luthier.data import large

ROWS = {
    "messages": lambda i: {"messages": [{"role": r, "content": f"{r}{i % 7}"} for r in ("user", "assistant")]},
    "prompt": lambda i: {"prompt": f"{i % 11}+1=", "completion": str(i % 11 + 1), "source": "x"},
    "classes": lambda i: {"text": f"row {i}", "label": i % 3},
    "measures": lambda i: {"text": f"row {i}", "label": i / 7},
    "text": lambda i: {"text": f"é {i}\u2028more"},
    "renamed": lambda i: {"body": f"row {i}", "text": "not this"},
    "some bad": lambda i: {"text": f"row {i}"} if i % 5 else {"text": None},
}  # fmt: skip


def loaded(source: Path | str, **settings) -> data.Examples:
    return data.load(source, skip_bad_rows=True, seed=3, **settings)


def same(small: data.Examples, big: data.Examples) -> None:
    assert isinstance(big.rows, Lazy) and not isinstance(small.rows, Lazy)
    assert list(big.rows) == list(small.rows) and big.fingerprint == small.fingerprint
    for name in ("layout", "skipped", "labels", "task", "unread"):
        assert getattr(big, name) == getattr(small, name)
    assert (big.scorer and big.scorer.name) == (small.scorer and small.scorer.name)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_large_file_holds_what_a_small_one_holds(kind, suffix, tmp_path, monkeypatch):
    rows, file = [ROWS[kind](i) for i in range(60)], tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n\n" for row in rows) + "no JSON\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    settings = {"named": "text=body"} if kind == "renamed" else {}
    small = [loaded(file, **settings), loaded(file, limit=9, **settings)]
    monkeypatch.setattr(large, "LARGE", 0)
    big = [loaded(file, **settings), loaded(file, limit=9, **settings)]
    for one, other in zip(small, big, strict=True):
        same(one, other)
    for one, other in zip(split(small[0], n=10, seed=1), split(big[0], n=10, seed=1), strict=True):
        assert list(one.rows) == list(other.rows) and one.fingerprint == other.fingerprint
    assert len(without(big[0], big[1])) == len(without(small[0], small[1]))


def test_files_of_a_folder_and_of_a_mix_follow_one_another(tmp_path, monkeypatch):
    for name in ("train-1", "train-2"):
        rows = [ROWS["prompt"](i) for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[\n")
    sources = [tmp_path, f"mix:a={tmp_path / 'train-1.jsonl'},b={tmp_path / 'train-2.jsonl'}"]
    small = [loaded(source) for source in sources]
    monkeypatch.setattr(large, "LARGE", 0)
    for one, source in zip(small, sources, strict=True):
        same(one, loaded(source))


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(ROWS["text"](i)) + "\n" for i in range(10)))
    monkeypatch.setattr(large, "LARGE", 0)
    examples = loaded(file)
    with file.open("a") as more:
        more.write("\n")
    with pytest.raises(LuthierError, match="changed while it was read"):
        list(examples.rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_that_cannot_be_read_are_told_one_by_one(suffix, tmp_path, monkeypatch):
    file = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        rows = [json.dumps({"text": f"row {i}"}) for i in range(20)]
        rows[3], rows[9] = "[" * 100_000, '{"text": ' + "9" * 5000 + "}"
        file.write_text("\n".join(rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = pa.array([f"row {i}".encode() for i in range(20)])
        broken = pa.array([b"\xff" if i == 9 else b"x" for i in range(20)])
        late = pa.array([2**62 if i == 3 else 0 for i in range(20)], pa.timestamp("us"))
        columns = {"text": texts.cast(pa.string()), "more": broken.view(pa.string()), "at": late}
        pq.write_table(pa.table(columns), file, row_group_size=7)
    small = loaded(file)
    monkeypatch.setattr(large, "LARGE", 0)
    same(small, loaded(file))
    assert [number for number, _ in small.skipped] == [4, 10]
    with pytest.raises(LuthierError, match="2 of 20 rows"):
        data.load(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_large_file_may_begin_with_a_mark(encoding, tmp_path, monkeypatch):
    file, mark = tmp_path / "rows.jsonl", "\ufeff" if encoding == "utf-16-be" else ""
    text = mark + "".join(json.dumps({"text": f"é {i}"}, ensure_ascii=False) + "\n" for i in range(9))
    file.write_bytes(text.encode(encoding))
    small = loaded(file)
    monkeypatch.setattr(large, "LARGE", 0)
    big = loaded(file)
    assert list(big.rows) == list(small.rows) and len(small) == 9 and big.skipped == small.skipped == []


def test_a_large_file_that_is_not_parquet_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LARGE", 0)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    with pytest.raises(LuthierError, match="is not a readable Parquet file"):
        loaded(tmp_path / "rows.parquet")


def test_rows_of_a_large_saved_set_are_told(tmp_path, monkeypatch):
    import datasets
    import pyarrow as pa

    late = pa.array([0, 2**62], pa.timestamp("us"))
    made = datasets.Dataset(pa.table({"text": ["a", "b"], "at": late}))
    made.save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(large, "LARGE", 0)
    with pytest.raises(LuthierError, match=r"row 2 of .*saved cannot be read"):
        loaded(tmp_path / "saved")


def test_loading_reads_a_large_file_few_times(tmp_path, monkeypatch):
    from luthier.data import files

    rows, counted, parsed = [ROWS["messages"](i) for i in range(50)], [], files._parsed
    monkeypatch.setattr(files, "_parsed", lambda text: counted.append(0) or parsed(text))
    monkeypatch.setattr(large, "LARGE", 0)
    (file := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert data.kind_of_rows(str(file)) == "answers"
    examples = loaded(file)
    # its places and columns; its rows, with their fingerprint and keys; what is unread
    assert len(counted) <= 3 * len(rows)
    split(examples, n=10)
    assert len(counted) <= 4 * len(rows)  # the fingerprint of each part

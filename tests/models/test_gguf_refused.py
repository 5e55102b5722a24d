"""GGUF files that hold no whole model are refused in one line, before their weights are read or a model is made."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from luthier.core.errors import LuthierError
from luthier.models.resolve import resolve
from support.gguf_files import write_gguf

gguf = pytest.importorskip("gguf")


def written(path, architecture: str = "llama", kind: str | None = None, sizes: dict | None = None, **texts: str):
    """A file of one small tensor; `sizes` are numbers of the metadata, or lists of them, `texts` have dots as `__`."""
    writer = gguf.GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_type(kind)
    for key, value in texts.items():
        writer.add_string(key.replace("__", "."), value)
    for key, value in (sizes or {}).items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path) -> str:
    with pytest.raises(LuthierError) as told:
        resolve(str(path))
    assert "\n" not in str(told.value) and path.name in str(told.value)
    return str(told.value)


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """Nothing reads a file for its digest, or starts to convert it."""

    def long_work(*_args, **_kwargs):
        raise AssertionError("long work was begun")

    module = importlib.import_module("luthier.models.resolve")  # whose function has the same name
    monkeypatch.setattr(module, "sha256", long_work)
    monkeypatch.setattr(module, "convert", long_work)


def test_parts_of_a_model_are_named(tmp_path):
    """As `gguf` itself writes them: the later parts have no metadata of the model."""
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.zeros(32, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("tiny-0000?-of-00003.gguf"))
    assert len(parts) == 3
    for part in parts:
        assert "one of 3 parts" in (told := refused(part)) and "llama-gguf-split --merge" in told


BESIDE = {
    "an adapter": ({"kind": "adapter", "adapter__type": "lora"}, "is an adapter in GGUF"),
    "an adapter of unsaid kind": ({"adapter__type": "lora"}, "is an adapter in GGUF"),
    "a part that sees": ({"architecture": "clip", "kind": "mmproj"}, "is a mmproj file"),
    "an older part that sees": ({"architecture": "clip"}, "is a mmproj file"),
    "importances": ({"kind": "imatrix"}, "is a imatrix file"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_goes_beside_a_model_is_named(case, tmp_path):
    settings, told = BESIDE[case]
    assert told in refused(written(tmp_path / "it.gguf", **settings))


def test_the_adapter_that_export_writes_is_named(tmp_path):
    import luthier as lt
    from support.shipped import ROWS, build

    model = lt.attach(build("llama", vocab_size=ROWS), lt.LoRA(rank=1))
    lt.save(model, tmp_path / "adapter")
    lt.export(tmp_path / "adapter", tmp_path / "out", to="gguf-lora", base=build("llama", vocab_size=ROWS))
    assert "is an adapter in GGUF" in refused(tmp_path / "out" / "adapter.gguf")


SMALL = {"block_count": 1, "embedding_length": 32, "attention.head_count": 2, "feed_forward_length": 64}
LARGE = {
    "layers": {"block_count": 2**31},
    "width": {"embedding_length": 2**24},
    "heads": {"attention.head_count": 2**20, "attention.key_length": 128},
    "feed-forward": {"feed_forward_length": 2**28},
    "feed-forward of one layer": {"feed_forward_length": [64, 2**28]},
    "experts": {"expert_count": 2**16, "expert_feed_forward_length": 2**12},
    "vocabulary": {"vocab_size": 2**30},
}


@pytest.mark.parametrize("case", LARGE)
def test_metadata_of_a_larger_model_than_the_tensors_are_refused(case, tmp_path):
    sizes = {f"llama.{key}": value for key, value in (SMALL | LARGE[case]).items()}
    told = refused(written(tmp_path / "it.gguf", sizes=sizes))
    assert "is damaged or incomplete" in told and "hold 256." in told


@pytest.mark.parametrize("key", ["block_count", "embedding_length"])
def test_metadata_without_a_size_are_refused(key, tmp_path):
    sizes = {f"llama.{name}": value for name, value in SMALL.items() if name != key}
    assert "do not say how many layers" in refused(written(tmp_path / "it.gguf", sizes=sizes))


def test_a_size_that_is_a_text_is_told(tmp_path):
    assert "'many'" in refused(written(tmp_path / "it.gguf", llama__block_count="many"))


def test_a_whole_model_passes(tmp_path):
    with pytest.raises(AssertionError, match="long work was begun"):
        resolve(str(write_gguf(tmp_path / "it.gguf", "llama-bpe")))

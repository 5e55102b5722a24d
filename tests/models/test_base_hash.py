"""The files of a base, told from others without loading it."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

from luthier.core.errors import LuthierError
from luthier.models import base_hash
from support.tiny import save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("ground") / "llama", "llama")


def test_every_tensor_counts(base, tmp_path):
    here = tmp_path / "base"
    shutil.copytree(base, here)
    first = base_hash(base)
    assert first is not None and base_hash(str(here)) == first
    held = load_file(here / "model.safetensors")
    for name in held:
        changed = held | {name: held[name] * 1.001}
        save_file(changed, here / "model.safetensors", {"format": "pt"})
        assert base_hash(str(here)) != first, name
    save_file(held, here / "model.safetensors", {"format": "pt"})
    assert base_hash(str(here)) == first
    (here / "README.md").write_text("mine")
    assert base_hash(str(here)) == first
    (here / "chat_template.jinja").write_text("{{ messages }}")
    assert base_hash(str(here)) != first


def test_code_counts_and_damage_is_told(base, tmp_path):
    here = tmp_path / "base"
    shutil.copytree(base, here)
    (here / "modeling_own.py").write_text("a = 1")
    assert base_hash(str(here)) != base_hash(base)
    weights = here / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:8] + b"{" + weights.read_bytes()[9:40] + b"x" * 2**16)
    with pytest.raises(LuthierError, match=r"model\.safetensors has no readable header"):
        base_hash(str(here))


def test_what_is_not_here_yet_has_none(monkeypatch):
    assert base_hash("nobody-at-all/no-such-model") is None

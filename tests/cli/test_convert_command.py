"""`luthier convert`."""

from __future__ import annotations

import pytest

import luthier as lt
from luthier.models import load
from support.cli_tools import save_adapter


@pytest.fixture
def ours(llama, tmp_path):
    return save_adapter(load(str(llama)).model, lt.LoRA(rank=2), tmp_path / "ours", str(llama), "q_proj")


def test_the_base_is_the_one_that_the_folder_names(call, ours, tmp_path):
    assert call("export", ours, tmp_path / "peft").code == 0
    assert call("convert", tmp_path / "peft", tmp_path / "mlx", "--to", "mlx_lm").code == 0
    done = call("convert", tmp_path / "mlx", tmp_path / "again", "--to", "peft")
    assert done.code == 0 and "holds the adapter in the format of peft" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "mlx", "ours", "peft"]


def test_a_way_that_is_not_there_and_settings_of_another_format_are_told(call, ours, tmp_path):
    done = call("convert", ours, tmp_path / "out", "--to", "pyreft")
    assert done.code == 2 and "pyreft's classes edit what leaves or enters a module" in done.err
    done = call("convert", ours, tmp_path / "out", "--to", "peft", "--positions", "f1")
    assert done.code == 2 and "which takes no positions" in done.err
    assert not (tmp_path / "out").exists()


def test_no_signature_is_expected_of_other_libraries(call, ours, tmp_path):
    pytest.importorskip("model_signing")
    assert call("export", ours, tmp_path / "peft").code == 0
    key = ("--require-signature", ours / "adapter.json")
    done = call("convert", tmp_path / "peft", tmp_path / "out", "--to", "mlx_lm", *key)
    assert done.code == 2 and "no other adapters are signed" in done.err and not (tmp_path / "out").exists()

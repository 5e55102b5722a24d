"""Control vectors: a constant behind a block, there and back, and what is none."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from support.recorded import base, logits

gguf = pytest.importorskip("gguf")


def constant(rank: int = 2, where: str = "stream & layers(1, 2)", positions: str = "all"):
    torch.manual_seed(0)
    model = lt.attach(base("llama"), lt.LobiReFT(rank=rank, positions=positions), where=where)
    for parameter in lt.trainable(model).values():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    return model


def vector(folder, **directions):
    writer = gguf.GGUFWriter(folder / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    for key, tensor in directions.items():
        writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_the_file_holds_what_the_edit_adds(tmp_path):
    model = constant()
    lt.save(model, tmp_path / "adapter")
    lt.export(tmp_path / "adapter", tmp_path / "out", to="control_vector", base=base("llama"))
    held = {each.name: torch.tensor(each.data) for each in gguf.GGUFReader(tmp_path / "out" / "vector.gguf").tensors}
    assert set(held) == {"direction.1", "direction.2"}
    seen, plain = {}, base("llama")
    plain.model.layers[2].register_forward_hook(lambda *given: seen.setdefault("plain", given[2]))
    model.model.layers[2].register_forward_hook(lambda *given: seen.setdefault("edited", given[2]))
    plain.model.layers[1].register_forward_hook(lambda _, __, y: y + held["direction.1"])
    logits(plain), logits(model)
    torch.testing.assert_close(seen["edited"] - seen["plain"], held["direction.2"].expand_as(seen["plain"]))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: constant(where="stream"), "block 0 has no name"),
        (lambda: constant(positions="f1"), "not a constant"),
        (lambda: lt.attach(base("llama"), lt.LoRA(rank=1)), "not a constant"),
    ],
)
def test_what_is_no_control_vector_is_refused(model, match, tmp_path):
    lt.save(model(), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match=match):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="control_vector", base=base("llama"))


def test_strange_files_are_refused(tmp_path):
    one = torch.ones(16)
    for number, (match, directions) in enumerate(
        {
            "expected direction.1 to direction.2": {"direction.3": one},
            "holds direction.0": {"direction.0": one},
            "stream has 16": {"direction.1": torch.ones(8)},
            "adds nothing": {"direction.1": torch.zeros(16)},
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(lt.LuthierError, match=match):
            lt.import_adapter(vector(folder, **directions), folder / "ours", base=base("llama"))
    with pytest.raises(lt.LuthierError, match="for a model of type llama"):
        lt.import_adapter(vector(tmp_path, **{"direction.1": one}), tmp_path / "ours", base=base("mistral"))

"""What a GGUF file says of its model is in the model made of it, as llama.cpp runs it, or the file is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import luthier as lt
from interop.test_gguf import MODELS, made, same_as_llamacpp
from luthier.interop.formats._gguf.architectures import ARCHITECTURES
from luthier.models.convert.gguf_config import _by_factors, _llama3, check_whole, completed
from support.shipped import ROWS, build, byte_level, logits

gguf = pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def base(case: str):
    """A model whose biases are not zero."""
    model = made(case)
    for turn, (name, parameter) in enumerate(model.named_parameters()):
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(turn))
    return model


def file_of(case: str, folder: Path) -> Path:
    lt.save(lt.attach(base(case), lt.LoRA(rank=1)), folder / "none")
    lt.export(folder / "none", folder / "out", to="gguf", base=base(case), processor=byte_level())
    return folder / "out" / "model.gguf"


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_left_comes_back_as_it_was(case, tmp_path):
    back = lt.model(str(file_of(case, tmp_path))).model
    ids = torch.randint(12, 300, (2, 60), generator=torch.Generator().manual_seed(1))
    assert (logits(back, ids) - logits(base(case), ids)).abs().max() < 1e-5


def linear(writer) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def yarn(writer) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)


def unscaled(writer) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


SCALED = {
    "linear": ("llama", linear),
    "linear, where layers see far alone": ("gemma3", linear),
    "yarn": ("qwen2", yarn),
    "none": ("qwen3", unscaled),
}


def told(monkeypatch, kind: str, more) -> None:
    """Files of a kind say `more` from now on."""
    own = ARCHITECTURES[kind]

    def metadata(writer, config) -> None:
        own.metadata(writer, config)
        more(writer)

    monkeypatch.setitem(ARCHITECTURES, kind, dataclasses.replace(own, metadata=metadata))


@pytest.mark.parametrize("case", SCALED)
def test_positions_are_scaled_as_in_llamacpp(case, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    name, more = SCALED[case]
    told(monkeypatch, base(name).config.model_type, more)
    path = file_of(name, tmp_path)
    model = lt.model(str(path)).model
    assert same_as_llamacpp(model, path)
    moved = bool((logits(model) - logits(base(name))).abs().max() > 1e-3)
    assert moved == (more is not unscaled)


def test_queries_of_the_largest_gemma_have_the_scale_that_llamacpp_gives_them(tmp_path):
    """It goes by the number of layers, which no file says of anything else."""
    pytest.importorskip("xllamacpp")
    settings = {"num_hidden_layers": 62, "head_dim": 16, "query_pre_attn_scalar": 8}
    model = build("gemma3", vocab_size=ROWS, **settings)
    lt.save(lt.attach(build("gemma3", vocab_size=ROWS, **settings), lt.LoRA(rank=1)), tmp_path / "none")
    lt.export(tmp_path / "none", tmp_path / "out", to="gguf", base=model, processor=byte_level())
    back = lt.model(str(path := tmp_path / "out" / "model.gguf")).model
    assert back.config.query_pre_attn_scalar == 8 and same_as_llamacpp(back, path)
    assert (logits(back) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize(("theta", "factor"), [(500_000.0, 8.0), (500_000.0, 32.0), (10_000.0, 4.0)])
def test_factors_of_llama_3_are_told_by_its_rule(theta, factor):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": theta}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope)
    plain = theta ** -(torch.arange(64) / 64)
    factors = plain / LlamaRotaryEmbedding(config).inv_freq
    assert torch.allclose(_llama3(64, theta, factor, 8192), factors, rtol=1e-4)
    assert _by_factors(factors, theta, 8192, 131072) | {"rope_theta": theta} == rope


class Said:
    """What a file says, by its keys."""

    weights = Path("it.gguf")

    def __init__(self, **said):
        self.values = {key.replace("__", "."): value for key, value in said.items()}

    def of(self, key: str):
        return self.values.get(key)


def test_the_base_of_positions_and_their_share_of_a_head_are_read_of_every_kind():
    """transformers' table for some kinds lacks the one or the other, and its defaults are one checkpoint's."""
    from transformers import StableLmConfig, Starcoder2Config

    said = {"stablelm__rope__freq_base": 2e4, "stablelm__rope__dimension_count": 4, "starcoder2__rope__freq_base": 1e6}
    found = completed(StableLmConfig(), Said(general__architecture="stablelm", **said), {}).rope_parameters
    assert (found["rope_theta"], found["partial_rotary_factor"]) == (2e4, 4 / 80)
    found = completed(Starcoder2Config(), Said(general__architecture="starcoder2", **said), {}).rope_parameters
    assert found["rope_theta"] == 1e6


def rewritten(path: Path, out: Path, leave=(), add=None) -> Path:
    """The file without some tensors, and with others."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    held = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name not in leave}
    for name, data in {**held, **(add or {})}.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


CHANGED = {
    "a weight that is missing": (["blk.1.ffn_up.weight"], {}, r"holds no weights for model\.layers\.1\.mlp\.up_proj"),
    "a bias of one layer": ([], {"blk.1.attn_output.bias": (32,)}, "are in the MistralForCausalLM|are in the Llama"),
    "a bias of queries alone": ([], {"blk.0.attn_q.bias": (32,)}, "holds no weights for .*bias"),
    "factors for long texts": ([], {"rope_factors_long.weight": (4,)}, "for short and for long texts"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_file_that_would_be_read_as_another_model_is_refused(case, tmp_path):
    leave, add, message = CHANGED[case]
    made_up = {name: torch.ones(shape).numpy() for name, shape in add.items()}
    path = rewritten(file_of("llama", tmp_path), tmp_path / "changed.gguf", leave, made_up)
    with pytest.raises(lt.LuthierError, match=message):
        lt.model(str(path))


def test_numbers_of_a_buffer_are_counted_and_tied_ones_once():
    """As the correction of MiniMax-M2's experts, which is no parameter."""
    model = torch.nn.Module()
    model.first = model.second = torch.nn.Parameter(torch.ones(3))
    model.register_buffer("bias", torch.ones(4))
    model.register_buffer("made", torch.ones(5), persistent=False)
    model.config = SimpleNamespace(num_hidden_layers=1)
    said = SimpleNamespace(weights=Path("a.gguf"), of=lambda key: None)
    given = {"blk.0.a": SimpleNamespace(n_elements=3), "blk.0.b": SimpleNamespace(n_elements=4)}
    check_whole(said, given, model, [])
    with pytest.raises(lt.LuthierError, match="holds 3 numbers, and 7 are in"):
        check_whole(said, {"blk.0.a": given["blk.0.a"]}, model, [])

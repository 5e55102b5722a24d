"""What a small pass meets: widths of streams, layers that are not called, weights that their owner reads itself."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
import transformers as tf
from torch import nn

import luthier as lt
from luthier.core.adapters.reach import CannotRun
from luthier.core.contracts.form import Form
from luthier.core.sites.inputs import NotKnown, dummy_inputs
from luthier.core.storage.format import read
from luthier.core.storage.store import write_spec


def mamba(cls=tf.MambaForCausalLM):
    torch.manual_seed(0)
    config = cls.config_class(hidden_size=32, num_hidden_layers=2, vocab_size=97, state_size=4, time_step_rank=4)
    return cls(config).eval()


def swin():
    torch.manual_seed(0)
    config = tf.SwinConfig(embed_dim=8, num_heads=[1, 2], depths=[2, 2], image_size=32, window_size=2, num_labels=3)
    return tf.SwinForImageClassification(config).eval()


def output(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**(inputs or dummy_inputs(model))).logits


def move(model) -> None:
    for parameter in lt.trainable(model).values():
        parameter.data += 0.2 * torch.randn_like(parameter)


def test_all_linear_leaves_out_what_the_mixer_reads_itself_and_says_so():
    model = mamba()
    with pytest.warns(UserWarning, match=r"all-linear leaves out 2 places .*mixer\.dt_proj"):
        found = lt.select(model, "all-linear")
    assert {site.type.rpartition(".")[2] for site in found} == {"in_proj", "x_proj", "out_proj"}


@pytest.mark.parametrize("cls", [tf.MambaForCausalLM, tf.FalconMambaForCausalLM], ids=["mamba", "falcon_mamba"])
@pytest.mark.parametrize("form", [lt.LoRA(rank=2), lt.WeGeFT(rank=2), lt.DoRA(rank=2)], ids=["lora", "wegeft", "dora"])
def test_a_layer_that_its_owner_reads_is_adapted_where_it_is_read(cls, form, tmp_path):
    model, ids = mamba(cls), {"input_ids": torch.randint(3, 97, (2, 9))}
    base = output(model, **ids)
    lt.attach(model, form, "dt_proj")
    assert torch.allclose(output(model, **ids), base, atol=1e-5)
    move(model)
    moved = output(model, **ids)
    assert (moved - base).abs().max() > 1e-5
    model(**ids).logits.pow(2).sum().backward()
    assert all(bool(p.grad.any()) for p in lt.trainable(model).values())
    lt.save(model, tmp_path / "adapter")
    assert torch.equal(output(lt.load(mamba(cls), tmp_path / "adapter"), **ids), moved)
    lt.merge(model)
    assert torch.allclose(output(model, **ids), moved, atol=1e-5)
    lt.detach(lt.unmerge(model))
    assert torch.equal(output(model, **ids), base)


def test_a_form_that_no_weight_expresses_is_refused_where_a_weight_is_read():
    with pytest.raises(lt.LuthierError, match="never meets these"):
        lt.attach(mamba(), lt.LoReFT(rank=2), "dt_proj")


def test_a_layer_that_is_called_and_read_is_adapted_once_in_both():
    """In training, Mamba hands its weights to a fused kernel, where one is installed."""
    model = mamba()
    lt.attach(model, lt.LoRA(rank=2), "x_proj")
    move(model)
    layer = model.backbone.layers[0].mixer.x_proj
    tuner, x = layer.adapters.tuners()[0], torch.randn(3, layer.in_features)
    whole = layer._parameters["weight"] + tuner.form.scale * tuner.B @ tuner.A
    assert torch.allclose(layer.weight, whole, atol=1e-6)
    assert torch.allclose(layer(x), x @ whole.mT, atol=1e-5)


def test_the_stream_has_the_width_that_leaves_a_block():
    assert {site.d_out for site in lt.select(mamba(), "stream")} == {32}
    assert [site.d_out for site in lt.select(swin(), "stream")] == [16, 16]  # the first stage widens behind its blocks


@pytest.mark.parametrize("form", [lt.LoReFT(rank=2), lt.LoReFT(rank=2, share="type"), lt.LoRA(rank=2, share="type"),
                                  lt.WeGeFT(rank=2, share="type")], ids=str)  # fmt: skip
def test_stages_of_other_widths_have_streams_and_shared_parameters_of_their_own(form, tmp_path):
    model, image = swin(), {"pixel_values": torch.randn(2, 3, 32, 32)}
    base = output(model, **image)
    lt.attach(model, form)
    move(model)
    moved = output(model, **image)
    assert (moved - base).abs().max() > 1e-4
    lt.save(model, tmp_path / "adapter")
    assert torch.equal(output(lt.load(swin(), tmp_path / "adapter"), **image), moved)


def test_shared_by_type_layers_of_one_size_have_one_set():
    model = lt.attach(swin(), lt.LoRA(rank=2, share="type"), "q_proj")
    names = {key.rpartition(".")[0] for key in lt.trainable(model)}
    assert names == {f"default.swin.encoder.layers.blocks.attention.q_proj{more}" for more in ("", "[16x16]")}


def test_layers_for_what_is_not_given_are_left_out():
    """A decoder on its own has attentions for an encoder that nobody calls."""
    config = tf.BartConfig(vocab_size=97, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48)
    model = tf.BartForCausalLM(config)
    with pytest.warns(UserWarning, match="encoder_attn"):
        lt.attach(model, lt.LoRA(rank=2))
    assert not any("encoder_attn" in key for key in lt.trainable(model))
    assert any("self_attn.q_proj" in key for key in lt.trainable(model))


def test_images_with_their_channels_ahead_have_no_stream():
    config = tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
    with pytest.raises(lt.LuthierError, match="channels ahead"):
        lt.select(tf.ConvNextForImageClassification(config), "stream")


class Unknown(tf.PreTrainedModel):
    """A model that made-up inputs do not fit."""

    config_class = tf.PreTrainedConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])

    def forward(self, input_ids, secret=None):
        if secret is None:
            raise KeyError("secret")
        x = nn.functional.one_hot(input_ids, 5).float()
        return (self.layers[1](self.layers[0](x)),)


def test_a_model_that_cannot_be_run_is_adapted_with_a_warning():
    model = Unknown(tf.PreTrainedConfig())
    with pytest.raises(NotKnown):
        lt.select(model, "attention")
    with pytest.warns(UserWarning, match=r"KeyError: 'secret'.*not checked"):
        lt.attach(model, lt.LoRA(rank=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lt.attach(model, lt.LoRA(rank=2), name="quiet", check=False)


@dataclass(frozen=True)
class Breaking(Form):
    """ŷ = nothing that can be had"""

    def init(self, site, stats):
        return {"a": torch.zeros(1)}

    def post(self, p, x, y):
        raise IndexError("out of range")


def test_an_adapter_that_breaks_the_pass_is_refused_and_taken_off():
    model = swin()
    with pytest.raises(CannotRun, match="IndexError: out of range"):
        lt.attach(model, Breaking())
    assert type(model.swin.encoder.layers[0].blocks[0].attention.q_proj) is nn.Linear


def test_a_text_model_that_also_takes_images_runs_on_text():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = tf.LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 97, "num_key_value_heads": 2, **sizes},
        vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **sizes},
        image_token_id=90,
    )
    model = tf.LlavaForConditionalGeneration(config).eval()
    assert "input_ids" in dummy_inputs(model)
    for form in (lt.LoRA(rank=2), lt.LoReFT(rank=2)):
        lt.attach(model, form, name=form.name())
        assert any(f"{form.name()}.model.language_model" in key for key in lt.trainable(model))


class Grouped(nn.Linear):
    """Linear by its class: it maps groups of vectors, each with rows of its own."""

    def forward(self, x):
        weight = self.weight.view(x.shape[-2], -1, self.in_features)
        return torch.einsum("...gi,goi->...go", x, weight)


def test_a_layer_that_is_linear_by_its_class_alone_is_left_out():
    model = swin()
    layer = model.swin.encoder.layers[1].blocks[1].mlp
    layer.fc1 = Grouped(16, layer.fc1.out_features)
    layer.fc1.register_forward_pre_hook(lambda module, args: (args[0][..., None, :],))
    layer.fc1.register_forward_hook(lambda module, args, y: y.flatten(-2))
    found = {site.path for site in lt.select(model, "all-linear")}
    assert "swin.encoder.layers.1.blocks.1.mlp.fc1" not in found and "swin.encoder.layers.1.blocks.0.mlp.fc1" in found


def test_an_adapter_from_before_layers_were_left_out_still_loads(tmp_path):
    config = tf.BartConfig(vocab_size=97, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48)
    model = tf.BartForCausalLM(config).eval()
    fresh = copy.deepcopy(model)
    lt.attach(model, lt.LoRA(rank=2), lt.select(model, "all-linear", uncalled=True), check=False)
    lt.save(model, tmp_path / "adapter")
    spec = read(tmp_path / "adapter")
    spec["parts"][0]["where"] = "all-linear"
    write_spec(tmp_path / "adapter", spec)
    lt.load(fresh, tmp_path / "adapter", check=False)
    assert sorted(lt.trainable(fresh)) == sorted(lt.trainable(model))


def llama4():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "intermediate_size_mlp": 24, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    return tf.Llama4ForCausalLM(tf.Llama4TextConfig(**sizes, **heads, num_experts_per_tok=1)).eval()


def test_a_router_that_is_linear_by_its_class_is_left_out_and_adapted_at_its_weight():
    """What leaves it are scores and logits of all experts: an adapter beside it changed the scores after the choice."""
    model, ids = llama4(), {"input_ids": torch.randint(3, 40, (2, 9))}
    with pytest.warns(UserWarning, match=r"all-linear leaves out 2 places .*router"):
        assert not [site for site in lt.select(model, "all-linear") if "router" in site.path]
    with pytest.raises(lt.LuthierError, match=r"more than map what enters it .*params\(model\.layers\.0"):
        lt.attach(model, lt.LoRA(rank=2), "router")
    base = output(model, **ids)
    lt.attach(model, lt.LoRA(rank=2), "params(*.router.weight)")
    move(model)
    moved = output(model, **ids)
    lt.merge(model)
    assert (moved - base).abs().max() > 1e-4 and torch.allclose(output(model, **ids), moved, atol=1e-5)


def test_lists_of_lists_are_no_blocks():
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 2], "num_attention_heads": [1, 1], "num_encoder_blocks": 2}
    more = {"patch_sizes": [4, 2], "strides": [4, 2], "mlp_ratios": [1, 1], "sequence_reduction_ratios": [1, 1]}
    model = tf.PvtForImageClassification(tf.PvtConfig(image_size=16, **sizes, **more)).eval()
    found = lt.select(model, "stream")
    assert [site.path for site in found] == [f"pvt.encoder.block.{i}.{j}" for i, j in ((0, 0), (1, 0), (1, 1))]
    with pytest.raises(lt.LuthierError, match="list of modules"):
        lt.select(model, "output(pvt.encoder.block.1)")
    pictures = {"pixel_values": torch.randn(2, 3, 16, 16)}
    base = output(model, **pictures)
    lt.attach(model, lt.LoReFT(rank=2, positions="all"))
    move(model)
    assert (output(model, **pictures) - base).abs().max() > 1e-4


def test_models_without_weights_are_passed_once_for_one_configuration(monkeypatch):
    """A pass on the meta device is slow; what it meets follows from the configuration."""
    from luthier.core.sites import probe

    passes, watched = [], probe._watched
    monkeypatch.setattr(probe, "_watched", lambda model: passes.append(model) or watched(model))

    def empty(width: int, blocks: int = 2) -> nn.Module:
        config = tf.LlamaConfig(
            hidden_size=width, intermediate_size=24, num_hidden_layers=blocks, num_attention_heads=2, vocab_size=61
        )
        with torch.device("meta"):
            return tf.LlamaForCausalLM(config)

    first, again, wider, deeper = (probe.met(empty(*sizes)) for sizes in [(8,), (8,), (12,), (8, 3)])
    assert len(passes) == 3 and again is first
    assert {met["model.layers.1"][1] for met in (first, deeper)} == {(1, 6, 8)}
    assert wider["model.layers.1"][1] == (1, 6, 12) and "model.layers.2" in deeper and "model.layers.2" not in first

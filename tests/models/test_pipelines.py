"""Parts of diffusers' pipelines are loaded as they lie there: a UNet, and text encoders with the tokenizer beside."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import luthier as lt
from luthier.models import load
from support.recorded import FOLDERS, base
from support.shipped import byte_level


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline's folder with two text encoders and their tokenizers."""
    for name, end in (("clip", ""), ("clip_projected", "_2")):
        base(name).save_pretrained(tmp_path / f"text_encoder{end}")
        byte_level().save_pretrained(tmp_path / f"tokenizer{end}")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return tmp_path


@pytest.mark.parametrize(("end", "kind"), [("", "CLIPTextModel"), ("_2", "CLIPTextModelWithProjection")])
def test_a_text_encoder_has_its_class_and_the_tokenizer_beside_it(end, kind, pipeline):
    loaded = load(str(pipeline / f"text_encoder{end}"), task="embedding")
    assert type(loaded.model).__name__ == kind and len(loaded.processor) == len(byte_level())


def test_the_formats_of_pipelines_load_parts_as_they_are():
    assert {lt.find("formats", name, lt.Format)().task(FOLDERS) for name in ("kohya", "diffusers")} == {"embedding"}


def test_a_pipeline_names_its_parts(pipeline):
    with pytest.raises(lt.LuthierError, match="Models are in it: text_encoder, text_encoder_2"):
        load(str(pipeline))


@pytest.mark.parametrize("kind", ["FluxTransformer2DModel", "UNet2DConditionModel"])
def test_other_parts_and_a_missing_library_are_told(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    match = "luthier.diffusion" if kind == "UNet2DConditionModel" else "FluxTransformer2DModel of diffusers"
    with pytest.raises(lt.LuthierError, match=match):
        load(str(tmp_path))


def test_a_unet_is_loaded(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    model.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), dtype="bfloat16")
    assert loaded.processor is None and loaded.model.dtype is torch.bfloat16 and not loaded.model.training

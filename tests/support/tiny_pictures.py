"""Tiny models that read pictures beside text."""

from __future__ import annotations

import torch
import transformers as tf

TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLACES = {"image_token_id": 90}


def llava():
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    seeing = tf.CLIPVisionConfig(**vision, image_size=16, patch_size=8)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=seeing, text_config=tf.LlamaConfig(**TEXT), **PLACES)
    )


def qwen2_vl():
    seeing = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6}
    marks = {"video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    config = tf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=seeing, **PLACES, **marks)
    return tf.Qwen2VLForConditionalGeneration(config)


MODELS = {"llava": llava, "qwen2_vl": qwen2_vl}


def built(name: str):
    torch.manual_seed(0)
    return MODELS[name]().eval()

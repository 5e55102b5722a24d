"""Tiny models that read pictures beside text, in folders with their processors, and rows of digits for them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from support.cli_tools import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}PICTURE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SIDE = 16


def tokenizer_of(place: str, template: str = TEMPLATE) -> Any:
    """A tokenizer that knows `place` as the token of a picture."""
    found = tiny_tokenizer()
    found.add_tokens([place], special_tokens=True)
    found.chat_template = template.replace("PICTURE", place)
    return found


def save_llava(folder: Path) -> Path:
    """A random LLaVA of two blocks with its processor: a picture of 16 x 16 is 4 tokens."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of("<image>")
    place = tokenizer.convert_tokens_to_ids("<image>")
    sees = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    seeing = tf.CLIPVisionConfig(**sees, image_size=SIDE, patch_size=8)
    reading = tf.LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    config = tf.LlavaConfig(vision_config=seeing, text_config=reading, image_token_id=place, pad_token_id=0)
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = tf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tf.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class QwenProcessor:
    """What Qwen2-VL's processor does with pictures, without torchvision, which the library's own asks for."""

    image_token = "<|image_pad|>"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.chat_template = tokenizer, None
        sizes = {"shortest_edge": 64, "longest_edge": 1024}
        self.pictures = tf.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes)

    def __call__(self, text: list[str], images: list[Any], **how: Any) -> Any:
        out = self.pictures(images=images, return_tensors="pt")
        first, *rest = text[0].split(self.image_token)
        grids = [int(grid.prod()) // 4 for grid in out["image_grid_thw"]]
        whole = first + "".join(self.image_token * n + part for n, part in zip(grids, rest, strict=True))
        out |= self.tokenizer([whole], add_special_tokens=False, return_tensors="pt")
        place = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return out | {"mm_token_type_ids": (out["input_ids"] == place).long()}


def qwen2_vl() -> tuple[Any, Any]:
    """A random Qwen2-VL whose tokenizer sees: its positions have three axes, and a picture takes fewer of them."""
    from luthier.models.seeing import give_eyes

    torch.manual_seed(0)
    tokenizer, own = tokenizer_of(QwenProcessor.image_token), tokenizer_of(QwenProcessor.image_token)
    seeing = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6}
    place = tokenizer.convert_tokens_to_ids(QwenProcessor.image_token)
    text = {**TEXT, "vocab_size": len(tokenizer) + 3, "rope_parameters": rope}
    marks = {"video_token_id": place + 1, "vision_start_token_id": place + 2, "vision_end_token_id": place + 3}
    config = tf.Qwen2VLConfig(text_config=text, vision_config=seeing, image_token_id=place, **marks)
    give_eyes(tokenizer, QwenProcessor(own))
    return tf.Qwen2VLForConditionalGeneration(config).eval(), tokenizer


@cache
def digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()


def picture(index: int) -> Any:
    """A handwritten digit of scikit-learn's, 16 x 16."""
    from PIL import Image

    return Image.fromarray((digits().images[index] * 15.9).astype("uint8")).resize((SIDE, SIDE)).convert("RGB")


def write_digits(folder: Path, count: int, start: int = 0) -> Path:
    """Rows that ask which digit a picture shows, with their pictures beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(start, start + count):
        picture(index).save(folder / f"{index}.png")
        asked = [{"type": "image", "path": f"{index}.png"}, {"type": "text", "text": "which digit?"}]
        answer = {"role": "assistant", "content": str(digits().target[index])}
        rows.append({"messages": [{"role": "user", "content": asked}, answer]})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file

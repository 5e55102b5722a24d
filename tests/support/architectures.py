"""Small random models of every architecture that the suite runs over, with inputs for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf

from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form

TEXT = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    **TEXT,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GQA = {**DECODER, "num_key_value_heads": 2, "head_dim": 8}
ENCODER = {**DECODER, "type_vocab_size": 2}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
SEQ2SEQ = {
    **TEXT,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture: its configuration class, the model class and the kind of its input."""

    config: str
    model: str
    settings: dict[str, Any]
    kind: str = "decoder"  # decoder | encoder | seq2seq | image | speech | spectrogram | audio | clip
    tags: tuple[str, ...] = field(default=())

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """The model with seeded random weights, in evaluation mode."""
        torch.manual_seed(seed)
        config = getattr(tf, self.config)(**self.settings)
        model = getattr(tf, self.model)(config).to(dtype).eval()
        for parameter in model.parameters():  # spread the weights: fresh ones are nearly linear
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.15)
        return model

    def inputs(self, batch: int = 2, length: int = 12, dtype: torch.dtype = torch.float32) -> dict:
        """A batch for this architecture."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, 97, (batch, length), generator=generator)
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        noise = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
        return {
            "decoder": lambda: text,
            "encoder": lambda: text,
            "seq2seq": lambda: {**text, "decoder_input_ids": ids[:, :6]},
            "image": lambda: {"pixel_values": noise(batch, 3, 16, 16)},
            "clip": lambda: {**text, "pixel_values": noise(batch, 3, 16, 16)},
            "speech": lambda: {
                "input_features": noise(batch, 8, 40),
                "decoder_input_ids": ids[:, :6],
            },
            "spectrogram": lambda: {"input_values": noise(batch, 32, 16)},
            "audio": lambda: {"input_values": noise(batch, 800)},
        }[self.kind]()


def base_of(form: str) -> Architecture:
    """A decoder; for forms that read whole rows, which decoders refuse, BERT that fills in tokens."""
    return ARCHITECTURES["qwen2"] if form in decoding_forms() else FILLS_IN


def decoding_forms() -> list[str]:
    """The forms that models take which write token by token."""
    return [name for name in names("forms") if not find("forms", name, Form).sees]


FILLS_IN = Architecture("BertConfig", "BertForMaskedLM", ENCODER, "encoder")
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM", GQA),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM", GQA),
    "qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", GQA),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**GQA, "sliding_window": 8, "num_hidden_layers": 6},
    ),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM", {**GQA, "sliding_window": None}),
    "mixtral": Architecture("MixtralConfig", "MixtralForCausalLM", {**GQA, "num_local_experts": 4}, tags=("experts",)),
    "qwen3_moe": Architecture(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**GQA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        tags=("experts",),
    ),
    "phi3": Architecture("Phi3Config", "Phi3ForCausalLM", {**GQA, "original_max_position_embeddings": 128}),
    "gpt2": Architecture(
        "GPT2Config",
        "GPT2LMHeadModel",
        {**TEXT, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    ),
    "gpt_neox": Architecture("GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER),
    "opt": Architecture(
        "OPTConfig",
        "OPTForCausalLM",
        {
            **TEXT,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": Architecture("BloomConfig", "BloomForCausalLM", {**TEXT, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": Architecture(
        "FalconConfig",
        "FalconForCausalLM",
        {**TEXT, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "bert": Architecture("BertConfig", "BertForSequenceClassification", ENCODER, "encoder"),
    "roberta": Architecture("RobertaConfig", "RobertaForSequenceClassification", ENCODER, "encoder"),
    "deberta_v2": Architecture(
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
        },
        "encoder",
    ),
    "distilbert": Architecture(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"vocab_size": 97, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4},
        "encoder",
    ),
    "t5": Architecture(
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": 97,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        "seq2seq",
    ),
    "bart": Architecture("BartConfig", "BartForConditionalGeneration", SEQ2SEQ, "seq2seq"),
    "vit": Architecture("ViTConfig", "ViTForImageClassification", VISION, "image"),
    "clip": Architecture(
        "CLIPConfig",
        "CLIPModel",
        {"text_config": ENCODER, "vision_config": VISION, "projection_dim": 16},
        "clip",
    ),
    "whisper": Architecture(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32},
        "speech",
    ),
    "ast": Architecture(
        "ASTConfig",
        "ASTForAudioClassification",
        {
            **{k: VISION[k] for k in list(VISION)[:4]},
            "max_length": 32,
            "num_mel_bins": 16,
            "patch_size": 8,
        },
        "spectrogram",
    ),
    "wav2vec2": Architecture(
        "Wav2Vec2Config",
        "Wav2Vec2ForSequenceClassification",
        {
            **{k: DECODER[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
            "num_attention_heads": 4,
            "conv_dim": (16, 16),
            "conv_stride": (5, 4),
            "conv_kernel": (10, 8),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 16,
            "mask_time_prob": 0.0,
        },
        "audio",
    ),
}

"""Whisper (OpenAI): the published .pt checkpoint, renamed to the Hugging Face class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from luthier.models.convert._save import filled
from luthier.models.convert._tiktoken import special_tokens, whisper_tokenizer
from luthier.models.quiet import quiet

_NAMES = [
    (r"^", "model."),
    (r"\.blocks\.", ".layers."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.out\.", ".out_proj."),
    (r"\.ln(_post)?\.", ".layer_norm."),
    (r"\.token_embedding\.", ".embed_tokens."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
]
_END, _START = 50256, 50257  # of the English-only vocabulary
_SPACE = 220
RANKS = "gpt2.tiktoken"
"""What the tokenizer is made of, beside the weights."""


def convert(weights: Path, target: Path) -> None:
    """Saves the English-only model with what prepares its sounds, and its tokenizer where the ranks lie beside it.

    The file is a pickle: it is read as tensors and plain values only, after its checksum passed.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    saved = torch.load(weights, map_location="cpu", weights_only=True)
    config = _config(saved["dims"])
    state = {_rename(key): value.float() for key, value in saved["model_state_dict"].items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    extractor, ranks = WhisperFeatureExtractor(feature_size=config.num_mel_bins), weights.with_name(RANKS)
    with quiet():
        model = filled(WhisperForConditionalGeneration, config, state)
        model.generation_config = _generation(config)
        model.save_pretrained(target)
        prepares = WhisperProcessor(extractor, whisper_tokenizer(ranks)) if ranks.is_file() else extractor
        prepares.save_pretrained(target)


def _generation(config: Any) -> Any:
    """How the model writes, as the hub has it: no marks of music or speakers, none of its own signs, no empty text."""
    from transformers import GenerationConfig
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS

    ids = {token: _END + place for place, token in enumerate(special_tokens())}
    signs = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nocaptions")
    shown = [token for token in NON_SPEECH_TOKENS if token < _END]
    return GenerationConfig(
        bos_token_id=_START,
        decoder_start_token_id=_START,
        eos_token_id=_END,
        pad_token_id=_END,
        max_length=config.max_target_positions,
        suppress_tokens=sorted({*shown, *(ids[f"<|{name}|>"] for name in signs)}),
        begin_suppress_tokens=[_SPACE, _END],
        is_multilingual=False,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
    )


def _rename(key: str) -> str:
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key


def _config(dims: dict[str, int]) -> Any:
    from transformers import WhisperConfig

    return WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=dims["n_audio_state"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        decoder_ffn_dim=4 * dims["n_text_state"],
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        bos_token_id=_START,
        decoder_start_token_id=_START,
        eos_token_id=_END,
        pad_token_id=_END,
    )

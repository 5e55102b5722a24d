"""A small model of any class: its configuration is made small by the names of its fields, and nothing else is known."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
import transformers as tf
from torch import nn

MOST = 30_000_000
"""Numbers that a small model may have."""
BLOCKS = 8
"""Blocks that a model is given at most, so that every kind of block it mixes is there."""

Rule = Callable[[Any], Any]


def _least(most: int) -> Rule:
    return lambda value: min(value, most)


def _each(rule: Rule) -> Rule:
    """The rule on a number, or on every number of a list."""
    return lambda value: [rule(v) for v in value] if isinstance(value, list | tuple) else rule(value)


def _width(value: Any) -> Any:
    """64, or a list of widths a quarter of their size."""
    if isinstance(value, list | tuple):
        return [max(each // 4, 8) for each in value] if max(value) > 64 else value
    return min(value, 64)


RULES: tuple[tuple[Rule, str], ...] = (
    (_least(8), "mamba_n_heads mamba_num_heads n_mamba_heads"),
    (_least(16), "mamba_d_head mamba_head_dim mamba_headdim"),
    (
        _least(128),
        "vocab_size vocab_size_per_layer_input vocab_size_base byte_group_vocab num_hash_buckets mamba_d_ssm",
    ),
    (_least(2), "num_hidden_layers num_layers n_layer n_layers num_encoder_layers num_decoder_layers encoder_layers"),
    (_least(2), "decoder_layers num_blocks num_sparse_*_layers num_global_layers num_layers_per_stack"),
    (_each(_least(2)), "depth depths num_block_repeats focal_levels block_sizes n_attn_blocks num_kv_shared_layers"),
    (_least(4), "num_attention_heads attention_heads n_head n_heads num_heads linear_num_value_heads"),
    (_least(2), "linear_num_key_heads num_experts_per_tok* moe_topk moe_top_k top_k_experts experts_per_token"),
    (
        _least(32),
        "qk_head_dim num_mel_bins input_feat_per_channel feature_size codebook_size num_codevectors_per_group",
    ),
    (_least(32), "codevector_dim codebook_dim"),
    (_least(16), "head_dim d_kv kv_channels dim_head attention_head_size d_head rotary_dim key_dim attention_key_size"),
    (
        _least(16),
        "*lora_rank *bottleneck_size time_step_rank mamba_dt_rank gate_rank laurel_rank num_conv_pos_embeddings",
    ),
    (_least(16), "state_size mamba_d_state"),
    (_each(_least(16)), "sliding_window local_attention attention_window* local_attention_window_len"),
    (
        _each(_least(96)),
        "*intermediate_size* *ffn_dim d_ff dim_ff dff ff_dim ffn_hidden_size d_inner hidden_dim mlp_dim",
    ),
    (_each(_least(96)), "feed_forward_size"),
    (_width, "hidden_size hidden_size_* d_model n_embd dim embed_dim emb_dim embedding_size embedding_dim output_dim"),
    (
        _width,
        "word_embed_proj_dim lru_width projection_dim projection_size pooler_hidden_size d_latents projector_*_dim",
    ),
    (_width, "out_hidden_size classifier_proj_size"),
    (_width, "hidden_sizes embed_dims conv_dim tdnn_dim in_channels out_channels stage_*_channels"),
    (_least(4), "num_experts num_local_experts n_routed_experts zero_expert_num num_conv_pos_embedding_groups"),
    (_least(1), "n_group topk_group num_expert_group"),
    (lambda value: min(value, 16) if value > 0 else value, "chunk_size"),
    (_least(512), "max_position_embeddings max_seq_len n_positions n_ctx max_*_positions max_2d_position_embeddings"),
    (_each(_least(64)), "image_size max_length"),
    (_each(_least(8)), "patch_size"),
    (_each(_least(2)), "window_size"),
)
"""What fields of these names become, also behind a word and an underscore; the first that fits."""


def _rule(key: str) -> Rule | None:
    names = ((rule, name) for rule, each in RULES for name in each.split())
    return next((rule for rule, name in names if fnmatchcase(key, name) or fnmatchcase(key, f"*_{name}")), None)


def small(cls: type[tf.PreTrainedModel], config: type[tf.PreTrainedConfig], runs: Callable[[nn.Module], Any],
          seconds: float = 60) -> tf.PreTrainedModel:  # fmt: skip
    """The smallest configuration of a class that builds and `runs`, with random weights.

    All fields are made small at first; where that does not fit together, one or two of them keep their size, or one
    that the configuration leaves open is told. Raises what the first attempt raised where nothing was found in time.
    """
    end, first = time.process_time() + seconds, None
    config = cls.config_class or config
    found = changes(config)
    for kept, told in _orders([*found], [*_open(config())]):
        try:
            return _tried(cls, config, {k: v for k, v in found.items() if k not in kept} | dict(told), runs)
        except Exception as error:
            first = first or error
        if time.process_time() > end:
            break
    assert first is not None
    raise first


Fields = tuple[tuple[tuple[str, ...], Any], ...]


def _orders(keys: list, told: list) -> Iterator[tuple[tuple, Fields]]:
    """Which changes to leave out and which open fields to tell, few first."""
    yield (), ()
    yield from (((), (each,)) for each in told)
    yield (), tuple(told)
    for count in (1, 2):
        yield from ((kept, ()) for kept in itertools.combinations(keys, count))
        yield from ((kept, (each,)) for kept in itertools.combinations(keys, count - 1) for each in told)


TOLD = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "pad_token_id": 0,
    "mask_token_id": 4,
    "decoder_start_token_id": 1,
    "is_decoder": True,
    "num_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "attn_layer_indices": [1],
}
"""Values of fields that configurations leave open."""


def _open(made: tf.PreTrainedConfig) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in TOLD.items():
        if vars(made).get(key, 0) is None or (value is True and vars(made).get(key) is False):
            yield (key,), value


def changes(config: type[tf.PreTrainedConfig]) -> dict[tuple[str, ...], Any]:
    """{path of a field: its small value} for a configuration and its parts."""
    return dict(_changes(config(), ()))


def _changes(made: tf.PreTrainedConfig, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    parts = {key: value for key, value in vars(made).items() if isinstance(value, tf.PreTrainedConfig)}
    for key, part in parts.items():
        yield (*above, key, "model_type"), part.model_type
        yield from _changes(part, (*above, key))
    own = {key: value for key, value in made.to_dict().items() if key not in parts and not isinstance(value, bool)}
    depth = _depth(own)
    tokens = itertools.count(3)
    for key, value in own.items():
        new = _new(key, value, own, depth, tokens)
        if new != value:
            yield (*above, key), new


LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")


def _depth(own: dict[str, Any]) -> int:
    """Blocks that show every kind which lists of one entry per block name."""
    depth = next((own[key] for key in LAYERS if isinstance(own.get(key), int)), 0)
    lists = [v for v in own.values() if isinstance(v, list | tuple) and len(v) == depth and depth > 1]
    firsts = [max(v.index(each) for each in v) + 1 for v in lists if len({str(e) for e in v}) < BLOCKS]
    least = max([2, *firsts]) * (2 if own.get("num_kv_shared_layers") else 1)  # those share with earlier ones
    return min(least, max(BLOCKS, 2 * max([1, *firsts])), depth or 2)


def _new(key: str, value: Any, own: dict[str, Any], depth: int, tokens: Iterator[int]) -> Any:
    layers = next((own[k] for k in LAYERS if isinstance(own.get(k), int)), 0)
    if key in LAYERS and isinstance(value, int):
        return min(value, depth)
    if isinstance(value, list | tuple) and len(value) == layers > depth:
        value = value[:depth]
    if re.fullmatch(r".*(token_id|token_index|_token|_index|tokens?_ids?)", key) and isinstance(value, int):
        return _token(key, value, tokens)
    if re.fullmatch(r"(.*_)?(num_key_value_heads|num_kv_heads|kv_n_heads)", key) and isinstance(value, int):
        return min(value, 4 if value in (own.get("num_attention_heads"), own.get("n_heads")) else 2)
    if key == "embed_dim" and isinstance(own.get("num_heads"), list | tuple):
        return 8 * own["num_heads"][0]
    if key == "num_heads" and "expand" in own:  # Mamba 2: their widths make the inner one
        return min(value, 8)
    rule = _rule(key)
    numeric = isinstance(value, int | list | tuple) and not isinstance(value, bool)
    try:
        return rule(value) if rule is not None and numeric else value
    except TypeError:  # a list of something else
        return value


def _token(key: str, value: int, tokens: Iterator[int]) -> int:
    firsts = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return value if value < 0 or value < 3 else firsts.get(key, next(tokens))


def _tried(cls, config, changed: dict[tuple[str, ...], Any], runs: Callable[[nn.Module], Any]) -> tf.PreTrainedModel:
    made = configured(config, changed)
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(made).parameters())
    if count > MOST:
        raise TooBig(f"{count / 1e6:.0f} million numbers")
    torch.manual_seed(0)
    model = cls(configured(config, changed)).float().eval()
    spread(model)
    runs(model)
    return model


class TooBig(Exception):
    """No small configuration was found."""


def configured(config: type[tf.PreTrainedConfig], changed: dict[tuple[str, ...], Any]) -> tf.PreTrainedConfig:
    """The configuration with these fields."""
    nested: dict[str, Any] = {}
    for path, value in changed.items():
        place = nested
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return config(**nested)


def spread(model: nn.Module) -> None:
    """Fresh weights are nearly linear, some are zero, and some scales next to nothing: matrices get numbers of the size
    that keeps a signal's, and those scales a half."""
    generator = torch.Generator().manual_seed(1)
    for parameter in (p.data for p in model.parameters() if p.is_floating_point() and p.numel()):
        fan = parameter[0].numel() if parameter.dim() > 1 else 0
        if fan and float(parameter.std()) < (size := (1.4 if parameter.dim() == 4 else 0.7) / fan**0.5):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
        elif 0 < float(parameter.abs().max()) < 1e-3:
            parameter.fill_(0.5)

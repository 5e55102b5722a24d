"""The format of llama2.c (Karpathy): a float32 Llama checkpoint followed by its SentencePiece vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.convert._save import filled
from luthier.models.older import for_older_readers
from luthier.models.quiet import quiet

_HEADER = struct.Struct("<7i")  # dim, hidden, layers, heads, key-value heads, vocabulary, context
_PIECE = struct.Struct("<fi")  # score, length in bytes
_SPECIAL = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def convert(weights: Path, target: Path) -> None:
    """Saves the model, in the Hugging Face order of rotary pairs, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    data = weights.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, context = _HEADER.unpack_from(data)
    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=abs(vocabulary),
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=vocabulary > 0,
    )
    state, end = _state(data, config)
    with quiet():
        filled(LlamaForCausalLM, config, state).save_pretrained(target)
        _tokenizer(data, end, config).save_pretrained(target)
        for_older_readers(target)


def _state(data: bytes, config: Any) -> tuple[dict[str, Any], int]:
    """The tensors by their Hugging Face names, and the offset that follows them."""
    import torch

    offset = _HEADER.size

    def take(*shape: int) -> torch.Tensor:
        nonlocal offset
        count = torch.Size(shape).numel()
        if offset + 4 * count > len(data):
            raise LuthierError("the llama2.c checkpoint ends before its weights do.")
        flat = torch.frombuffer(bytearray(data[offset : offset + 4 * count]), dtype=torch.float32)
        offset += 4 * count
        return flat.view(shape)

    d, layers, head = config.hidden_size, config.num_hidden_layers, config.head_dim
    kv, hidden = config.num_key_value_heads * head, config.intermediate_size
    state = {"model.embed_tokens.weight": take(config.vocab_size, d)}
    blocks = {
        "input_layernorm": take(layers, d),
        "self_attn.q_proj": _halves(take(layers, d, d), head),
        "self_attn.k_proj": _halves(take(layers, kv, d), head),
        "self_attn.v_proj": take(layers, kv, d),
        "self_attn.o_proj": take(layers, d, d),
        "post_attention_layernorm": take(layers, d),
        "mlp.gate_proj": take(layers, hidden, d),
        "mlp.down_proj": take(layers, d, hidden),
        "mlp.up_proj": take(layers, hidden, d),
    }
    for name, stacked in blocks.items():
        for i in range(layers):
            state[f"model.layers.{i}.{name}.weight"] = stacked[i].clone()
    state["model.norm.weight"] = take(d)
    take(2, config.max_position_embeddings, head // 2)  # the rotary table, which is computed anew
    tied = state["model.embed_tokens.weight"]
    state["lm_head.weight"] = tied if config.tie_word_embeddings else take(config.vocab_size, d)
    return state, offset


def _halves(weight: Any, head: int) -> Any:
    """Rows of each head from interleaved rotary pairs (0, 1), (2, 3), … to halves (0, head/2), …"""
    layers, rows, columns = weight.shape
    pairs = weight.view(layers, rows // head, head // 2, 2, columns)
    return pairs.transpose(2, 3).reshape(layers, rows, columns)


def _tokenizer(data: bytes, offset: int, config: Any) -> Any:
    """Byte-fallback BPE; merges are read off the scores, a higher one merging earlier."""
    from transformers import LlamaTokenizer

    pieces = _pieces(data, offset + 4, config.vocab_size)  # skips the longest piece's length
    learned = pieces[len(_SPECIAL) :]
    vocabulary = {name: i for i, name in enumerate(_SPECIAL + [text for text, _ in learned])}
    merges = []
    for name, _ in sorted(learned, key=lambda piece: -piece[1]):
        splits = ((name[:i], name[i:]) for i in range(1, len(name)))
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=merges,
        add_bos_token=True,
        model_max_length=config.max_position_embeddings,
    )


def _pieces(data: bytes, offset: int, count: int) -> list[tuple[str, float]]:
    """`(text, score)` of every piece; the file spells the space mark as a space."""
    pieces = []
    for _ in range(count):
        score, length = _PIECE.unpack_from(data, offset)
        offset += _PIECE.size
        text = data[offset : offset + length].decode("utf-8", errors="replace")
        pieces.append((text.replace(" ", "▁"), score))
        offset += length
    return pieces

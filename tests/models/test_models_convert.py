from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.models import load, resolve
from luthier.models.convert import _tiktoken
from luthier.models.convert.llama2c import _halves
from luthier.models.convert.whisper import _rename
from luthier.models.fetch import convert


def test_rotary_pairs_become_halves():
    rows = torch.arange(8.0).view(1, 8, 1)  # two heads of four rows
    assert _halves(rows, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def llama2c_file(path, vocabulary: int = 300) -> None:
    dim, hidden, layers, heads, context = 16, 24, 2, 2, 8
    floats = vocabulary * dim + layers * (2 * dim + 4 * dim * dim + 3 * dim * hidden) + dim
    floats += context * dim // heads
    torch.manual_seed(0)
    data = struct.pack("<7i", dim, hidden, layers, heads, heads, vocabulary, context)
    data += (0.1 * torch.randn(floats)).numpy().tobytes() + struct.pack("<i", 8)
    special = ["<unk>", "<s>", "</s>", *(f"{byte:02x}" for byte in range(256))]
    learned = [" a", " ab", *"abcdefghijklmnopqrstuvwxyz", " "]
    words = special + learned + [f"w{i}" for i in range(vocabulary - len(special) - len(learned))]
    for i, word in enumerate(words):
        data += struct.pack("<fi", -float(i), len(word)) + word.encode()
    path.write_bytes(data)


def test_a_llama2c_file_gives_a_model_and_its_tokenizer(tmp_path):
    llama2c_file(tmp_path / "w.bin")
    convert("llama2c", tmp_path / "w.bin", tmp_path / "m")
    loaded = load(str(tmp_path / "m"))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.processor.tokenize("ab b") == ["▁ab", "▁", "b"]
    ids = loaded.processor("ab é")["input_ids"]
    assert ids[0] == 1 and loaded.processor.decode(ids[1:]) == "ab é"


def test_a_short_llama2c_file_is_told(tmp_path):
    llama2c_file(tmp_path / "w.bin")
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:5000])
    with pytest.raises(LuthierError, match="ends before"):
        convert("llama2c", tmp_path / "w.bin", tmp_path / "m")


def test_openai_whisper_names_fill_the_class(tmp_path):
    from transformers import WhisperForConditionalGeneration

    dims = {"n_mels": 80, "n_vocab": 51864, "n_audio_ctx": 16, "n_audio_state": 8}
    dims |= {"n_audio_head": 2, "n_audio_layer": 1, "n_text_ctx": 8, "n_text_state": 8}
    dims |= {"n_text_head": 2, "n_text_layer": 1}
    assert _rename("decoder.blocks.0.cross_attn.query.bias") == ("model.decoder.layers.0.encoder_attn.q_proj.bias")
    state = {f"{side}.{key}": value for side in ("encoder", "decoder") for key, value in _block(side)}
    torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "w.pt")
    convert("whisper", tmp_path / "w.pt", tmp_path / "m")
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert torch.equal(model.proj_out.weight, state["decoder.token_embedding.weight"])
    audio = load(str(tmp_path / "m"), task="audio-classification", labels=["a", "b"])
    assert set(audio.new_modules) == {"projector", "classifier"}


def test_the_ranks_of_a_tokenizer_make_the_very_one_of_the_hub(tmp_path):
    """Merges from ranks are those that were learned, on GPT-2's kind of splits; then Whisper's own tokens."""
    import base64

    from support.tiny_tokenizers import byte_level

    learned = byte_level(bos=False)
    special = set(learned.get_added_tokens_decoder())
    letters = {written: byte for byte, written in _tiktoken._alphabet().items()}
    vocabulary = {word: i for word, i in learned.get_vocab().items() if i not in special}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    ranks = [bytes(letters[sign] for sign in word) for word in ordered]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks)]
    (tmp_path / "gpt2.tiktoken").write_text("\n".join(lines))
    made = _tiktoken.whisper_tokenizer(tmp_path / "gpt2.tiktoken")
    text = "Natalia sold 48/2 = 24 clips in May, the correct answer is é true."
    ids = made(text)["input_ids"]
    assert made.convert_ids_to_tokens(ids)[2:-1] == learned.encode(text).tokens
    start = made.convert_ids_to_tokens(ids[:2])
    assert start == ["<|startoftranscript|>", "<|notimestamps|>"] and ids[-1] == made.eos_token_id == len(ranks)
    assert len(made) == len(ranks) + 107 + 1501 and made.decode(ids, skip_special_tokens=True) == text


def test_damaged_ranks_are_told(tmp_path):
    (tmp_path / "gpt2.tiktoken").write_text("IQ== 0 1\n")
    with pytest.raises(LuthierError, match="holds no ranks of a tokenizer"):
        _tiktoken.whisper_tokenizer(tmp_path / "gpt2.tiktoken")


def _block(side: str):
    d = 8
    attentions = {"encoder": ["attn"], "decoder": ["attn", "cross_attn"]}[side]
    for attention in attentions:
        for part in ("query", "key", "value", "out"):
            yield f"blocks.0.{attention}.{part}.weight", torch.randn(d, d)
            if part != "key":
                yield f"blocks.0.{attention}.{part}.bias", torch.randn(d)
        yield from _norm(f"blocks.0.{attention}_ln", d)
    yield from _norm("blocks.0.mlp_ln", d)
    yield "blocks.0.mlp.0.weight", torch.randn(4 * d, d)
    yield "blocks.0.mlp.0.bias", torch.randn(4 * d)
    yield "blocks.0.mlp.2.weight", torch.randn(d, 4 * d)
    yield "blocks.0.mlp.2.bias", torch.randn(d)
    if side == "encoder":
        yield "conv1.weight", torch.randn(d, 80, 3)
        yield "conv2.weight", torch.randn(d, d, 3)
        yield "conv1.bias", torch.randn(d)
        yield "conv2.bias", torch.randn(d)
        yield "positional_embedding", torch.randn(16, d)
        yield from _norm("ln_post", d)
    else:
        yield "positional_embedding", torch.randn(8, d)
        yield "token_embedding.weight", torch.randn(51864, d)
        yield from _norm("ln", d)


def _norm(name: str, d: int):
    yield f"{name}.weight", torch.randn(d)
    yield f"{name}.bias", torch.randn(d)


def gguf_file(path, end: str = "<|im_end|>") -> None:
    """A one-layer Llama with an untrained byte-level vocabulary, as SmolLM2's file declares it."""
    gguf = pytest.importorskip("gguf")
    tokens = ["<|endoftext|>", "<|im_start|>", end, "Ġ", "ĠĠ", "1", "2", "a"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    sizes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    sizes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    sizes |= {"attn_norm": (32,), "ffn_norm": (32,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in sizes.items()}
    shapes |= {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,)}
    torch.manual_seed(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_dense_tied_model_with_its_chat_template(tmp_path):
    from transformers import AutoModelForCausalLM

    gguf_file(tmp_path / "Tiny Model.Q4.gguf")
    loaded = load(str(tmp_path / "Tiny Model.Q4.gguf"))
    assert Path(loaded.path).name.startswith("tiny-model.q4-")
    assert "quantization_config" not in loaded.model.config.to_dict()
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    tokenizer = loaded.processor
    assert tokenizer.apply_chat_template([{"content": "a"}], tokenize=False) == "<|im_start|>a"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="Tiny Model.Q4.gguf", dtype=torch.float32)
    ids = torch.tensor([[1, 3, 5, 7]])
    assert torch.equal(loaded.model(ids).logits, direct(ids).logits)


def test_digits_are_split_off_before_runs_of_spaces(tmp_path):
    gguf_file(tmp_path / "t.gguf")
    assert load(str(tmp_path / "t.gguf")).processor.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_a_gguf_file_is_converted_once_and_damage_is_told(tmp_path):
    gguf_file(tmp_path / "t.gguf")
    first = resolve(str(tmp_path / "t.gguf"))
    assert resolve(str(tmp_path / "t.gguf")) == first
    (tmp_path / "bad.gguf").write_bytes(b"no gguf at all, but long enough to be read")
    with pytest.raises(LuthierError, match="not a readable GGUF"):
        resolve(str(tmp_path / "bad.gguf"))

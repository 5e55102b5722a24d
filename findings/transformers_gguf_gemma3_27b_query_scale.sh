#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, accelerate 1.15.0, gguf 0.19.0; llama.cpp in xllamacpp 2026.10.11549 as a second
# reader (Python 3.10 or later). transformers 5.24.0 does the same.
#
# Expected: `from_pretrained(gguf_file=…)` of a Gemma 3 of 27B divides queries by sqrt(168), as its own config.json says
# (query_pre_attn_scalar = hidden_size / num_attention_heads = 5376 / 32) and as llama.cpp does. No key of a GGUF file
# holds that number; llama.cpp tells this model by its 62 layers.
# What happens: the reader leaves query_pre_attn_scalar at transformers' default of 256, the number of the smaller
# Gemma 3, without a word. The model here has the 27B's 62 layers, width of heads and scale, but one head. The last line
# is the same file read with the configuration of the model that was written.
#
# Output seen (largest differences between log-probabilities of the next token and those of the model that was written;
# llama.cpp looks its GELU up in a table of half precision):
#   query_pre_attn_scalar of the model written: 168, of the one read: 256
#   llama.cpp: 0.0018
#   transformers: 0.6190
#   transformers, with the configuration: 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 gguf==0.19.0 xllamacpp==2026.10.11549
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import functools

import gguf
import torch
import xllamacpp
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

ROWS, WIDTH, INNER, LAYERS, HEADS, HEAD, LENGTH = 64, 168, 64, 62, 1, 128, 256
TOKENS = ["<s>", "</s>", "ab", *map(chr, range(ord("0"), ord("0") + ROWS - 3))]

gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
"""transformers makes this table anew for every module, which takes minutes for 62 layers."""


def built():
    torch.manual_seed(0)
    size = {"vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    size |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD, "sliding_window": 64}
    size |= {"max_position_embeddings": LENGTH, "query_pre_attn_scalar": WIDTH // HEADS, "initializer_range": 0.1}
    return Gemma3ForCausalLM(Gemma3TextConfig(**size, bos_token_id=0, eos_token_id=1, pad_token_id=None)).eval()


def write(model):
    """As llama.cpp's converter does, which adds the 1 to weights of norms that transformers adds when it runs."""
    writer = gguf.GGUFWriter("model.gguf", "gemma3")
    writer.add_vocab_size(ROWS)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(model.config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_sliding_window(model.config.sliding_window)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (ROWS - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, LAYERS)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # it is the table
            tensor = tensor + 1 if name.endswith("norm.weight") else tensor
            writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def following(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def llamacpp(ids):
    settings = xllamacpp.CommonParams()
    settings.model.path = "model.gguf"
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = LENGTH, 1, 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.fit_params = False, False
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    asked = {"prompt": ids, "max_tokens": 1, "n_probs": ROWS, "temperature": 0, "cache_prompt": False}
    said = xllamacpp.Server(settings).handle_completions(asked)
    told = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return torch.tensor([each["logprob"] for each in sorted(told, key=lambda each: each["id"])])


def read(**settings):
    return AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32, **settings).eval()


model = built()
write(model)
prompts = torch.randint(3, ROWS, (50, 128)).tolist()
ids = next(each for each in prompts if following(model, each).argmax() > 2)  # llama.cpp tells nothing of an end
wanted, silent = following(model, ids), read()
scales = [each.config.query_pre_attn_scalar for each in (model, silent)]
print(f"query_pre_attn_scalar of the model written: {scales[0]}, of the one read: {scales[1]}")
found = {"llama.cpp": llamacpp(ids), "transformers": following(silent, ids)}
found["transformers, with the configuration"] = following(read(config=model.config), ids)
found = {name: float((each - wanted).abs().max()) for name, each in found.items()}
for name, difference in found.items():
    print(f"{name}: {difference:.4f}")
assert found["llama.cpp"] < 0.02 and found["transformers, with the configuration"] < 1e-4, "the file is not valid"
assert found["transformers"] > 0.1, "it behaves otherwise now"
PY

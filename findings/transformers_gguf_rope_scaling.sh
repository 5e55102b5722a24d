#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, accelerate 1.15.0, gguf 0.19.0; llama.cpp in xllamacpp 2026.10.11549 as a second
# reader (Python 3.10 or later). transformers 5.24.0 does the same.
#
# Expected: `from_pretrained(gguf_file=…)` turns queries and keys by the frequencies that the file gives, or says that
# it does not. llama.cpp's converter writes how they are scaled in two ways: for Llama 3.1 and 3.2 (rope_type llama3) as
# a tensor, rope_freqs.weight, of what each frequency is divided by; for linear scaling (Gemma 3 from 4B on) and yarn as
# rope.scaling.type, .factor and .original_context_length.
# What happens: the reader knows neither the tensor nor, except for gpt-oss, the keys. The model that is read has
# unscaled positions, without a word. Each file here is a Llama; the tables of the other architectures lack the keys as
# well. The last figure is the same file read with the configuration of the model that was written.
#
# Output seen (largest differences between log-probabilities of the next token and those of the model that was written):
#   llama3: read as default; llama.cpp 0.0000, transformers 2.7706, with the configuration 0.0000
#   linear: read as default; llama.cpp 0.0000, transformers 3.1485, with the configuration 0.0000
#   yarn: read as default; llama.cpp 0.0000, transformers 1.9808, with the configuration 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 gguf==0.19.0 xllamacpp==2026.10.11549
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import gguf
import torch
import xllamacpp
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROWS, WIDTH, INNER, LAYERS, HEADS, LENGTH = 64, 64, 64, 2, 4, 256
TOKENS = ["<s>", "</s>", "ab", *map(chr, range(ord("0"), ord("0") + ROWS - 3))]
ROPES = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 8.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


def built(kind):
    torch.manual_seed(0)
    size = {"vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    size |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": LENGTH}
    rope = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    return LlamaForCausalLM(LlamaConfig(**size, rope_parameters=rope, initializer_range=0.2)).eval()


def write(path, model):
    """As llama.cpp's converter does; rows of queries and keys are permuted, as it does for every Llama."""
    rope = model.config.rope_parameters
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(ROWS)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    else:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (ROWS - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            tensor = tensor.reshape(HEADS, 2, -1, WIDTH).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def following(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def llamacpp(path, ids):
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = LENGTH, 1, 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.fit_params = False, False
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    asked = {"prompt": ids, "max_tokens": 1, "n_probs": ROWS, "temperature": 0, "cache_prompt": False}
    said = xllamacpp.Server(settings).handle_completions(asked)
    told = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return torch.tensor([each["logprob"] for each in sorted(told, key=lambda each: each["id"])])


def read(path, **settings):
    return AutoModelForCausalLM.from_pretrained(".", gguf_file=path, dtype=torch.float32, **settings).eval()


found = {}
for kind in ROPES:
    model, path = built(kind), f"{kind}.gguf"
    write(path, model)
    prompts = torch.randint(3, ROWS, (50, 128)).tolist()
    ids = next(each for each in prompts if following(model, each).argmax() > 2)  # llama.cpp tells nothing of an end
    silent, told = read(path), read(path, config=model.config)
    each = [llamacpp(path, ids), following(silent, ids), following(told, ids)]
    found[kind] = [float((one - following(model, ids)).abs().max()) for one in each]
    print(
        f"{kind}: read as {silent.config.rope_parameters['rope_type']}; llama.cpp {found[kind][0]:.4f}, transformers "
        f"{found[kind][1]:.4f}, with the configuration {found[kind][2]:.4f}"
    )
assert all(theirs < 1e-3 and told < 1e-4 for theirs, _, told in found.values()), "the files are not valid"
assert all(silent > 0.1 for _, silent, _ in found.values()), "it behaves otherwise now"
PY

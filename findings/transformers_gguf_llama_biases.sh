#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, accelerate 1.15.0, gguf 0.19.0; llama.cpp in xllamacpp 2026.10.11549 as a second
# reader (Python 3.10 or later). transformers 5.24.0 does the same.
#
# Expected: `from_pretrained(gguf_file=…)` gives the model that is in the file, or says what it leaves out. A Llama may
# have biases (`attention_bias`, `mlp_bias`; Bielik v3 has both); llama.cpp's converter writes them as
# blk.N.attn_q.bias and so on, and llama.cpp runs them.
# What happens: nothing in the file's metadata says that there are biases, and the reader does not look at the tensors
# for Llama (it does for StableLM). The model is made without biases, and their tensors are dropped without a word. The
# last line is the same file read with a configuration that has both settings: the tensors are read well then.
#
# Output seen (largest differences between log-probabilities of the next token and those of the model that was written):
#   biases in the file: 14, in the model that was read: 0
#   llama.cpp: 0.0000
#   transformers: 2.6241
#   transformers, told of the biases: 0.0000
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

ROWS, WIDTH, INNER, LAYERS, HEADS, LENGTH = 64, 32, 64, 2, 4, 256
TOKENS = ["<s>", "</s>", "ab", *map(chr, range(ord("0"), ord("0") + ROWS - 3))]


def built():
    torch.manual_seed(0)
    size = {"vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    size |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": LENGTH}
    model = LlamaForCausalLM(LlamaConfig(**size, attention_bias=True, mlp_bias=True, initializer_range=0.3)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    return model


def write(model):
    """As llama.cpp's converter does; rows of queries and keys are permuted, as it does for every Llama."""
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_vocab_size(ROWS)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
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
            tensor = tensor.reshape(HEADS, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.contiguous().numpy())
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


def biases(names):
    return sum(name.endswith("bias") for name in names)


model = built()
write(model)
prompts = torch.randint(3, ROWS, (50, 32)).tolist()
ids = next(each for each in prompts if following(model, each).argmax() > 2)  # llama.cpp tells nothing of an end
wanted, silent = following(model, ids), read()
held = biases(tensor.name for tensor in gguf.GGUFReader("model.gguf").tensors)
print(f"biases in the file: {held}, in the model that was read: {biases(silent.state_dict())}")
found = {"llama.cpp": llamacpp(ids), "transformers": following(silent, ids)}
found["transformers, told of the biases"] = following(read(config=model.config), ids)
found = {name: float((each - wanted).abs().max()) for name, each in found.items()}
for name, difference in found.items():
    print(f"{name}: {difference:.4f}")
assert found["llama.cpp"] < 1e-3 and found["transformers, told of the biases"] < 1e-4, "the file is not valid"
assert found["transformers"] > 0.1, "it behaves otherwise now"
PY

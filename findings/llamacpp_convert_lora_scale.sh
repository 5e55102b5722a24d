#!/usr/bin/env bash
# llama.cpp's convert_lora_to_gguf.py, as vendored in llama-cpp-python 0.3.36; peft 0.21.2, transformers 5.23.0,
# torch 2.13.0, gguf 0.19.0 (Python 3.10 or later). 77 MB are downloaded for the converter.
#
# Expected: an adapter that the converter takes acts in llama.cpp as it does in peft, or the converter says what it leaves
# out (DoRA's magnitudes make it stop).
# What happens: only `lora_alpha` is read. `use_rslora` and `alpha_pattern` are passed over without a word. llama.cpp
# multiplies by alpha / r of each layer, so an rsLoRA adapter is sqrt(r) times too weak, and a layer with an alpha of its
# own has the strength of the others.
#
# Output seen:
#   plain: strengths in peft 2.00 2.00, in llama.cpp 2.00 2.00
#   rsLoRA: strengths in peft 8.00 8.00, in llama.cpp 2.00 2.00
#   alpha_pattern: strengths in peft 2.00 0.50, in llama.cpp 2.00 2.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0 gguf==0.19.0 scikit-build-core==0.12.2
cd "$work"
"$work/venv/bin/pip" download -q --no-deps --no-binary :all: --no-build-isolation llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import subprocess
import sys

import gguf
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

RANK, ALPHA = 16, 32
CONVERTER = "llama_cpp_python-0.3.36/vendor/llama.cpp/convert_lora_to_gguf.py"
CASES = {"plain": {}, "rsLoRA": {"use_rslora": True}, "alpha_pattern": {"alpha_pattern": {"v_proj": 8}}}
found = {}
for name, more in CASES.items():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        architectures=["LlamaForCausalLM"],
    )
    model = get_peft_model(
        LlamaForCausalLM(config),
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more),
    )
    model.save_pretrained(name)
    config.save_pretrained(f"{name}-base")
    subprocess.run([sys.executable, CONVERTER, "--base", f"{name}-base", "--outfile", f"{name}.gguf", name], check=True)
    reader = gguf.GGUFReader(f"{name}.gguf")
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    rows = {each.name: each.data.shape for each in reader.tensors if each.name.endswith("lora_a")}
    theirs = [alpha / rows[f"blk.0.attn_{kind}.weight.lora_a"][0] for kind in "qv"]
    layers = model.base_model.model.model.layers[0].self_attn
    peft = [layers.q_proj.scaling["default"], layers.v_proj.scaling["default"]]
    found[name] = (peft, theirs)
    told = [" ".join(f"{each:.2f}" for each in both) for both in (peft, theirs)]
    print(f"{name}: strengths in peft {told[0]}, in llama.cpp {told[1]}")
assert found["plain"] == ([2.0, 2.0], [2.0, 2.0])
assert found["rsLoRA"] == ([8.0, 8.0], [2.0, 2.0]), "it changed"
assert found["alpha_pattern"] == ([2.0, 0.5], [2.0, 2.0]), "it changed"
PY

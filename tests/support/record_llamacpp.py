"""Writes tests/interop/llamacpp_adapters with peft and llama.cpp's own converter (convert_lora_to_gguf.py).

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36     # its archive has llama.cpp in vendor/
    PYTHONPATH=src:tests python tests/support/record_llamacpp.py llama_cpp_python-0.3.36/vendor/llama.cpp

The numbers are random. What llama.cpp answers with these files is asked by tests/interop/test_import_gguf.py itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch

from interop.test_gguf import made

OUT = Path(__file__).parents[1] / "interop" / "llamacpp_adapters"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "llama": ("llama", {"target_modules": LINEAR, "r": 4, "lora_alpha": 6}, "f32"),
    "llama-rslora": ("llama", {"target_modules": ["q_proj", "v_proj"], "r": 4, "use_rslora": True}, "f32"),
    "llama-head": ("llama", {"target_modules": ["k_proj", "lm_head"], "r": 2, "lora_alpha": 3}, "f32"),
    "llama-table": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "r": 3, "lora_alpha": 3}, "f32"),
    "llama-alpha-0": ("llama", {"target_modules": ["q_proj", "up_proj"], "r": 2, "lora_alpha": 0}, "f32"),
    "llama-ranks": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 4, "rank_pattern": {"v_proj": 2}},
        "f32",
    ),
    "mistral-f16": ("mistral", {"target_modules": ["q_proj", "k_proj"], "r": 4, "lora_alpha": 8}, "f16"),
    "qwen2-q8_0": ("qwen2", {"target_modules": ["q_proj", "down_proj"], "r": 32, "lora_alpha": 32}, "q8_0"),
    "qwen3": ("qwen3", {"target_modules": ["q_proj", "k_proj", "up_proj"], "r": 2, "lora_alpha": 2}, "bf16"),
    "gemma3": ("gemma3", {"target_modules": ["q_proj", "v_proj", "gate_proj"], "r": 2, "lora_alpha": 2}, "f32"),
}


def main(llama_cpp: str) -> None:
    """Writes every case."""
    for name, (base, settings, dtype) in CASES.items():
        torch.manual_seed(0)
        model = made(base)
        with tempfile.TemporaryDirectory() as work:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(f"{work}/base")
            adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(0.2 * torch.randn_like(parameter))
            adapted.save_pretrained(f"{work}/peft")
            (OUT / name).mkdir(parents=True, exist_ok=True)
            call = [sys.executable, f"{llama_cpp}/convert_lora_to_gguf.py", "--base", f"{work}/base"]
            call += ["--outtype", dtype, "--outfile", str(OUT / name / "adapter.gguf"), f"{work}/peft"]
            subprocess.run(call, check=True)


if __name__ == "__main__":
    main(sys.argv[1])

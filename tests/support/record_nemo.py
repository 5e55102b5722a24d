r"""Adds the folders nemo-… to tests/interop/peft_folders, as NeMo AutoModel writes them: see recorded.py.

    python -m venv E; E/bin/pip install --no-deps nemo-automodel==0.7.0     # some dependencies are kernels for GPUs
    E/bin/pip install torch==2.13.0 transformers==5.18.0 peft==0.21.2 datasets torchdata torchao==0.18.0 pyyaml \
        tiktoken megatron-fsdp==0.5.0 mistral-common flashoptim; E/bin/pip uninstall triton
    E/bin/python tests/support/record_nemo.py BASES tests/interop/peft_folders

NeMo's own LoRA layers answer, and its checkpointer saves them in peft's layout. The numbers are random.
"""

import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules
from nemo_automodel.components.checkpoint.config import CheckpointingConfig
from recorded_beside import IDS, add

CASES = {
    "nemo-llama-lora": ("llama", {"target_modules": ["*q_proj", "*down_proj"], "dim": 2, "alpha": 6}),
    "nemo-llama-dora": ("llama", {"target_modules": ["*v_proj", "*up_proj"], "dim": 2, "alpha": 6, "use_dora": True}),
    "nemo-qwen2-lora": ("qwen2", {"match_all_linear": True, "dim": 3, "alpha": 4}),
    "nemo-qwen2-dora": ("qwen2", {"target_modules": ["*q_proj"], "dim": 2, "alpha": 4, "use_dora": True}),
}


def main(bases, out):
    answers = {}
    for name, (base, settings) in CASES.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(bases / base).eval()
        if base not in answers:
            with torch.no_grad():
                answers[base] = model(input_ids=IDS).logits.contiguous()
        model.name_or_path = base
        config = PeftConfig(**settings, use_triton=False)
        apply_lora_to_linear_modules(model, config)
        for turn, (key, parameter) in enumerate(sorted(model.named_parameters())):
            if "lora_" in key:
                noise = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
                parameter.data = parameter.data * (1 + noise) if "magnitude" in key else noise
        with torch.no_grad():
            answers[name] = model(input_ids=IDS).logits.contiguous()
        with tempfile.TemporaryDirectory() as work:
            saver = CheckpointingConfig(is_peft=True, save_consolidated=False).build(0, 0, 0)
            saver.save_model(model, work, peft_config=config)
            saver.close()
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(Path(work) / "model", out / name)
    add(out, answers, {name: base for name, (base, _) in CASES.items()}, {"nemo-automodel": version("nemo-automodel")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

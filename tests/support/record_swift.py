"""Adds the folders swift-… to tests/interop/peft_folders, as ms-swift writes them: see recorded.py.

    python -m venv E; E/bin/pip install torch==2.13.0 ms-swift==4.6.0 peft==0.18.1
    E/bin/python tests/support/record_swift.py BASES tests/interop/peft_folders

`Swift.prepare_model` and `save_pretrained`, as `swift sft` calls them; the cases of `OWN` are those of
`--use_swift_lora true`, which ms-swift 4.6.0 has with peft before 0.20 alone. The numbers are random.
"""

import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from recorded_beside import IDS, add
from swift.tuners import LoRAConfig, LoraConfig, Swift

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "swift-llama-lora": ("llama", {"r": 2, "lora_alpha": 6, "target_modules": LINEAR, "lorap_lr_ratio": 16.0}),
    "swift-llama-dora": ("llama", {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "swift-qwen2-rslora": (
        "qwen2",
        {"r": 3, "lora_alpha": 4, "target_modules": LINEAR, "use_rslora": True, "lora_dtype": "float32"},
    ),
    "swift-llama-norms": (
        "llama",
        {"r": 2, "lora_alpha": 6, "target_modules": ["v_proj"], "modules_to_save": ["input_layernorm", "lm_head"]},
    ),
}
OWN = {
    "swift-llama-own": ("llama", {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}),
    "swift-llama-own-dora": ("llama", {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "use_dora": True}),
}


def main(bases, out):
    answers = {}
    for name, (base, settings) in (CASES | OWN).items():
        model = transformers.AutoModelForCausalLM.from_pretrained(bases / base)
        if base not in answers:
            with torch.no_grad():
                answers[base] = model.eval()(input_ids=IDS).logits.contiguous()
        model.name_or_path = base
        kind = LoRAConfig if name in OWN else LoraConfig
        model = Swift.prepare_model(model, kind(task_type="CAUSAL_LM", **settings)).eval()
        for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
                parameter.data = parameter.data * (1 + noise) if parameter.dim() == 1 else noise
        with torch.no_grad():
            answers[name] = model(input_ids=IDS).logits.contiguous()
        shutil.rmtree(out / name, ignore_errors=True)
        with tempfile.TemporaryDirectory() as work:
            model.save_pretrained(work, safe_serialization=True)
            shutil.copytree(Path(work) / ("default" if name in OWN else ""), out / name)
        (out / name / "README.md").unlink(missing_ok=True)
    add(out, answers, {name: base for name, (base, _) in (CASES | OWN).items()}, {"ms-swift": version("ms-swift")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

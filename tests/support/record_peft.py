"""Writes tests/interop/peft_folders with an old peft over transformers 4, where each expert was modules of its own.

    python -m venv E; E/bin/pip install peft==0.17.1 transformers==4.57.6 torch==2.13.0
    E/bin/python tests/support/record_peft.py BASES tests/interop/peft_folders

See recorded.py. Each folder is what `save_pretrained` writes, loaded again before its answer is recorded. The numbers
are random.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

IDS = torch.tensor([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
PARTS = ["gate_proj", "up_proj", "down_proj"]
CASES = {
    "mixtral-rslora": ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3"], "use_rslora": True}),
    "mixtral-router": ("mixtral", {"target_modules": ["gate", "w2", "v_proj"]}),
    "mixtral-one": ("mixtral", {"target_modules": r".*layers\.1\.block_sparse_moe\.experts\.[02]\.w1"}),
    "mixtral-patterns": (
        "mixtral",
        {
            "target_modules": ["w1", "w3"],
            "rank_pattern": {"block_sparse_moe.experts.1.w1": 4},
            "alpha_pattern": {r"layers.2.block_sparse_moe.experts.\d.w3": 9},
        },
    ),
    "qwen3_moe-rslora": ("qwen3_moe", {"target_modules": [*PARTS, "o_proj"], "use_rslora": True}),
    "qwen2_moe-shared": ("qwen2_moe", {"target_modules": [*PARTS, "shared_expert_gate"]}),
    "deepseek_v3-dense": ("deepseek_v3", {"target_modules": PARTS, "use_rslora": True}),
}


def loaded(bases, base):
    config = transformers.AutoConfig.from_pretrained(bases / base)
    if base == "qwen3_moe":
        config.num_experts = config.num_local_experts  # as transformers 5 wrote it
    model = transformers.AutoModelForCausalLM.from_pretrained(bases / base, config=config)
    model.name_or_path = base
    return model.eval()


def answer(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.contiguous()


def main(bases, out):
    torch.manual_seed(0)
    out.mkdir(parents=True)
    answers = {}
    for name, (base, settings) in CASES.items():
        if base not in answers:
            answers[base] = answer(loaded(bases, base))
        model = get_peft_model(loaded(bases, base), LoraConfig(r=2, lora_alpha=4, **settings))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=0.2)
        model.save_pretrained(out / name, save_embedding_layers=False)
        (out / name / "README.md").unlink()
        answers[name] = answer(PeftModel.from_pretrained(loaded(bases, base), out / name).eval())
        print(name, float((answers[name] - answers[base]).abs().max()))
    save_file(answers, out / "logits.safetensors")
    told = {"versions": {each: version(each) for each in ("peft", "transformers")}, "cases": {}}
    told["cases"] = {name: {"base": base} for name, (base, _) in CASES.items()}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

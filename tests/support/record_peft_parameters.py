"""Adds the folders parameters-… to tests/interop/peft_folders: experts as peft before 0.19.1 laid them out.

    python -m venv E; E/bin/pip install peft==0.18.1 transformers==5.23.0 torch==2.13.0
    E/bin/python tests/support/record_peft_parameters.py BASES tests/interop/peft_folders

See recorded.py. The numbers are random.
"""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from recorded_beside import IDS, add

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = {
    "parameters-olmoe": ("olmoe", {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "parameters-mixtral": ("mixtral", {"target_modules": [], "target_parameters": BOTH[:1], "use_rslora": True}),
}


def main(bases, out):
    answers = {}
    for name, (base, settings) in CASES.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(bases / base)
        model.name_or_path = base
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, **settings))
        for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
        shutil.rmtree(out / name, ignore_errors=True)
        model.save_pretrained(out / name)
        (out / name / "README.md").unlink()
        again = transformers.AutoModelForCausalLM.from_pretrained(bases / base)
        with torch.no_grad():
            answers[name] = PeftModel.from_pretrained(again, out / name).eval()(input_ids=IDS).logits.contiguous()
            if base not in answers:
                plain = transformers.AutoModelForCausalLM.from_pretrained(bases / base)
                answers[base] = plain.eval()(input_ids=IDS).logits.contiguous()
    peft = {"peft, parameters-…": version("peft"), "transformers, parameters-…": version("transformers")}
    add(out, answers, {name: base for name, (base, _) in CASES.items()}, peft)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Writes tests/interop/litgpt_folders with LitGPT itself: see recorded.py.

    python -m venv E; E/bin/pip install litgpt==0.5.13 torch==2.13.0 safetensors
    E/bin/python tests/support/record_litgpt.py BASES tests/interop/litgpt_folders
    E/bin/python tests/support/record_litgpt.py BASES tests/interop/litgpt_written       # answers with ours, merged too

lit_model.pth.lora is what its `save_lora_checkpoint` writes; hyperparameters.yaml has those of LoRA among the settings
of `litgpt finetune_lora`. The numbers are random.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import lightning as L
import torch
import yaml
from litgpt.finetune.lora import save_lora_checkpoint
from litgpt.lora import GPT, Config, merge_lora_weights
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama, copy_weights_qwen_2_5
from litgpt.scripts.merge_lora import load_lora_metadata
from safetensors.torch import load_file, save_file

IDS = torch.tensor([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
SIZES = {
    **{"block_size": 64, "vocab_size": 32, "padded_vocab_size": 32, "n_layer": 3, "n_head": 2, "n_embd": 16},
    **{"n_query_groups": 1, "head_size": 8, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False},
    **{"norm_class_name": "RMSNorm", "norm_eps": 1e-6, "mlp_class_name": "LLaMAMLP", "intermediate_size": 24},
}
MORE = {"qwen2": {"attn_bias": True}}
PLACES = ["lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head"]
CASES = {
    "llama-lora": ("llama", {"lora_r": 2, "lora_alpha": 4}, ["lora_query", "lora_value"]),
    "llama-all": ("llama", {"lora_r": 3, "lora_alpha": 3}, PLACES),
    "mistral-lora": ("mistral", {"lora_r": 2, "lora_alpha": 6}, ["lora_key", "lora_projection", "lora_mlp"]),
    "qwen2-lora": ("qwen2", {"lora_r": 2, "lora_alpha": 2}, ["lora_query", "lora_key", "lora_value"]),
}


def built(bases, base, settings, places):
    config = Config(name="", **SIZES, **MORE.get(base, {}), **settings, **dict.fromkeys(places, True))
    model, held = GPT(config), {}
    copy = copy_weights_qwen_2_5 if base == "qwen2" else copy_weights_hf_llama
    copy(config, {}, held, load_file(bases / base / "model.safetensors"))
    model.load_state_dict(held, strict=False)
    return model.eval()


def answer(model):
    with torch.no_grad():
        return model(IDS).float().contiguous()


def read(bases, out):
    """Answers with the folders that we wrote, read as `litgpt merge_lora` reads them, before and after the merge."""
    found = {}
    for folder in sorted(each for each in out.iterdir() if each.is_dir()):
        told, _, precision = load_lora_metadata(folder)
        assert precision == "32-true"
        settings = {key: value for key, value in told.items() if key not in PLACES}
        model = built(bases, folder.name.partition("-")[0], settings, [place for place in PLACES if told[place]])
        held = torch.load(folder / "lit_model.pth.lora")["model"]
        assert set(held) == {key for key in model.state_dict() if "lora_" in key}, folder
        model.load_state_dict(held, strict=False)
        found[folder.name] = answer(model)
        merge_lora_weights(model)
        print(folder.name, "merged:", float((answer(model) - found[folder.name]).abs().max()))
    save_file(found, out / "logits.safetensors")


def main(bases, out):
    if out.name.endswith("_written"):
        return read(bases, out)
    answers = {}
    fabric = L.Fabric(accelerator="cpu", devices=1)
    for name, (base, settings, places) in CASES.items():
        model = built(bases, base, settings, places)
        answers.setdefault(base, answer(model))
        for turn, (key, parameter) in enumerate(sorted(model.named_parameters())):
            if "lora_" in key:
                parameter.data = 0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
        (out / name).mkdir(parents=True)
        save_lora_checkpoint(fabric, model, out / name / "lit_model.pth.lora")
        told = {"checkpoint_dir": base, **settings, "lora_dropout": 0.05} | {place: place in places for place in PLACES}
        (out / name / "hyperparameters.yaml").write_text(yaml.dump(told))
        answers[name] = answer(model)
        print(name, float((answers[name] - answers[base]).abs().max()))
    save_file(answers, out / "logits.safetensors")
    told = {"versions": {each: version(each) for each in ("litgpt", "torch")}, "cases": {}}
    told["cases"] = {name: {"base": base} for name, (base, *_) in CASES.items()}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

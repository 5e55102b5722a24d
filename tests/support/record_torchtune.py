"""Writes tests/interop/torchtune_folders with torchtune itself: see recorded.py.

    python -m venv E; E/bin/pip install torchtune==0.6.1 torchao==0.13.0 torch==2.13.0 safetensors
    E/bin/python tests/support/record_torchtune.py BASES tests/interop/torchtune_folders
    E/bin/python tests/support/record_torchtune.py BASES tests/interop/torchtune_written       # answers with ours

Each folder is what its checkpointer of Hugging Face's layout writes with `adapter_only`, without the copies of the
base's own files. The numbers are random. Answers are those of torchtune's model, from the adapter_model.pt.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchtune import training
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.llama3._component_builders import lora_llama3
from torchtune.models.mistral._component_builders import lora_mistral
from torchtune.models.qwen2._component_builders import lora_qwen2
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune
from torchtune.modules.peft import get_adapter_params, get_lora_module_names
from torchtune.training import FullModelHFCheckpointer

IDS = torch.tensor([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
SIZES = {"vocab_size": 32, "num_layers": 3, "num_heads": 2, "embed_dim": 16, "max_seq_len": 64, "intermediate_dim": 24}
SIZES |= {"norm_eps": 1e-6, "rope_base": 10000.0, "num_kv_heads": 1}
BUILDERS = {"llama": (lora_llama3, "LLAMA3"), "mistral": (lora_mistral, "MISTRAL"), "qwen2": (lora_qwen2, "QWEN2")}
ATTENTION = ["q_proj", "k_proj", "v_proj", "output_proj"]
KEYS = {"o_proj": "output_proj"}
CASES = {
    "llama-lora": ("llama", ["q_proj", "k_proj", "v_proj"], False, False, {"lora_rank": 2, "lora_alpha": 3}),
    "llama-all": ("llama", ATTENTION, True, True, {"lora_rank": 3, "lora_alpha": 6}),
    "llama-dora": ("llama", ["q_proj", "k_proj"], True, False, {"lora_rank": 2, "lora_alpha": 4, "use_dora": True}),
    "mistral-lora": ("mistral", ["q_proj", "k_proj"], False, True, {"lora_rank": 2, "lora_alpha": 8}),
    "qwen2-lora": ("qwen2", ATTENTION, True, False, {"lora_rank": 2, "lora_alpha": 4}),
    "qwen2-dora": ("qwen2", ["q_proj", "v_proj"], False, False, {"lora_rank": 2, "lora_alpha": 4, "use_dora": True}),
}
"""{name: (base, attention's layers, all of the MLP, the head, settings)}."""


def built(bases, base, attention, mlp, head, settings):
    held = load_file(bases / base / "model.safetensors")
    sizes = {"num_heads": 2, "num_kv_heads": 1, "dim": 16, "head_dim": 8}
    convert = qwen2_hf_to_tune if base == "qwen2" else hf_to_tune
    more = {"attn_dropout": 0.0} if base == "mistral" else {}
    model = BUILDERS[base][0](
        lora_attn_modules=attention, apply_lora_to_mlp=mlp, apply_lora_to_output=head, **SIZES, **settings, **more
    )
    model.load_state_dict(convert(held, **sizes), strict=False)
    return model.eval()


def answer(model):
    with torch.no_grad():
        return model(IDS).float().contiguous()


def trained(model):
    for turn, (name, parameter) in enumerate(sorted(get_adapter_params(model).items())):
        draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
        parameter.data = parameter.data * (1 + 0.3 * draw) if "magnitude" in name else 0.4 * draw


def magnitudes(model):
    for module in model.modules():
        if type(module).__name__ == "DoRALinear":
            module.initialize_dora_magnitude()


def save(bases, out, base, attention, mlp, head, settings, model):
    with tempfile.TemporaryDirectory() as work:
        keeper = FullModelHFCheckpointer(
            checkpoint_dir=bases / base,
            checkpoint_files=["model.safetensors"],
            model_type=BUILDERS[base][1],
            output_dir=work,
        )
        keeper.load_checkpoint()
        told = {"r": settings["lora_rank"], "lora_alpha": settings["lora_alpha"], "peft_type": "LORA"}
        told["target_modules"] = get_lora_module_names(attention, mlp, head)  # as its recipes have it
        state = {training.ADAPTER_KEY: get_adapter_params(model), training.ADAPTER_CONFIG: told}
        keeper.save_checkpoint(state, epoch=0, adapter_only=True)
        out.mkdir(parents=True)
        for path in (Path(work) / "epoch_0").glob("adapter_*"):
            (out / path.name).write_bytes(path.read_bytes())


def read(bases, out):
    """Answers with the folders that we wrote."""
    found = {}
    for folder in sorted(each for each in out.iterdir() if each.is_dir()):
        told = json.loads((folder / "adapter_config.json").read_text())
        names = [KEYS.get(each, each) for each in told["target_modules"]]
        mlp, head = "gate_proj" in names, "lm_head" in names
        settings = {"lora_rank": told["r"], "lora_alpha": told["lora_alpha"], "use_dora": bool(told.get("use_dora"))}
        attention = [name for name in names if name in ATTENTION]
        model = built(bases, folder.name.partition("-")[0], attention, mlp, head, settings)
        held = torch.load(folder / "adapter_model.pt", weights_only=True)
        assert set(held) == set(get_adapter_params(model)), folder
        model.load_state_dict(held, strict=False)
        found[folder.name] = answer(model)
    save_file(found, out / "logits.safetensors")


def main(bases, out):
    if out.name.endswith("_written"):
        return read(bases, out)
    answers = {}
    for name, (base, *places, settings) in CASES.items():
        model = built(bases, base, *places, settings)
        magnitudes(model)
        if base not in answers:
            answers[base] = answer(model)
        trained(model)
        save(bases, out / name, base, *places, settings, model)
        answers[name] = answer(model)
        print(name, float((answers[name] - answers[base]).abs().max()))
    save_file(answers, out / "logits.safetensors")
    told = {"versions": {each: version(each) for each in ("torchtune", "torch")}, "cases": {}}
    told["cases"] = {name: {"base": base} for name, (base, *_) in CASES.items()}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

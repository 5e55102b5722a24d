"""Writes tests/interop/mlx_lm_folders with mlx-lm itself, which runs on Linux too: see recorded.py.

    python -m venv E; E/bin/pip install mlx-lm==0.32.2 'mlx[cpu]==0.32.4'
    E/bin/python tests/support/record_mlx.py BASES tests/interop/mlx_lm_folders
    E/bin/python tests/support/record_mlx.py BASES tests/interop/mlx_lm_written      # see written.py

Each folder is written as `mlx_lm.lora` writes one after training and loaded again by `load_adapters` before its answer
is recorded. The numbers are random.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, save_config

IDS = mx.array([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
CASES = {
    "llama-lora": ("llama", "lora", 2, 4, 2.0, None),
    "llama-keys": ("llama", "lora", -1, 3, 20.0, ATTENTION),
    "llama-head": ("llama", "lora", 1, 2, 1.5, ["mlp.down_proj", "lm_head", "model.embed_tokens"]),
    "llama-dora": ("llama", "dora", 2, 4, 2.0, None),
    "llama-full": ("llama", "full", 1, 0, 0.0, None),
    "llama_tied-table": ("llama_tied", "lora", 1, 2, 2.0, ["model.embed_tokens", "mlp.up_proj"]),
    "mistral-lora": ("mistral", "lora", 3, 2, 2.0, None),
    "qwen2-dora": ("qwen2", "dora", 3, 2, 3.0, None),
    "qwen3-lora": ("qwen3", "lora", 2, 2, 2.0, None),
    "gemma3-table": ("gemma3", "lora", 2, 2, 1.0, ["model.embed_tokens", *ATTENTION]),
    "phi3-lora": ("phi3", "lora", 2, 2, 2.0, None),
    "gpt2-lora": ("gpt2", "lora", 2, 2, 2.0, None),
    "gpt2-dora": ("gpt2", "dora", 3, 2, 2.0, None),
    "gpt2-full": ("gpt2", "full", 1, 0, 0.0, None),
    "qwen3_moe-lora": ("qwen3_moe", "lora", 2, 2, 2.0, None),
    "mixtral-lora": ("mixtral", "lora", 1, 2, 2.0, None),
}


def trained(base, kind, layers, rank, scale, keys, folder):
    """What mlx_lm.lora's train_model does before and after its steps."""
    model, _ = load_model(base, lazy=False)
    model.freeze()
    parameters = {"rank": rank, "dropout": 0.0, "scale": scale} | ({"keys": keys} if keys else {})
    if kind == "full":
        for block in model.layers[-layers:]:
            block.unfreeze()
        parameters = None
    else:
        linear_to_lora_layers(model, layers, parameters, use_dora=kind == "dora")
    moved = {}
    for name, value in tree_flatten(model.trainable_parameters()):
        noise = mx.random.normal(value.shape)
        end = name.rpartition(".")[2]
        moved[name] = value * (1 + 0.2 * noise) if end == "m" else value + (0.1 if end == "lora_b" else 0.03) * noise
    model.update(tree_unflatten(list(moved.items())))
    folder.mkdir(parents=True)
    told = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters, "model": base.name}
    save_config(told, folder / "adapter_config.json")
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))


def as_on_the_hub(base):
    """A base as mlx-lm reads it: GPT-2's names without the beginning `transformer.`, settings as of transformers 4."""
    held = mx.load(str(base / "model.safetensors"))
    if base.name == "gpt2":
        held = {name.removeprefix("transformer."): value for name, value in held.items()}
    mx.save_safetensors(str(base / "model.safetensors"), held, {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    rope = config.get("rope_parameters", {})
    config |= {"rope_theta": rope.get("full_attention", rope).get("rope_theta", 10000.0)}
    config |= {"num_experts": config.get("num_experts") or config.get("num_local_experts")}
    (base / "config.json").write_text(json.dumps(config))


def read(bases, out):
    """Answers with the folders that we wrote."""
    found = {}
    for folder in sorted(each for each in out.iterdir() if each.is_dir()):
        model, _ = load_model(bases / folder.name.partition("-")[0], lazy=False)
        found[folder.name] = load_adapters(model, folder)(IDS)
    mx.save_safetensors(str(out / "logits.safetensors"), found)


def main(bases, out):
    mx.random.seed(0)
    for base in {base for base, *_ in CASES.values()}:
        as_on_the_hub(bases / base)
    if out.name.endswith("_written"):
        return read(bases, out)
    answers = {}
    for name, (base, *settings) in CASES.items():
        if base not in answers:
            answers[base] = load_model(bases / base, lazy=False)[0](IDS)
        trained(bases / base, *settings, out / name)
        answers[name] = load_adapters(load_model(bases / base, lazy=False)[0], out / name)(IDS)
    mx.save_safetensors(str(out / "logits.safetensors"), {key: mx.array(np.array(t)) for key, t in answers.items()})
    told = {"versions": {each: version(each) for each in ("mlx-lm", "mlx")}, "cases": {}}
    told["cases"] = {name: {"base": base} for name, (base, *_) in CASES.items()}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

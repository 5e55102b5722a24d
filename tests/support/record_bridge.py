r"""Adds the folders bridge-… to tests/interop/peft_folders, as Megatron Bridge's export names and splits them.

    git clone https://github.com/NVIDIA-NeMo/Megatron-Bridge B; git -C B checkout 067f987d
    PYTHONPATH=. python support/record_bridge.py BASES B/src tests/interop/peft_folders       # from tests/

Megatron-LM and Transformer Engine, which need GPUs, are stood in for by names without a meaning: no model of Megatron's
is made or run. What is Bridge's own is how tensors of Megatron's layout are split (fused q, k, v by groups; gate over
up), merged, named and saved: its functions do that here, and transformers runs the weights that Bridge merged. The
numbers are random.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from safetensors.torch import save_file

from support.recorded_beside import IDS, add

AWAY = ("megatron.core", "megatron.training", "transformer_engine", "omegaconf", "einops", "modelopt")
PACKAGES = ("megatron", "megatron.bridge", *(f"megatron.bridge.{each}" for each in ("models", "peft", "utils")))
CASES = {"bridge-llama-lora": ("llama", 2, 6), "bridge-qwen3_moe-experts": ("qwen3_moe", 2, 4)}


class Away(types.ModuleType):
    """A module that is not installed: names in it are empty classes, or what gives 1 and has such names again."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}) if name[0].isupper() else Away(name))
        return getattr(self, name)

    def __call__(self, *given, **more):
        return 1


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        there = any(name == each or name.startswith(f"{each}.") for each in AWAY)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if there else None

    def create_module(self, spec):
        return Away(spec.name)

    def exec_module(self, module):
        pass


def bridge(source):
    """Bridge's modules of the export."""
    sys.meta_path.insert(0, Finder())
    for name in (*PACKAGES, "megatron.bridge.models.conversion"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    from megatron.bridge.models.conversion import param_mapping, peft_bridge
    from megatron.bridge.peft.lora_merge import LoRAMerge

    state = sys.modules["megatron.core"].parallel_state
    state.get_tensor_model_parallel_world_size = lambda: 1
    return peft_bridge, param_mapping, LoRAMerge()


def wrapped(model):
    """{the layers of transformers in one layer of Megatron's}: fused q, k, v; o; gate over up; down; of experts too."""
    for path, module in model.named_modules():
        if hasattr(module, "q_proj"):
            yield [f"{path}.{each}_proj" for each in "qkv"]
            yield [f"{path}.o_proj"]
        elif path.endswith(".mlp.experts"):
            for turn in range(len(module.gate_up_proj)):
                yield [f"{path}.{turn}.gate_proj", f"{path}.{turn}.up_proj"]
                yield [f"{path}.{turn}.down_proj"]
        elif hasattr(module, "gate_proj"):
            yield [f"{path}.gate_proj", f"{path}.up_proj"]
            yield [f"{path}.down_proj"]


def weight_at(model, path):
    """The weight of a layer of transformers, a view: of one expert too, whose gate stands over up in one parameter."""
    *rest, turn, part = path.split(".")
    if not turn.isdigit() or rest[-1] != "experts":
        return model.get_submodule(path).weight.data
    experts = model.get_submodule(".".join(rest))
    if part == "down_proj":
        return experts.down_proj.data[int(turn)]
    return experts.gate_up_proj.data[int(turn)].chunk(2)[part == "up_proj"]


def tuned(model, rank, alpha, source):
    """(the tensors as Bridge exports them); the model gets the weights that Bridge merges."""
    peft, mapping, merge = source
    config = SimpleNamespace(
        num_attention_heads=model.config.num_attention_heads,
        num_query_groups=model.config.num_key_value_heads,
        kv_channels=model.config.head_dim,
        hidden_size=model.config.hidden_size,
    )
    mixin, exported = peft.MegatronPeftBridge(), []
    for turn, paths in enumerate(wrapped(model)):
        draw = torch.Generator().manual_seed(turn)
        weights = [weight_at(model, path) for path in paths]
        fused = mapping.merge_qkv_weights(config, *weights) if len(paths) == 3 else torch.cat(weights)
        a = 0.3 * torch.randn(rank, fused.shape[1], generator=draw)
        b = 0.3 * torch.randn(fused.shape[0], rank, generator=draw)
        merged = merge.merge(fused, b, a, alpha, rank, tp_group=None)
        if len(paths) == 3:
            parts = mixin._split_qkv_linear_out_weight([SimpleNamespace(config=config)], b).values()
            wholes = mapping.split_qkv_weights(config, merged)
        elif len(paths) == 2:
            parts, wholes = mixin._split_fused_fc1_linear_out_weight(b, is_expert=False), merged.chunk(2)
        else:
            parts, wholes = [b], [merged]
        names = mixin._build_lora_hf_names([f"{path}.weight" for path in paths])
        for name_a, name_b, part, weight, whole in zip(*names, parts, weights, wholes, strict=True):
            exported += [SimpleNamespace(param_name=name, weight=t) for name, t in ((name_a, a), (name_b, part))]
            weight.copy_(whole)
    return exported


def main(bases, code, out):
    source, answers = bridge(code), {}
    peft = source[0]
    for name, (base, rank, alpha) in CASES.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(bases / base, dtype=torch.float32).eval()
        if base not in answers:
            with torch.no_grad():
                answers[base] = model(input_ids=IDS).logits.contiguous()
        exported = tuned(model, rank, alpha, source)
        with torch.no_grad():
            answers[name] = model(input_ids=IDS).logits.contiguous()
        state, keys, parameters = peft.convert_adapter_weights_to_peft_state(exported)
        config = peft.build_adapter_config_dict(
            SimpleNamespace(dim=rank, alpha=alpha, dropout=0.0),
            target_modules=peft.infer_target_modules_from_adapter_weights(keys),
            target_parameters=parameters,
            base_model_name_or_path=base,
            rank_pattern=peft.infer_rank_pattern_from_adapter_weights(exported, default_rank=rank),
        )
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "adapter_config.json").write_text(json.dumps(config, indent=2))
        save_file({key: t.clone().contiguous() for key, t in state.items()}, out / name / "adapter_model.safetensors")
    add(out, answers, {name: base for name, (base, *_) in CASES.items()}, {"megatron-bridge": "067f987d"})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

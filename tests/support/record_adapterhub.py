"""Writes tests/interop/adapterhub_folders with AdapterHub's `adapters` itself: see recorded.py.

    python -m venv E; E/bin/pip install adapters==1.3.0 transformers==4.57.6 torch==2.13.0
    E/bin/python tests/support/record_adapterhub.py BASES tests/interop/adapterhub_folders
    E/bin/python tests/support/record_adapterhub.py BASES tests/interop/adapterhub_written       # answers with ours

Each folder is what `save_adapter` writes, loaded again by `load_adapter` before its answer is recorded. The numbers are
random. Attention is eager: with sdpa, `adapters` masks prefixes of decoders otherwise.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import adapters
import torch
import transformers
from adapters import (
    BertAdapterModel,
    BnConfig,
    CompacterConfig,
    DiReftConfig,
    DoubleSeqBnConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MAMConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
    VeraConfig,
)
from safetensors.torch import save_file

IDS = torch.tensor([[5, 9, 2, 30, 11, 8, 17, 3, 26, 14], [7, 7, 21, 4, 13, 29, 6, 1, 10, 19]])
CLASSES = {
    "bert": transformers.BertForSequenceClassification,
    "roberta": transformers.RobertaForSequenceClassification,
    "llama": transformers.LlamaForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "mistral": transformers.MistralForCausalLM,
}
WIDE = {"intermediate_lora": True, "output_lora": True}
HOULSBY = {"reduction_factor": 4, "non_linearity": "relu"}
CASES = {
    "bert-lora": ("bert", LoRAConfig(r=4, alpha=6)),
    "bert-lora-wide": ("bert", LoRAConfig(r=2, alpha=4, attn_matrices=["q", "k", "v"], **WIDE)),
    "roberta-lora": ("roberta", LoRAConfig(r=2, alpha=3, leave_out=[1])),
    "llama-lora": ("llama", LoRAConfig(r=2, alpha=4, attn_matrices=["q", "k", "v"], **WIDE)),
    "gpt2-lora": ("gpt2", LoRAConfig(r=2, alpha=4)),
    "gpt2-lora-wide": ("gpt2", LoRAConfig(r=2, alpha=3, attn_matrices=["k", "v", "q"], **WIDE)),
    "gpt2-lora-keys": ("gpt2", LoRAConfig(r=3, alpha=3, attn_matrices=["k"])),
    "llama-dora": ("llama", LoRAConfig(r=2, alpha=4, use_dora=True)),
    "bert-dora": ("bert", LoRAConfig(r=2, alpha=2, use_dora=True)),
    "bert-vera": ("bert", VeraConfig(r=4, alpha=8)),
    "bert-ia3": ("bert", IA3Config()),
    "llama-ia3": ("llama", IA3Config()),
    "gpt2-ia3": ("gpt2", IA3Config()),
    "bert-houlsby": ("bert", DoubleSeqBnConfig(**HOULSBY)),
    "llama-houlsby": ("llama", DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu", scaling=2.0)),
    "gpt2-houlsby": ("gpt2", BnConfig(mh_adapter=True, output_adapter=False, **HOULSBY)),
    "llama-pfeiffer": ("llama", SeqBnConfig(reduction_factor=4)),
    "gpt2-pfeiffer": ("gpt2", SeqBnConfig(reduction_factor=4, leave_out=[0])),
    "llama-prefix": ("llama", PrefixTuningConfig(prefix_length=4, flat=True)),
    "gpt2-prefix": ("gpt2", PrefixTuningConfig(prefix_length=3, bottleneck_size=8)),
    "bert-prefix": ("bert", PrefixTuningConfig(prefix_length=3, flat=True)),
    "llama-reft": ("llama", LoReftConfig(r=2)),
    "llama-reft-tied": ("llama", LoReftConfig(r=3, prefix_positions=2, suffix_positions=3, tied_weights=True)),
    "bert-reft": ("bert", LoReftConfig(r=2, prefix_positions=2, suffix_positions=1, layers=[0, 2])),
}
REFUSED = {
    "bert-pfeiffer": ("bert", SeqBnConfig(reduction_factor=4)),
    "llama-both": ("llama", BnConfig(mh_adapter=True, output_adapter=True, original_ln_before=True, **HOULSBY)),
    "llama-parallel": ("llama", ParBnConfig(reduction_factor=4)),
    "llama-invertible": ("llama", SeqBnInvConfig(reduction_factor=4)),
    "bert-compacter": ("bert", CompacterConfig(reduction_factor=4, phm_dim=2)),
    "bert-learned-scale": ("bert", DoubleSeqBnConfig(scaling="learned", **HOULSBY)),
    "bert-norm": ("bert", DoubleSeqBnConfig(ln_before=True, **HOULSBY)),
    "bert-mam": ("bert", MAMConfig()),
    "llama-gated-lora": ("llama", LoRAConfig(r=2, use_gating=True)),
    "gpt2-gated-prefix": ("gpt2", PrefixTuningConfig(prefix_length=2, flat=True, use_gating=True)),
    "bert-dvora": ("bert", VeraConfig(r=2, use_dora=True)),
    "llama-direft": ("llama", DiReftConfig(r=2)),
    "bert-prompt": ("bert", PromptTuningConfig(prompt_length=2)),
}
"""What is refused: tests/interop/test_adapterhub.py."""
NOISE = {
    "bert-lora": 0.4,
    "bert-vera": 0.3,
    "roberta-lora": 0.8,
    "gpt2-lora-keys": 0.3,
    "gpt2-houlsby": 0.2,
    "bert-prefix": 4.0,
    **{"llama-reft": 0.4, "llama-reft-tied": 0.4, "bert-reft": 0.6},
}
"""Where 0.1 would hardly show in the answer."""


def plain(bases, base):
    model = CLASSES[base].from_pretrained(bases / base, attn_implementation="eager")
    model.config.name_or_path = base
    return model.eval()


def loaded(bases, base):
    model = plain(bases, base)
    adapters.init(model)
    return model.eval()


def answer(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.contiguous()


def trained(model, config, folder, spread, safe):
    model.add_adapter("tuned", config=config)
    model.train_adapter("tuned")
    for name, parameter in model.named_parameters():
        if "tuned" in name:
            noise = torch.randn_like(parameter)
            if name.endswith("parametrizations.weight.original"):
                noise = noise.triu(1)  # the reflectors; its diagonal gets no gradient, and torch takes its whole part
            near_one = isinstance(config, IA3Config) or ".m." in name
            parameter.data = parameter.data * (1 + 0.2 * noise) if near_one else parameter.data + spread * noise
    model.save_adapter(folder, "tuned", use_safetensors=safe)


def read(bases, out):
    """Answers with the folders that we wrote."""
    found = {}
    for folder in sorted(each for each in out.iterdir() if each.is_dir()):
        model = loaded(bases, folder.name.partition("-")[0])
        told = {}
        model.load_adapter(str(folder), use_safetensors=True, set_active=True, loading_info=told)
        assert not told.get("missing_keys") and not told.get("unexpected_keys"), (folder, told)
        found[folder.name] = answer(model.eval())
    save_file(found, out / "logits.safetensors")


def main(bases, out):
    if out.name.endswith("_written"):
        return read(bases, out)
    torch.manual_seed(0)
    out.mkdir(parents=True)
    answers = {}
    for name, (base, config) in CASES.items():
        if base not in answers:
            answers[base] = answer(plain(bases, base))
        safe = base == "roberta"
        trained(loaded(bases, base), config, out / name, NOISE.get(name, 0.1), safe)
        model = loaded(bases, base)
        model.set_active_adapters(model.load_adapter(str(out / name), use_safetensors=safe))
        answers[name] = answer(model.eval())
        print(name, float((answers[name] - answers[base]).abs().max()))
    for name, (base, config) in REFUSED.items():
        trained(loaded(bases, base), config, out / name, 0.1, False)
    own = BertAdapterModel.from_pretrained(bases / "bert")
    own.config.name_or_path = "bert"
    own.add_classification_head("tuned", num_labels=2)
    trained(own, LoRAConfig(r=2), out / "bert-own-head", 0.1, False)
    save_file(answers, out / "logits.safetensors")
    told = {"versions": {each: version(each) for each in ("adapters", "transformers")}, "cases": {}}
    told["cases"] = {name: {"base": base} for name, (base, _) in CASES.items()}
    (out / "cases.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

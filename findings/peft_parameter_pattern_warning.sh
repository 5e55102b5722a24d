#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: peft warns of keys of `rank_pattern` and `alpha_pattern` that it ignores, and applies the others.
# What happens: keys that match a parameter of `target_parameters` (fused experts) are applied, and a RuntimeWarning says
# that they matched no module and were ignored. Who believes it trains, or serves, another rank than the one that is
# there.
#
# Output seen:
#   warned: The following rank_pattern keys did not match any targeted module and were ignored
#   rank of down_proj: 3 (rank_pattern says 3, r is 2)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import warnings

from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 4}
model = MixtralForCausalLM(MixtralConfig(**size, num_attention_heads=2, num_key_value_heads=2))
names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
config = LoraConfig(r=2, target_modules=[], target_parameters=names, rank_pattern={"experts.down_proj": 3})
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    model = get_peft_model(model, config)
said = [str(each.message) for each in told if "rank_pattern" in str(each.message)]
for each in said:
    print("warned:", each.partition(":")[0])
outer = model.base_model.model.model.layers[0].mlp.experts
assert outer.parameter_name == "down_proj"
rank = outer.r["default"]
print(f"rank of down_proj: {rank} (rank_pattern says 3, r is 2)")
assert rank == 3 and outer.lora_A["default"].weight.shape[0] == 3 * 4, "the pattern is ignored now"
assert said, "nothing is warned of now"
PY

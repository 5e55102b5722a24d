#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: `add_weighted_adapter(["a"], [1.0], "b", combination_type="cat")` makes an adapter that answers as "a" does
# ("`cat` and `svd` are precise methods"), as it does for a plain LoRA.
# What happens: where "a" has `use_rslora=True`, the new adapter is as many times too strong as the root of its rank. The
# scales of the inputs are folded into the factors, and the new configuration has alpha = r, so that alpha / r is 1; but
# it keeps `use_rslora` of the first adapter, and then the scale is alpha / sqrt(r) = sqrt(r). All types are concerned.
#
# Output seen:
#   LoRA cat: scale of the new adapter 1.00, its change is 1.00 times that of the input
#   LoRA svd: scale of the new adapter 1.00, its change is 1.00 times that of the input
#   LoRA linear: scale of the new adapter 1.00, its change is 1.00 times that of the input
#   rsLoRA cat: scale of the new adapter 4.00, its change is 4.00 times that of the input
#   rsLoRA svd: scale of the new adapter 4.00, its change is 4.00 times that of the input
#   rsLoRA linear: scale of the new adapter 4.00, its change is 4.00 times that of the input
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q peft==0.21.2 transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from peft import LoraConfig, get_peft_model

RANK = 16
found = {}
for name, rslora in (("LoRA", False), ("rsLoRA", True)):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(32, 32))
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=["0"], use_rslora=rslora, init_lora_weights=False)
    model = get_peft_model(plain, config, adapter_name="a")
    layer = model.base_model.model[0]
    for way in ("cat", "svd", "linear"):
        model.add_weighted_adapter(["a"], [1.0], way, combination_type=way, svd_rank=RANK if way == "svd" else None)
        change = layer.get_delta_weight(way).norm() / layer.get_delta_weight("a").norm()
        found[name, way] = float(change)
        scale = layer.scaling[way]
        print(f"{name} {way}: scale of the new adapter {scale:.2f}, its change is {change:.2f} times that of the input")
assert all(abs(change - (4 if name == "rsLoRA" else 1)) < 0.01 for (name, _), change in found.items()), "it changed"
PY

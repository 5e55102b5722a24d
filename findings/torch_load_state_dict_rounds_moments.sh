#!/usr/bin/env bash
# transformers 5.23.0 (its Adafactor), torch 2.13.0 (Python 3.10 or later), CPU.
#
# Expected: training that goes on from a saved optimiser (`state_dict`, `load_state_dict`) goes on as it would have.
# What happens: for bfloat16 parameters, Adafactor keeps its second moments in float32, on purpose, and saves them so.
# `torch.optim.Optimizer.load_state_dict` casts every floating tensor of the state, but `step`, to the dtype of the
# parameter: the moments come back rounded to bfloat16, without a word, and other weights come of it. In float32 the two
# are equal to the bit.
#
# Output seen:
#   float32: moments saved in torch.float32, loaded in torch.float32, off by 0.00%; weights that differ 20 steps on: 0.0%
#   bfloat16: moments saved in torch.float32, loaded in torch.bfloat16, off by 0.37%; weights that differ 20 steps on: 0.9%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import copy

import torch
from transformers.optimization import Adafactor


def made(parameter):
    return Adafactor([parameter], lr=1e-3, relative_step=False, scale_parameter=False)


def train(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()


found = {}
for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    gone_on = torch.nn.Parameter(torch.randn(64, 64).to(dtype))
    gradients = [torch.randn(64, 64).to(dtype) for _ in range(40)]
    optimizer = made(gone_on)
    train(optimizer, gone_on, gradients[:20])
    resumed = torch.nn.Parameter(gone_on.data.clone())
    second = made(resumed)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    saved, loaded = (each.state_dict()["state"][0]["exp_avg_sq_row"] for each in (optimizer, second))
    off = float((loaded.float() / saved.float() - 1).abs().max())
    told = f"moments saved in {saved.dtype}, loaded in {loaded.dtype}, off by {off:.2%}"
    train(optimizer, gone_on, gradients[20:])
    train(second, resumed, gradients[20:])
    differ = float((gone_on != resumed).float().mean())
    name = str(dtype).removeprefix("torch.")
    found[name] = (off, differ)
    print(f"{name}: {told}; weights that differ 20 steps on: {differ:.1%}")
assert found["float32"] == (0, 0) and min(found["bfloat16"]) > 1e-3, "it behaves otherwise now"
PY

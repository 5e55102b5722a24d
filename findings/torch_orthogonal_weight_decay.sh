#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.nn.utils.parametrizations.orthogonal on a matrix that is not square.
#
# Expected: weight decay, which is AdamW's default, pulls the stored tensor towards zero a little; the weight stays
#           orthogonal, as the documentation says it does "always".
# Happens:  after one step of AdamW with its default settings the weight is exactly zero, for good, without a word. The
#           Householder map multiplies its result by `X.diagonal().int()`, a diagonal that starts at -1; any decay makes
#           it -0.99999, whose whole part is 0. With weight_decay=0 everything is well.
# Seen:     norm of a 16 x 4 orthogonal weight: 2.0 before, 2.0 after a step without decay, 0.0 after a step with it.
# It reaches users of the library pyreft (LoReFT and three more of its six classes keep their rotation in this form):
# with weight_decay in the TrainingArguments the intervention is an identity from the first step on, and stays one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch


def norms(**settings):
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(4, 16, bias=False))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, **settings)
    before = layer.weight.norm().item()
    layer(torch.randn(3, 4)).pow(2).sum().backward()
    optimizer.step()
    return before, layer.weight.norm().item()


for settings in ({"weight_decay": 0.0}, {}):
    before, after = norms(**settings)
    print(f"AdamW({settings or 'default: weight_decay=0.01'}): norm {before:.3f} -> {after:.3f}")
    assert abs(before - 2) < 1e-4
    assert abs(after - (2 if settings else 0)) < 1e-4, "behaviour changed"
PY
echo "as described"

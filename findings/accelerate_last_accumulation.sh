#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0 (Python 3.10 or later), CPU.
#
# Expected: with gradient_accumulation_steps=4, each update uses the mean gradient of the batches since the last one, also
# at the end of an epoch, where `accumulate` steps with the batches that are left.
# What happens: `backward` divides by 4 whatever is left. The last update of an epoch of 6 batches is made of the sum of
# two gradients over 4: half as strong as it ought to be, and a quarter with one batch left, in each epoch.
#
# Output seen (every batch has the gradient 1, SGD with a learning rate of 1, so that each update ought to be -1):
#   8 batches: updates -1.0 -1.0
#   6 batches: updates -1.0 -0.5
#   5 batches: updates -1.0 -0.25
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

found = {}
for count in (8, 6, 5):
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer, batches = accelerator.prepare(model, optimizer, DataLoader(torch.ones(count, 1), batch_size=1))
    updates = []
    for batch in batches:
        with accelerator.accumulate(model):
            before = model.weight.item()
            accelerator.backward(model(batch).mean())
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                updates.append(round(model.weight.item() - before, 6))
    found[count] = updates
    print(f"{count} batches: updates {' '.join(map(str, updates))}")
assert found == {8: [-1.0, -1.0], 6: [-1.0, -0.5], 5: [-1.0, -0.25]}, "it behaves otherwise now"
PY

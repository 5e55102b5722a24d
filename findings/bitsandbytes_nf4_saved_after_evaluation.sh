#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, on a CPU with AVX512-BF16 (Zen 4 and later, Cooper Lake, Sapphire Rapids and later).
#
# Expected: evaluating a 4-bit model leaves it as it is: what is trained afterwards goes through the same frozen base, and what is
# saved afterwards is what was loaded.
# What happens: the first forward pass in eval mode without gradients packs a Linear4bit anew for its CPU kernel, for good.
# - On the way the scales of its blocks are transposed, and rounded from float32 to bfloat16, so every later pass, training too,
#   is through slightly other weights.
# - `state_dict` (so `save_pretrained`) undoes the packing of the numbers, but of scales that are not quantised themselves
#   (compress_statistics=False; bnb_4bit_use_double_quant's default) it leaves the transposed order. The file holds another matrix,
#   and so does the model in memory from then on. Nothing is said.
#
# Output seen (errors are of the weight, relative to the one that was quantised):
#   compress_statistics=False: file before an evaluation 0.092, after 0.930; layer after saving 0.92
#   compress_statistics=True: file before an evaluation 0.092, after 0.092; layer after saving 0.09
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q bitsandbytes==0.50.2 torch==2.13.0 numpy
cd "$work"
cat > tried.py <<'PY'
import sys

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit

torch.manual_seed(0)
plain = torch.nn.Linear(256, 256, bias=False)
with torch.no_grad():
    plain.weight.mul_(torch.logspace(-1, 1, 256)[:, None])  # rows of unlike size, as trained ones are
x = torch.randn(16, 256)


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def read(state):
    told = {key.removeprefix("weight."): tensor for key, tensor in state.items() if key != "weight"}
    held = bnb.nn.Params4bit.from_prequantized(state["weight"], told, requires_grad=False, device="cpu")
    return dequantize_4bit(held.data, held.quant_state).float().view_as(plain.weight)


for nested in (False, True):
    layer = bnb.nn.Linear4bit(
        256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=nested
    )
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")
    if not layer.support_avx512bf16_for_cpu:
        print("this CPU has no AVX512-BF16, and bitsandbytes keeps the layer as it is")
        sys.exit(0)
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    layer.eval()
    with torch.no_grad():
        layer(x)  # one evaluation
    after = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    layer.train()
    files = [error(read(state), plain.weight) for state in (before, after)]
    held = error(layer(x.clone().requires_grad_()), plain(x))
    print(
        f"compress_statistics={nested}: file before an evaluation {files[0]:.3f}, after {files[1]:.3f}; layer after "
        f"saving {held:.2f}"
    )
    assert files[0] < 0.1 and (files[1] > 0.5 and held > 0.5) is not nested, "it behaves otherwise now"
PY
"$work/venv/bin/python" tried.py 2> /dev/null

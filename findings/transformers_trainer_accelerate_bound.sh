#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.1.0, 1.2.1 and 1.3.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: with any accelerate that transformers declares (`pip install 'transformers[torch]'` asks for accelerate>=1.1.0,
# and `transformers.utils.import_utils.ACCELERATE_MIN_VERSION` is the same), Trainer trains, or says at once that it wants
# a newer one.
# What happens: with accelerate 1.1.0 and 1.2.1 Trainer is made without a word, and `train()` of any model ends in a TypeError
# about an argument `keep_torch_compile`, which accelerate's `unwrap_model` has had since 1.3.0. The bound that holds is 1.3.0.
#
# Output seen:
#   transformers declares accelerate>=1.1.0
#   accelerate 1.1.0: TypeError: Accelerator.unwrap_model() got an unexpected keyword argument 'keep_torch_compile'
#   accelerate 1.2.1: TypeError: Accelerator.unwrap_model() got an unexpected keyword argument 'keep_torch_compile'
#   accelerate 1.3.0: trained 2 steps
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 accelerate==1.1.0
cd "$work"
cat > tried.py <<'PY'
import sys

import accelerate
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import import_utils

if accelerate.__version__ == "1.1.0":
    print(f"transformers declares accelerate>={import_utils.ACCELERATE_MIN_VERSION}")
size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(4)]
options = TrainingArguments("out", max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
trainer = Trainer(LlamaForCausalLM(LlamaConfig(**size)), options, train_dataset=rows)
try:
    said = f"trained {trainer.train().global_step} steps"
except TypeError as error:
    said = f"TypeError: {error}"
print(f"accelerate {accelerate.__version__}: {said}")
assert import_utils.ACCELERATE_MIN_VERSION == "1.1.0", "it declares another bound now"
assert ("keep_torch_compile" in said) == (sys.argv[1] == "fails"), "it behaves otherwise now"
PY
for tried in 1.1.0:fails 1.2.1:fails 1.3.0:trains; do
  "$work/venv/bin/pip" install -q accelerate=="${tried%:*}"
  HF_HUB_OFFLINE=1 "$work/venv/bin/python" tried.py "${tried#*:}" 2> /dev/null | grep -v train_runtime
done

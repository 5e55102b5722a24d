#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 (Python 3.10 or later), CPU, sdpa and eager.
#
# Expected: the logits of a forward pass do not depend on `use_cache`, which says whether keys and values are given back.
# What happens: of a packed row (two texts, position ids that start again at 0), each text is seen alone with
# use_cache=False, and the second reads the first with use_cache=True, the default of a forward pass. Texts are told
# apart by their position ids only where there is no cache and no attention mask, and with use_cache=True the model has
# made an (empty) cache by then. An attention mask of ones, which a tokenizer or collator gives, does the same. Training
# by Trainer is not concerned, as it sets use_cache=False; a loss, a perplexity or states computed by calling the model
# are other ones than in training.
#
# Output seen (largest differences of the second text in the row from the same text alone):
#   llama sdpa: use_cache=False 0.0000, default 4.9829, use_cache=False and a mask of ones 4.9829 (largest logit 2.9)
#   llama eager: use_cache=False 0.0000, default 4.9829, use_cache=False and a mask of ones 4.9829 (largest logit 2.9)
#   qwen3 sdpa: use_cache=False 0.0000, default 4.2630, use_cache=False and a mask of ones 4.2630 (largest logit 4.1)
#   qwen3 eager: use_cache=False 0.0000, default 4.2630, use_cache=False and a mask of ones 4.2630 (largest logit 4.1)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
size |= {"num_key_value_heads": 2, "initializer_range": 0.2}
MODELS = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}
for name, (cls, config) in MODELS.items():
    torch.manual_seed(0)
    model = cls(config(**size)).eval()
    first, second = torch.randint(1, 64, (1, 7)), torch.randint(1, 64, (1, 9))
    row = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        with torch.no_grad():
            alone = model(second).logits

            def far(**settings):
                return float((model(row, position_ids=positions, **settings).logits[:, 7:] - alone).abs().max())

            apart, default = far(use_cache=False), far()
            masked = far(use_cache=False, attention_mask=torch.ones_like(row))
        print(
            f"{name} {kind}: use_cache=False {apart:.4f}, default {default:.4f}, "
            f"use_cache=False and a mask of ones {masked:.4f} (largest logit {float(alone.abs().max()):.1f})"
        )
        assert apart < 1e-3 and default > 0.1 and masked > 0.1, "it behaves otherwise now"
PY

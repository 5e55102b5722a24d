#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0 (Python 3.10 or later).
#
# Expected: a decoder with prefix tuning (`PrefixTuningConfig`) answers the same with attn_implementation="sdpa", the
# default, as with "eager", since the two differ by rounding alone.
# What happens: the answers differ wholly. Without padding, transformers gives sdpa no mask but is_causal=True, and
# adapters puts the prefix before the keys without a mask of its own; torch aligns the causal mask at the top left, so
# that token i sees the first i + 1 of prefix and tokens: the last tokens, itself among them, are hidden from it. With
# padding, the mask of sdpa is a boolean one in which True is seen, and adapters fills the prefix's columns with False:
# the prefix then does nothing. Encoders (BERT) are not affected. Nothing warns.
#
# Output seen (largest differences of logits; "padded": the first token is padding, and left out):
#   llama: eager and sdpa without prefix 0.0000, with it 4.7995; padded 4.2391; sdpa, padded, prefix on and off 0.0000
#   gpt2: eager and sdpa without prefix 0.0000, with it 3.3317; padded 4.0299; sdpa, padded, prefix on and off 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q adapters==1.3.0 transformers==4.57.6 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import adapters
import torch
from adapters import PrefixTuningConfig
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
configs = {
    "llama": LlamaConfig(vocab_size=64, initializer_range=0.2, **size),
    "gpt2": GPT2Config(vocab_size=64, initializer_range=0.2, n_embd=32, n_layer=2, n_head=4),
}
ids, padded = torch.tensor([list(range(1, 17))]), torch.tensor([[0, *[1] * 15]])


def answers(config, kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kind).eval()
    adapters.init(model)
    torch.manual_seed(1)
    model.add_adapter("a", config=PrefixTuningConfig(flat=True, prefix_length=4))
    found = []
    with torch.no_grad():
        for mask in (torch.ones_like(ids), padded):
            for active in (None, "a"):
                model.set_active_adapters(active)
                found.append(model(ids, attention_mask=mask).logits[:, 1:])
    return found


def far(a, b):
    return float((a - b).abs().max())


for name, config in configs.items():
    (plain, on, _, on_padded), (plain_2, on_2, off_2_padded, on_2_padded) = (answers(config, k) for k in ("eager", "sdpa"))
    same, moved, moved_padded = far(plain, plain_2), far(on, on_2), far(on_padded, on_2_padded)
    dead = far(off_2_padded, on_2_padded)
    print(
        f"{name}: eager and sdpa without prefix {same:.4f}, with it {moved:.4f}; padded {moved_padded:.4f}; "
        f"sdpa, padded, prefix on and off {dead:.4f}"
    )
    assert same < 1e-3 and moved > 0.1 and moved_padded > 0.1 and dead < 1e-3, "it behaves otherwise now"
PY

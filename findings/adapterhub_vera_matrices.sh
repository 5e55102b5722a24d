#!/usr/bin/env bash
# adapters 1.3.0, transformers 4.57.6, torch 2.13.0 (Python 3.10 or later).
#
# Expected: VeRA (`VeraConfig`, Kopiczko et al. 2023, arXiv 2310.11454) trains two vectors for each layer, d of length
# r and b of length d_out, so it has far fewer trained parameters than LoRA of the same rank.
# What happens: vera_D and vera_B are whole r x r and d_out x d_out matrices that only start as diagonal. All of their
# entries are trained and leave zero in the first steps, so VeRA has more trained parameters than LoRA, and of d_out² a
# layer, as many as training the layer itself.
#
# Output seen (a BERT of width 64, 2 layers, query and value adapted, rank 8):
#   trained parameters: LoRA 4096, VeRA by the paper 288, VeraConfig 16640, the four weights themselves 16384
#   largest entry of vera_B off its diagonal after 3 steps of AdamW: 0.0300
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q adapters==1.3.0 transformers==4.57.6 torch==2.13.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY' 2>/dev/null
import adapters
import torch
from adapters import LoRAConfig, VeraConfig
from transformers import BertConfig, BertModel

size = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
counts = {}
for name, config in (("lora", LoRAConfig(r=8)), ("vera", VeraConfig(r=8))):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**size))
    adapters.init(model)
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad and ".loras." in key}
    counts[name] = sum(p.numel() for p in trained.values())
optimizer = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.tensor([list(range(1, 17))])).last_hidden_state.pow(3).sum().backward()
    optimizer.step()
off = max(float((p - p.diag().diag()).abs().max()) for key, p in trained.items() if "vera_B" in key)
paper, weights = 4 * (8 + 64), 4 * 64 * 64
print(
    f"trained parameters: LoRA {counts['lora']}, VeRA by the paper {paper}, VeraConfig {counts['vera']}, "
    f"the four weights themselves {weights}"
)
print(f"largest entry of vera_B off its diagonal after 3 steps of AdamW: {off:.4f}")
assert counts["vera"] > weights and off > 1e-3, "it behaves otherwise now"
PY

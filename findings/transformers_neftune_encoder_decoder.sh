#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (Python 3.10 or later).
#
# Expected: Trainer with neftune_noise_alpha adds noise to the token embeddings of whatever model it trains, or says that it
# cannot.
# What happens: the noise is a hook on `model.get_input_embeddings()`. Of T5 and BART that is `shared`, which no forward pass
# calls: encoder and decoder look tokens up in modules of their own with the same weight. Nothing is added, in silence: losses
# are those without noise to the last bit.
#
# Output seen:
#   LlamaForCausalLM: other losses with noise than without
#   T5ForConditionalGeneration: the same losses with noise and without
#   BartForConditionalGeneration: the same losses with noise and without
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 accelerate==1.15.0
cd "$work"
cat > tried.py <<'PY'
import torch
import transformers as tf

LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0,
      "decoder_start_token_id": 0, "pad_token_id": 0}
BART = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0}
ROWS = [{"input_ids": torch.arange(8) + 3, "labels": torch.arange(8) + 3} for _ in range(8)]


def losses(config, kind, alpha):
    torch.manual_seed(0)
    options = tf.TrainingArguments("out", max_steps=3, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
                                   neftune_noise_alpha=alpha, disable_tqdm=True)
    trainer = tf.Trainer(kind(config), options, train_dataset=ROWS)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


for config, kind, reached in ((tf.LlamaConfig(**LLAMA), tf.LlamaForCausalLM, True),
                              (tf.T5Config(**T5), tf.T5ForConditionalGeneration, False),
                              (tf.BartConfig(**BART), tf.BartForConditionalGeneration, False)):
    same = losses(config, kind, None) == losses(config, kind, 500.0)
    said = "the same losses with noise and without" if same else "other losses with noise than without"
    print(f"{kind.__name__}: {said}")
    assert same is not reached, "it behaves otherwise now"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" tried.py 2> /dev/null | grep -E "losses with"

"""Rows as points: the mean of a model's last hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.example import Examples
from luthier.data.collate import collator_for
from luthier.data.texts import full_text

if TYPE_CHECKING:
    import numpy as np


def states_of(model: Any, tokenizer: Any, examples: Examples, *, batch: int = 16, max_length: int = 512) -> np.ndarray:
    """Returns the mean over its tokens of each row's last hidden state (an encoder's, where there is one), [rows, d].

    The words of a row are read as plain text, its first `max_length` tokens. The model is left as it was.
    """
    import numpy as np
    import torch

    from luthier.core.sites.probe import eval_mode

    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    texts = [full_text(row) for row in examples.rows]
    found = []
    collate = collator_for("causal-lm", tokenizer)
    with eval_mode(model), torch.inference_mode():
        for start in range(0, len(texts), batch):
            ids = [
                tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
                for text in texts[start : start + batch]
            ]
            inputs = collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids])
            seen = inputs["attention_mask"].to(model.device)
            states = body(input_ids=inputs["input_ids"].to(model.device), attention_mask=seen).last_hidden_state
            mean = (states * seen[..., None]).sum(1, dtype=torch.float32) / seen.sum(1, keepdim=True)
            found.append(mean.cpu().numpy())
    return np.concatenate(found)


def states_by(name: str, task: str = "causal-lm") -> Callable[[Examples], np.ndarray]:
    """Returns `states_of` with a model by name (folder, hub id, catalogue), loaded when it is first asked for."""
    held: list[Any] = []

    def states(examples: Examples) -> np.ndarray:
        from luthier import models

        if not held:
            held.append(models.load(name, task=task))
        return states_of(held[0].model, held[0].processor, examples)

    return states

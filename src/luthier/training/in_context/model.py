"""A causal transformer from scratch that reads (x_t, y_{t-1}) and says y_t."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from luthier.training.in_context.spec import InContext


class SequenceModel(nn.Module):
    """GPT-2 blocks over E_x x_t + E_y y_{t-1}, whose logits [sequences, T, classes] are of y_t.

    Before the first place stands no label.

    The weights start with the standard deviation 1/√width, since GPT-2's 0.02 is made for widths of many hundreds.
    """

    def __init__(self, width: int, spec: InContext) -> None:
        super().__init__()
        settings = GPT2Config(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            n_positions=spec.length,
            n_embd=width,
            n_layer=spec.layers,
            n_head=spec.heads(width),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=width**-0.5,
            use_cache=False,
        )
        self.nothing = spec.classes
        self.blocks = GPT2Model(settings)
        self.blocks.wte.requires_grad_(False)  # of token ids, which there are none
        self.row = nn.Linear(spec.dimension, width)
        self.label = nn.Embedding(spec.classes + 1, width)
        self.head = nn.Linear(width, spec.classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns logits for x [sequences, T, m] and y [sequences, T]; a label is seen from the next place on."""
        before = torch.cat([torch.full_like(y[:, :1], self.nothing), y[:, :-1]], 1)
        read = self.row(x) + self.label(before)
        return self.head(self.blocks(inputs_embeds=read).last_hidden_state)

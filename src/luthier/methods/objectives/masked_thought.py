"""Masked thought: the answer so far is read through holes, the whole answer is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from luthier.core.contracts.objective import Objective
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import widest

HIDDEN = "hidden"
"""Feature that holds the token which stands for <mask>, or how many there are to draw one from."""


def _drawn(count: Tensor, places: Tensor) -> Tensor:
    return (torch.rand(places.shape, device=places.device, dtype=widest(places.device)) * count).long()


REPLACEMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mask": lambda token, places: token, "random": _drawn}
"""What is read at hidden places: (the feature [rows, 1], the tokens [rows, length]) -> tokens that broadcast."""
STAND_INS = ("mask_token", "pad_token", "unk_token", "eos_token")
"""Which of the tokenizer's tokens stands for <mask>: the first one that it has."""


@dataclass(frozen=True)
class MaskedThought(Objective):
    """L = - Σ_t log p(y_t | x, y_<t with each token hidden with probability p)

    Tokens of the answers are replaced where they are read, never where they are predicted; prompts stay whole. p grows
    in equal steps from 0 until the share `ramp` of training is over. Evaluation reads whole answers. A hidden token is
    read as <mask>, or as one drawn from the vocabulary at random, as the authors' script for GSM8K does. What stands
    for <mask> is the tokenizer's own mask token, else its padding token (which the authors name as a choice), else the
    unknown one, else the end of a text; no embedding is added. Random draws are those of the run's seed.
    """

    paper = "Chen et al. 2024, arXiv 2403.02178"
    neutral: ClassVar = {"p": 0.0}
    depends: ClassVar = {"token": ("replacement", "mask")}

    p: float = 0.4
    """Probability that a token of the answer is hidden, after the ramp."""
    ramp: float = 2 / 3
    """Share of the steps in which p grows from 0 (0: it is p from the start)."""
    replacement: Literal["mask", "random"] = "mask"
    """What is read in place of a hidden token."""
    token: str | None = None
    """What stands for <mask>, a token of the vocabulary. Default: see above."""

    def check(self) -> None:
        for name in ("p", "ramp"):
            self.within(name, 0, 1)

    def rows(self, rows):
        if not self.p:
            return rows.features
        if rows.examples.task != "causal-lm":
            raise LuthierError(f"masked_thought hides tokens of answers, and {rows.examples.task} rows have none.")
        hidden = rows.processor.vocab_size if self.replacement == "random" else stand_in(rows.processor, self.token)
        return [feature | {HIDDEN: hidden} for feature in rows.features]

    def rate(self, step: int, steps: int) -> float:
        """Returns the probability at a step."""
        return self.p * min(1.0, step / (self.ramp * steps)) if self.ramp else self.p

    def inputs(self, batch, at):
        rest = {key: value for key, value in batch.items() if key != HIDDEN}
        rate = self.rate(at.step, at.steps)
        if not (at.training and rate):
            return rest
        ids = rest["input_ids"]
        holes = rest["labels"].ne(-100) & (torch.rand(ids.shape, device=ids.device) < rate)
        seen = REPLACEMENTS[self.replacement](batch[HIDDEN][:, None], ids)
        return rest | {"input_ids": torch.where(holes, seen, ids)}

    def loss(self, model, batch):
        from luthier.methods.objectives._cross_entropy import causal_loss

        return causal_loss(model, batch)


def stand_in(tokenizer: Any, token: str | None) -> int:
    """Returns the id of the token that stands for <mask>; raises `LuthierError` for one that the vocabulary lacks."""
    names = [token] if token is not None else [getattr(tokenizer, name, None) for name in STAND_INS]
    name = next((name for name in names if name is not None), None)
    if name is None or name not in tokenizer.get_vocab():
        raise LuthierError(f"{name!r} is not a token of {type(tokenizer).__name__}; name one that is (token).")
    return tokenizer.get_vocab()[name]

"""How tokens of an answer are chosen, and how many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, otherwise sampled from the `top_p` nucleus by the seed."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise LuthierError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1.")
        if self.temperature < 0:
            raise LuthierError(f"temperature is {self.temperature}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise LuthierError(f"top_p is {self.top_p}; expected above 0 and at most 1.")

    def config(self, stops: list[int], pad: int) -> GenerationConfig:
        """Returns it as transformers' own loop takes it."""
        from transformers import GenerationConfig

        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=bool(self.temperature),
            num_beams=1,
            eos_token_id=stops or None,
            pad_token_id=pad,
            use_cache=True,
            **drawn,
        )


def within(sampling: Sampling, taken: int, most: int | None) -> Sampling:
    """Returns it with the new tokens that fit behind those `taken`; raises `LuthierError` where none does."""
    if most is None:
        return sampling
    if taken >= most:
        raise LuthierError(f"a prompt has {taken} tokens, and the model has positions for {most}: shorten it.")
    return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, most - taken))

"""`generate`: text from prompts."""

from __future__ import annotations

from typing import Any


def generate(
    model: Any,
    processor: Any,
    prompts: list[str] | list[list[dict[str, Any]]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 8,
) -> list[str]:
    """One continuation of each prompt."""
    raise NotImplementedError

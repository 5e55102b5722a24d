"""Combining several adapters or fine-tuned models of one base into one; the rules are in `combinations`."""

from luthier.combining.combine import combine

__all__ = ["combine"]

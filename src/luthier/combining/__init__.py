"""Combining: several fitted models of one base become one adapter or one model. The rules are in `combinations`."""

from luthier.combining.combine import combine

__all__ = ["combine"]

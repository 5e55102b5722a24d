"""Examining what fine-tuning did to a model; the measurements are in `examinations`."""

from luthier.examining.examine import examine

__all__ = ["examine"]

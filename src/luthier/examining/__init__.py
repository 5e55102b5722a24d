"""Examining: what fitting did to a model. The measurements are in `examinations`."""

from luthier.examining.examine import examine

__all__ = ["examine"]

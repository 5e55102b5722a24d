"""Exporting: a saved adapter leaves for other software. The formats are in `exports`."""

from luthier.exporting.export import export

__all__ = ["export"]

"""Importing: another library's adapter becomes one of ours. The libraries are in `imports`."""

from luthier.importing.adapter import import_adapter

__all__ = ["import_adapter"]

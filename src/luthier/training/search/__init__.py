"""The search for the layers and modules that a run is to train: a tree of ranges, each node a normal run."""

from __future__ import annotations

from luthier.training.search.search import Searched, search

__all__ = ["Searched", "search"]

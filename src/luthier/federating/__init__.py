"""Federating: clients train, each on rows of its own, a server aggregates. The rules are in `aggregations`."""

from __future__ import annotations

from luthier.federating.result import Federated
from luthier.federating.run import federate
from luthier.federating.spec import Federation

__all__ = ["Federated", "Federation", "federate"]
